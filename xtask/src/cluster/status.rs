//! `cluster-status`: running nodes, leaders, and unhealthy shards.
//!
//! Processes are found by their pids; everything else is requested from every running node, because without a
//! quorum they may disagree. A node's row shows what it reports about itself, or, if it does not respond,
//! what another node reports.

use anyhow::Result;
use flotilla_api::{ClusterStatus, MetadataRole, NodeInfo, ShardInfo};
use flotilla_local_cluster::{Credentials, Node, is_ready, status};
use flotilla_types::escape_hidden;

use super::{Folder, table};
use crate::workspace;

/// Shards with a problem that are listed.
const SHARDS_SHOWN_MAX: usize = 20;

/// Arguments of `cluster-status`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    folder: Folder,
}

/// The response of a running node.
struct Answer {
    ready: bool,
    status: Option<ClusterStatus>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let (_, layout) = arguments.folder.open()?;
    let answers = workspace::runtime()?.block_on(async {
        let mut answers = Vec::new();
        for node in &layout.nodes {
            answers.push(if node.is_running() { Some(query(node, &layout.credentials()).await) } else { None });
        }
        answers
    });
    let any = answers.iter().flatten().find_map(|answer| answer.status.as_ref());
    let mut rows =
        table::plain(["NODE", "PROCESS", "READY", "SEEN AS", "METADATA", "REPLICAS", "LEADS", "HTTP", "REDIS"]);
    for (node, answer) in layout.nodes.iter().zip(&answers) {
        let source = answer.as_ref().and_then(|answer| answer.status.as_ref()).or(any);
        let ready = match answer {
            None => "-",
            Some(Answer { ready: true, .. }) => "yes",
            Some(Answer { status: Some(_), .. }) => "no",
            Some(Answer { status: None, .. }) => "no response",
        };
        let [seen, metadata, replicas, leads] = describe(source.and_then(|status| find(status, node)));
        let (name, process, ready) = (node.name.clone(), table::process(node), ready.to_owned());
        let (http, redis) = (node.http_url(), node.redis.to_string());
        rows.add_row([name, process, ready, seen, metadata, replicas, leads, http, redis]);
    }
    println!("{}", rows.trim_fmt());
    println!("\n{}", any.map_or_else(|| "No node responds.".to_owned(), summary));
    Ok(())
}

async fn query(node: &Node, credentials: &Credentials) -> Answer {
    let url = node.http_url();
    Answer { ready: is_ready(&url, credentials).await, status: status(&url, credentials).await.ok() }
}

/// The node by address and name: the one with the highest id, because a node that lost its data gets a new
/// id.
fn find<'a>(status: &'a ClusterStatus, node: &Node) -> Option<&'a NodeInfo> {
    let quic = node.quic.to_string();
    status.nodes.iter().filter(|info| info.name == node.name && info.quic == quic).max_by_key(|info| info.id)
}

/// State and liveness of a node, its role in the metadata group, its replicas, and the number of shards it
/// leads.
fn describe(info: Option<&NodeInfo>) -> [String; 4] {
    let Some(info) = info else { return ["-"; 4].map(str::to_owned) };
    let metadata = match info.metadata_role {
        MetadataRole::Leader => "leader",
        MetadataRole::Voter => "voter",
        MetadataRole::Learner => "learner",
        MetadataRole::None => "-",
    };
    let seen = format!("{:?}, {:?}", info.state, info.liveness).to_lowercase();
    [seen, metadata.to_owned(), info.replicas.to_string(), info.leaders.to_string()]
}

fn summary(status: &ClusterStatus) -> String {
    let ids_where = |is_match: fn(&ShardInfo) -> bool| {
        let found = status.shards.iter().filter(|shard| is_match(shard));
        let ids: Vec<String> = found.clone().take(SHARDS_SHOWN_MAX).map(|shard| shard.id.to_string()).collect();
        let more = found.count().saturating_sub(SHARDS_SHOWN_MAX);
        if more > 0 { format!("{} and {more} more", ids.join(", ")) } else { ids.join(", ") }
    };
    let mut lines = vec![
        format!("Metadata group: {}.", if status.quorum { "quorum" } else { "NO QUORUM" }),
        format!("Shards: {}.", status.redundancy()),
    ];
    let unavailable = ids_where(|shard| !shard.available);
    if !unavailable.is_empty() {
        lines.push(format!("Not available: {unavailable}."));
    }
    let incomplete = ids_where(|shard| !shard.fully_replicated);
    if !incomplete.is_empty() {
        lines.push(format!("Not fully replicated: {incomplete}."));
    }
    // They name nodes, whose names others chose.
    lines.extend(status.health.reasons.iter().map(|reason| escape_hidden(reason)));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status_of(shards: &str, nodes: &str) -> ClusterStatus {
        let text = format!(
            r#"{{"cluster_id": "00000000000000000000000000000000", "node": 1, "version": "0", "started_ms": 0,
                "draining": false, "metadata_leader": null, "quorum": false, "peers": [], "collections": [],
                "health": {{"ok": false, "reasons": ["two of three nodes are down"]}}, "available_shards": 2,
                "replicated_shards": 1, "shards_total": 3, "failures_survivable": 0,
                "nodes": [{nodes}], "shards": [{shards}]}}"#
        );
        serde_json::from_str(&text).expect("a status")
    }

    #[test]
    fn unhealthy_shards_are_listed() {
        let shard = |id, available, replicated| {
            format!(
                r#"{{"id": {id}, "collection": "default", "range": "", "leader": 1, "replicas": [],
                    "epoch": {{"range": 1, "config": 1}}, "desired_replicas": 3, "healthy": false,
                    "available": {available}, "fully_replicated": {replicated}}}"#
            )
        };
        let mut shards = vec![shard(1, true, true), shard(2, false, false), shard(3, true, false)];
        let expected = "Metadata group: NO QUORUM.\n\
                        Shards: 2 of 3 available, 1 of 3 fully replicated; no more node failure can be survived.\n\
                        Not available: s2.\nNot fully replicated: s2, s3.\ntwo of three nodes are down";
        assert_eq!(summary(&status_of(&shards.join(","), "")), expected);
        shards.extend((4..1_004).map(|id| shard(id, true, false)));
        assert!(summary(&status_of(&shards.join(","), "")).contains("s21 and 982 more."));
    }

    #[test]
    fn a_node_that_rejoined_is_shown_under_its_new_id() {
        let node = |id, state| {
            format!(
                r#"{{"id": {id}, "name": "n1", "quic": "127.0.0.1:7110", "http": "", "redis": "", "state": "{state}",
                    "liveness": "alive", "is_self": false, "metadata_role": "voter", "replicas": 4, "leaders": 2}}"#
            )
        };
        let status = status_of("", &[node(1, "lost"), node(4, "active")].join(","));
        let ports = flotilla_local_cluster::Ports::fixed(7_100, 1).expect("ports below the last");
        let info = find(&status, &Node::new("/c".as_ref(), 1, ports));
        assert_eq!(describe(info), ["active, alive", "voter", "4", "2"]);
    }
}
