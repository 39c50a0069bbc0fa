//! `torture`: the long set over real processes. Builds a node with failpoints, then runs the program that knows scenarios and places.

use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::workspace::{self, Failpoints, Profile, cargo};

/// What to do; without anything, all scenarios once.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Only this scenario; may be repeated
    #[arg(long, value_name = "NAME")]
    scenario: Vec<String>,
    /// How often the scenarios run, each time from another seed
    #[arg(long, default_value_t = 1)]
    rounds: u64,
    /// The first seed
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Crash nodes at every failpoint instead
    #[arg(long, conflicts_with_all = ["scenario", "rounds"])]
    failpoints: bool,
    /// Crashes at each failpoint
    #[arg(long, default_value_t = 100, requires = "failpoints")]
    times: u32,
    /// Only this failpoint; may be repeated
    #[arg(long, value_name = "NAME", requires = "failpoints")]
    place: Vec<String>,
    /// Only name scenarios and failpoints
    #[arg(long)]
    list: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let node = workspace::build_node_with(Profile::Dev, Failpoints::On)?;
    workspace::run(cargo().args(["build", "--package", "flotilla-tests", "--bin", "torture"]))?;
    let program = node.with_file_name(format!("torture{}", std::env::consts::EXE_SUFFIX));
    let folder = workspace::metadata()?.target_directory.join("torture");
    let mut command = Command::new(&program);
    command.env("FLOTILLA_BIN", &node).env("FLOTILLA_TORTURE_DIR", &folder);
    command.arg("--report").arg(&folder).arg("--seed").arg(arguments.seed.to_string());
    if arguments.list {
        command.arg("list");
    } else if arguments.failpoints {
        command.arg("failpoints").arg("--times").arg(arguments.times.to_string());
        command.args(arguments.place.iter().flat_map(|place| ["--place", place]));
    } else {
        command.arg("scenarios").arg("--rounds").arg(arguments.rounds.to_string());
        command.args(arguments.scenario.iter().flat_map(|name| ["--scenario", name]));
    }
    let status = command.status().with_context(|| program.display().to_string())?;
    ensure!(status.success(), "not everything passed; {} has what is left of it", folder.display());
    Ok(())
}
