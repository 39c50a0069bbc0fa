//! `cluster-add`: starts another node, which joins the cluster.

use anyhow::{Context, Result, ensure};
use flotilla_local_cluster::{BASE_STEP, Node, Ports};

use super::{Fleet, Folder, table};

/// Arguments of `cluster-add`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    folder: Folder,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let (dir, layout) = arguments.folder.open()?;
    let mut fleet = Fleet::open(dir, layout)?;
    ensure!(
        fleet.layout.nodes.iter().any(Node::is_running),
        "no node is running: `cargo xtask cluster-up` starts them"
    );
    // The layout has no gaps, so the next number and the base port follow from the last node.
    let last = fleet.layout.nodes.last().context("the layout is empty")?;
    let number = fleet.layout.nodes.len() + 1;
    let base = last
        .quic
        .port()
        .checked_sub(BASE_STEP * u16::try_from(number - 1)?)
        .context("the last node does not use the fixed port layout")?;
    let ports = Ports::fixed(base, number).context("no ports left above those of the last node")?;
    let secure = last.secure;
    fleet.layout.nodes.push(Node { secure, ..Node::new(&fleet.dir, number, ports) });
    fleet.start(number - 1)?;
    fleet.wait_ready()?;
    println!();
    table::nodes(&fleet.layout);
    Ok(())
}
