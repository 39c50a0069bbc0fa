//! `cluster-up`: builds, starts the nodes that are not running, waits, and prints how to use the cluster.

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};
use flotilla_local_cluster::{LAYOUT_FILE, Layout, Node, Ports};

use super::{Fleet, Folder, down, table};
use crate::workspace::{Profile, build_node};

/// Arguments of `cluster-up`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Number of nodes of a new cluster
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=99))]
    nodes: u16,
    /// Node i uses the ports from this one + 10·i on: +0 QUIC, +1 HTTP, +2 Redis
    #[arg(long, default_value_t = 7_100)]
    base_port: u16,
    #[command(flatten)]
    folder: Folder,
    /// Serve clients only over TLS and with keys
    #[arg(long)]
    secure: bool,
    /// Stop and delete the cluster in the folder first
    #[arg(long)]
    fresh: bool,
    /// Build without optimisation, which is faster
    #[arg(long)]
    dev: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let dir = arguments.folder.path()?;
    let found = Layout::load(&dir)?;
    let found = match found {
        Some(layout) if arguments.fresh => {
            down::stop(&layout)?;
            down::purge(&dir, &layout)?;
            None
        }
        found => found,
    };
    if let Some(layout) = &found
        && layout.nodes.iter().all(Node::is_running)
    {
        println!("The cluster in {} is already up.\n", dir.display());
        table::nodes(layout);
        return Ok(());
    }
    let binary = build_node(if arguments.dev { Profile::Dev } else { Profile::Release })?;
    let layout = match found {
        Some(layout) => {
            let down = layout.nodes.iter().filter(|node| !node.is_running()).count();
            println!("The cluster in {} has {down} node(s) down: starting them on their data.", dir.display());
            layout
        }
        None => plan(&dir, arguments)?,
    };
    let mut fleet = Fleet::new(dir, layout, binary)?;
    fleet.start_all()?;
    let credentials = fleet.layout.credentials();
    fleet.layout.ca = credentials.ca();
    fleet.layout.admin_key = credentials.admin_key()?;
    fleet.layout.save(&fleet.dir)?;
    println!();
    table::nodes(&fleet.layout);
    let dir = arguments.folder.dir.as_ref().map(|dir| format!(" --dir {}", dir.display()));
    usage(&fleet, &dir.unwrap_or_default());
    Ok(())
}

fn plan(dir: &Path, arguments: &Arguments) -> Result<Layout> {
    let is_empty = fs::read_dir(dir).map_or(true, |mut entries| entries.next().is_none());
    ensure!(is_empty, "{} has no {LAYOUT_FILE} and is not empty: choose another --dir", dir.display());
    let node = |number| {
        let ports = Ports::fixed(arguments.base_port, number);
        let ports = ports.context("--base-port is too high for this many nodes")?;
        Ok(Node { secure: arguments.secure, ..Node::new(dir, number, ports) })
    };
    let nodes: Result<Vec<Node>> = (1..=usize::from(arguments.nodes)).map(node).collect();
    Ok(Layout { nodes: nodes?, ..Layout::default() })
}

/// Prints example commands. `dir` is the `--dir` option that further commands need to find the cluster.
fn usage(fleet: &Fleet, dir: &str) {
    let (Some(first), Some(last)) = (fleet.layout.nodes.first(), fleet.layout.nodes.last()) else { return };
    let credentials = fleet.layout.credentials();
    // Options of the examples, which read the key from its file rather than show it.
    let (curl, redis) = match credentials.ca() {
        None => Default::default(),
        Some(ca) => {
            let ca = ca.display();
            println!(
                "\nClients need TLS and a key. The first admin key is in {}; for the examples:\n  \
                 export FLOTILLA_KEY=$(cat {0}) FLOTILLA_CA={ca}",
                first.data_dir.join("admin.key").display(),
            );
            let curl = format!(" --cacert {ca} -H \"Authorization: Bearer $FLOTILLA_KEY\"");
            (curl, format!(" --tls --cacert {ca} -a $FLOTILLA_KEY"))
        }
    };
    let (binary, second) = (fleet.binary.display(), fleet.layout.nodes.get(1).unwrap_or(first));
    println!(
        "
Any node serves everything. For example:
  curl{curl} -X PUT {first}/v1/kv/default/hello -d world
  curl{curl} {last}/v1/kv/default/hello
  redis-cli{redis} -h {ip} -p {port} SET hello hi
  {binary} status --addr {first}

Kill a node, and see that the cluster keeps serving:
  cargo xtask cluster-kill {name}{dir}
  cargo xtask cluster-status{dir}
  cargo xtask cluster-start {name}{dir}
  cargo xtask cluster-add{dir}

When done:
  cargo xtask cluster-down{dir}            # keeps the data; cluster-up continues with it
  cargo xtask cluster-down --purge{dir}    # removes it",
        first = first.http_url(),
        last = last.http_url(),
        ip = last.redis.ip(),
        port = last.redis.port(),
        name = second.name,
    );
}
