//! `cluster-start`: starts one node on its data, or as a new node if it has none.

use anyhow::Result;

use super::{Fleet, Folder};

/// Arguments of `cluster-start`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The node's name, such as n2
    node: String,
    /// Return at once instead of waiting until the cluster is ready
    #[arg(long)]
    no_wait: bool,
    #[command(flatten)]
    folder: Folder,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let (dir, layout) = arguments.folder.open()?;
    let mut fleet = Fleet::open(dir, layout)?;
    let i = fleet.index_of(&arguments.node)?;
    if fleet.layout.nodes[i].is_running() {
        println!("{} is already running (pid {})", arguments.node, fleet.layout.nodes[i].pid);
        return Ok(());
    }
    fleet.start(i)?;
    // Without a majority the cluster cannot become ready.
    let running = fleet.layout.nodes.iter().filter(|node| node.is_running()).count();
    if arguments.no_wait || running * 2 <= fleet.layout.nodes.len() { Ok(()) } else { fleet.wait_ready() }
}
