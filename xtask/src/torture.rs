//! `torture`: the long fault tests over real processes. Builds a node with failpoints and runs the `torture`
//! binary of `flotilla-tests`.

use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::workspace::{self, Profile};

/// Arguments of `torture`; by default all scenarios run once.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Only this scenario; may be repeated
    #[arg(long, value_name = "NAME")]
    scenario: Vec<String>,
    /// Number of rounds, each with the next seed
    #[arg(long, default_value_t = 1)]
    rounds: u64,
    /// Seed of the first round
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Crash nodes at every failpoint instead of running scenarios
    #[arg(long, conflicts_with_all = ["scenario", "rounds"])]
    failpoints: bool,
    /// Crashes at each failpoint
    #[arg(long, default_value_t = 100, requires = "failpoints")]
    times: u32,
    /// Only this failpoint; may be repeated
    #[arg(long, value_name = "NAME", requires = "failpoints")]
    place: Vec<String>,
    /// List scenarios and failpoints
    #[arg(long)]
    list: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    workspace::build_tests()?;
    let node = workspace::binary(Profile::Dev, "flotilla")?;
    let program = workspace::binary(Profile::Dev, "torture")?;
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
    ensure!(status.success(), "some runs failed; see {}", folder.display());
    Ok(())
}
