//! `cluster-kill`: sends a signal to one node.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use flotilla_local_cluster::Signal;

use super::{Folder, POLL_EVERY, unknown};

/// How long a killed process may take to disappear.
const GONE_WITHIN: Duration = Duration::from_secs(10);

/// Arguments of `cluster-kill`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The node's name, such as n2
    node: String,
    /// KILL (a crash), TERM or INT (a clean stop), STOP and CONT (a pause)
    #[arg(long, default_value = "KILL", value_parser = parse)]
    signal: Signal,
    #[command(flatten)]
    folder: Folder,
}

fn parse(text: &str) -> Result<Signal> {
    text.parse().map_err(|()| anyhow!("KILL, TERM, INT, STOP or CONT"))
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let (_, layout) = arguments.folder.open()?;
    let node = layout.node(&arguments.node).with_context(|| unknown(&arguments.node, &layout))?;
    ensure!(node.is_running(), "{} is not running", node.name);
    arguments.signal.send(node.pid)?;
    println!("sent {:?} to {} (pid {})", arguments.signal, node.name, node.pid);
    if arguments.signal == Signal::Kill {
        let start = Instant::now();
        while node.is_running() {
            ensure!(start.elapsed() < GONE_WITHIN, "{} is still running", node.name);
            thread::sleep(POLL_EVERY);
        }
    }
    Ok(())
}
