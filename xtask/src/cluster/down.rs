//! `cluster-down`: stops all nodes, cleanly if possible.

use std::{
    fs, io,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use flotilla_local_cluster::{LAYOUT_FILE, Layout, Node, STOP_WITHIN, Signal};

use super::{BINARY_FILE, Folder, POLL_EVERY};

/// How long a killed process may take to disappear.
const GONE_WITHIN: Duration = Duration::from_secs(10);

/// Arguments of `cluster-down`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Also remove the folder with all data and logs
    #[arg(long)]
    purge: bool,
    #[command(flatten)]
    folder: Folder,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let dir = arguments.folder.path()?;
    let Some(layout) = Layout::load(&dir)? else {
        println!("No cluster in {}.", dir.display());
        return Ok(());
    };
    stop(&layout)?;
    if arguments.purge {
        purge(&dir, &layout)?;
    }
    Ok(())
}

/// Stops all running nodes with SIGTERM, and kills those that do not exit within [`STOP_WITHIN`].
pub(super) fn stop(layout: &Layout) -> Result<()> {
    let running: Vec<&Node> = layout.nodes.iter().filter(|node| node.is_running()).collect();
    for node in &running {
        println!("stopping {} (pid {})", node.name, node.pid);
        // Both fail if it has just exited. A paused node must continue to be able to stop.
        let _ = Signal::Cont.send(node.pid);
        let _ = Signal::Term.send(node.pid);
    }
    if !wait_gone(&running, STOP_WITHIN) {
        for node in running.iter().filter(|node| node.is_running()) {
            println!("killing {}, which did not stop within {} s", node.name, STOP_WITHIN.as_secs());
            let _ = Signal::Kill.send(node.pid);
        }
        ensure!(wait_gone(&running, GONE_WITHIN), "some nodes cannot be killed");
    }
    Ok(())
}

/// Removes the cluster's files from its folder, and the folder if it is empty then.
pub(super) fn purge(dir: &Path, layout: &Layout) -> Result<()> {
    for node in &layout.nodes {
        ensure!(node.data_dir.starts_with(dir), "{} is not in {}", node.data_dir.display(), dir.display());
        ignore_missing(fs::remove_dir_all(&node.data_dir))?;
        ignore_missing(fs::remove_file(&node.log))?;
    }
    for file in [LAYOUT_FILE, BINARY_FILE] {
        ignore_missing(fs::remove_file(dir.join(file)))?;
    }
    // Fails if the folder holds other files, which are kept.
    if fs::remove_dir(dir).is_ok() {
        println!("removed {}", dir.display());
    } else {
        println!("removed all nodes from {}, which also holds other files", dir.display());
    }
    Ok(())
}

fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    result.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

fn wait_gone(nodes: &[&Node], within: Duration) -> bool {
    let start = Instant::now();
    while nodes.iter().any(|node| node.is_running()) {
        if start.elapsed() > within {
            return false;
        }
        thread::sleep(POLL_EVERY);
    }
    true
}
