//! `cluster-down`: stop all nodes, cleanly if they can.

use std::{
    fs, io,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use flotilla_local_cluster::{LAYOUT_FILE, Layout, Node, STOP_WITHIN, Signal};

use super::{BINARY_FILE, Folder, POLL_EVERY};

/// How long a killed process may take to be gone.
const GONE_WITHIN: Duration = Duration::from_secs(10);

/// What to do.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Remove the folder with all data and logs, too
    #[arg(long)]
    purge: bool,
    #[command(flatten)]
    folder: Folder,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let dir = arguments.folder.path()?;
    let Some(layout) = Layout::load(&dir)? else {
        println!("There is no cluster in {}.", dir.display());
        return Ok(());
    };
    stop(&layout)?;
    if arguments.purge {
        purge(&dir, &layout)?;
    }
    Ok(())
}

/// Asks all running nodes to leave, and kills those that do not within [`STOP_WITHIN`].
pub(super) fn stop(layout: &Layout) -> Result<()> {
    let running: Vec<&Node> = layout.nodes.iter().filter(|node| node.is_running()).collect();
    for node in &running {
        println!("stopping {} (pid {})", node.name, node.pid);
        // Both fail when it ended just now. A paused node must go on in order to leave.
        let _ = Signal::Cont.send(node.pid);
        let _ = Signal::Term.send(node.pid);
    }
    if !are_gone(&running, STOP_WITHIN) {
        for node in running.iter().filter(|node| node.is_running()) {
            println!("killing {}, which did not stop within {} s", node.name, STOP_WITHIN.as_secs());
            let _ = Signal::Kill.send(node.pid);
        }
        ensure!(are_gone(&running, GONE_WITHIN), "some nodes cannot be killed");
    }
    Ok(())
}

/// Removes what a cluster has put into its folder, and the folder if nothing else is in it.
pub(super) fn purge(dir: &Path, layout: &Layout) -> Result<()> {
    for node in &layout.nodes {
        ensure!(node.data_dir.starts_with(dir), "{} is not in {}", node.data_dir.display(), dir.display());
        ignore_missing(fs::remove_dir_all(&node.data_dir))?;
        ignore_missing(fs::remove_file(&node.log))?;
    }
    for file in [LAYOUT_FILE, BINARY_FILE] {
        ignore_missing(fs::remove_file(dir.join(file)))?;
    }
    // Fails when there is something else in it, which then stays.
    if fs::remove_dir(dir).is_ok() {
        println!("removed {}", dir.display());
    } else {
        println!("removed all nodes from {}, which holds other files, too", dir.display());
    }
    Ok(())
}

fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    result.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

fn are_gone(nodes: &[&Node], within: Duration) -> bool {
    let start = Instant::now();
    while nodes.iter().any(|node| node.is_running()) {
        if start.elapsed() > within {
            return false;
        }
        thread::sleep(POLL_EVERY);
    }
    true
}
