//! `shard top`: the shards that are the most work.

use clap::{Args, ValueEnum};
use flotilla_api::{SHARD_TOP_DEFAULT, SHARD_TOP_MAX, ShardOrder, ShardTop};
use flotilla_client::Client;

use super::{Failure, Output, or_dash, table};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// By what the shards are ordered, as it was in the last ten seconds
    #[arg(long, value_name = "WHAT", default_value = "cpu")]
    by: By,
    /// Show so many at most
    #[arg(long, value_name = "N", default_value_t = SHARD_TOP_DEFAULT as u16,
        value_parser = clap::value_parser!(u16).range(1..=SHARD_TOP_MAX as i64))]
    limit: u16,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum By {
    /// CPU time of the leader: the node's, divided by what was asked of its shards
    Cpu,
    /// Reads
    Reads,
    /// Commands
    Writes,
    /// Bytes written to the log
    Bytes,
}

impl From<By> for ShardOrder {
    fn from(by: By) -> Self {
        match by {
            By::Cpu => Self::Cpu,
            By::Reads => Self::Reads,
            By::Writes => Self::Writes,
            By::Bytes => Self::Bytes,
        }
    }
}

pub(super) async fn run(arguments: Arguments, client: &Client, output: Output) -> Result<(), Failure> {
    let Arguments { by, limit } = arguments;
    output.show(&client.shard_top(by.into(), limit.into()).await?, shown)
}

fn shown(top: &ShardTop) -> String {
    let percent = |share: f64| format!("{:.1}%", share * 100.0);
    let rows = top.shards.iter().map(|found| {
        [
            found.shard.to_string(),
            found.collection.clone().unwrap_or_else(|| "(metadata)".to_owned()),
            found.leader.to_string(),
            percent(found.cpu),
            percent(found.cpu_minute),
            percent(found.cpu_peak),
            format!("{:.1}", found.reads),
            format!("{:.1}", found.writes),
            found.bytes.to_string(),
        ]
    });
    let header = ["SHARD", "COLLECTION", "LEADER", "CPU", "1 MIN", "PEAK", "READS/S", "WRITES/S", "BYTES/S"];
    let mut lines = vec![if top.shards.is_empty() { "no shard is used".to_owned() } else { table(header, rows) }];
    let nodes =
        top.nodes.iter().map(|node| [node.node.to_string(), or_dash(node.cpu.map(percent)), node.shards.to_string()]);
    lines.push(table(["NODE", "CPU", "SHARDS IN USE"], nodes));
    if !top.silent.is_empty() {
        let silent: Vec<_> = top.silent.iter().map(ToString::to_string).collect();
        lines.push(format!("no report from: {}", silent.join(", ")));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn shares_are_percent_of_one_cpu_and_silent_nodes_are_named() {
        let top = json!({
            "shards": [{ "shard": "s4", "collection": "c", "leader": "n2", "cpu": 0.125, "cpu_minute": 0.1,
                "cpu_peak": 1.5, "reads": 12.0, "writes": 0.5, "bytes": 77 }],
            "nodes": [{ "node": "n2", "cpu": 0.4, "shards": 1 }, { "node": "n3", "shards": 0 }],
            "silent": ["n7"],
        });
        let shown = shown(&serde_json::from_value(top).expect("a top"));
        for part in ["s4", "12.5%", "150.0%", "12.0", "0.5", "77", "40.0%", "no report from: n7"] {
            assert!(shown.contains(part), "{part} is missing in\n{shown}");
        }
        assert!(super::shown(&ShardTop::default()).contains("no shard is used"));
    }
}
