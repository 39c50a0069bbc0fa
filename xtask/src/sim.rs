//! `sim`: builds the simulator with optimizations and runs it; see its own `--help`.

use anyhow::Result;

use crate::workspace::{self, cargo};

/// Arguments of `sim`.
#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Arguments {
    /// Arguments passed to the simulator: `--seeds N --from N --jobs N --keep-going`, or `--seed N --trace
    /// FILE`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    simulator: Vec<String>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let mut run = cargo();
    run.args(["run", "--quiet", "--release", "-p", "flotilla-sim", "--"]).args(&arguments.simulator);
    workspace::run(&mut run)
}
