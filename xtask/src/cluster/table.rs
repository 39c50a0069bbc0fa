//! The tables that `cluster-*` commands print: aligned and without lines, so that they are easy to process.

use comfy_table::{Table, presets::NOTHING};
use flotilla_local_cluster::{Layout, Node};

/// A table without lines.
pub(super) fn plain<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(header);
    table
}

/// Prints names, processes, addresses and logs of all nodes.
pub(super) fn nodes(layout: &Layout) {
    let mut table = plain(["NODE", "PROCESS", "QUIC", "HTTP", "REDIS", "LOG"]);
    for node in &layout.nodes {
        let row = [
            node.name.clone(),
            process(node),
            node.quic.to_string(),
            node.http_url(),
            node.redis.to_string(),
            node.log.display().to_string(),
        ];
        table.add_row(row);
    }
    println!("{}", table.trim_fmt());
}

/// `pid 123`, or `down`.
pub(super) fn process(node: &Node) -> String {
    if node.is_running() { format!("pid {}", node.pid) } else { "down".to_owned() }
}
