//! `status`, `nodes`, `shards`: three views of one node's status.

use flotilla_api::{ClusterStatus, NodeInfo, NodeList, ShardInfo, ShardList};
use flotilla_client::Client;

use super::{
    failure::Failure,
    output::{Output, or_dash, table},
    upgrade::range,
};

pub(super) async fn status(client: &Client, output: Output) -> Result<(), Failure> {
    output.show(&client.status().await?, summary)
}

pub(super) async fn nodes(client: &Client, output: Output) -> Result<(), Failure> {
    let nodes = client.status().await?.nodes;
    output.show(&NodeList { nodes }, |list| node_table(&list.nodes))
}

pub(super) async fn shards(client: &Client, output: Output) -> Result<(), Failure> {
    let shards = client.status().await?.shards;
    output.show(&ShardList { shards }, |list| shard_table(&list.shards))
}

fn summary(status: &ClusterStatus) -> String {
    let healthy = status.shards.iter().filter(|shard| shard.healthy).count();
    let mut lines = vec![
        format!("Cluster {}, seen by {} (version {})", status.cluster_id, status.node, status.version),
        match (status.quorum, status.metadata_leader) {
            (true, Some(leader)) => format!("Metadata group: led by {leader}"),
            (true, None) => "Metadata group: electing a leader".to_owned(),
            (false, _) => "Metadata group: NO QUORUM; what follows is this node's last known state".to_owned(),
        },
        format!("Cluster version: {}", status.cluster_version),
        format!("Shards: {healthy} of {} healthy", status.shards.len()),
    ];
    if status.draining {
        lines.push("This node is draining.".to_owned());
    }
    if status.health.ok {
        lines.push("Health: ok".to_owned());
    } else {
        lines.push("Health: needs attention".to_owned());
        lines.extend(status.health.reasons.iter().map(|reason| format!("  - {reason}")));
    }
    lines.extend(status.notes.iter().map(|note| format!("Note: {note}")));
    lines.push(String::new());
    lines.push(node_table(&status.nodes));
    let unhealthy: Vec<ShardInfo> = status.shards.iter().filter(|shard| !shard.healthy).cloned().collect();
    if !unhealthy.is_empty() {
        lines.push(String::new());
        lines.push(shard_table(&unhealthy));
    }
    lines.join("\n")
}

fn node_table(nodes: &[NodeInfo]) -> String {
    let header = [
        "ID", "NAME", "STATE", "LIVENESS", "METADATA", "REPLICAS", "LEADS", "HTTP", "REDIS", "PEERS", "VERSIONS",
        "PLACE",
    ];
    let rows = nodes.iter().map(|node| {
        [
            format!("{}{}", node.id, if node.is_self { "*" } else { "" }),
            node.name.clone(),
            word(&node.state),
            word(&node.liveness),
            word(&node.metadata_role),
            node.replicas.to_string(),
            node.leaders.to_string(),
            node.http.clone(),
            node.redis.clone(),
            node.quic.clone(),
            range(node.versions),
            node.locality.to_string(),
        ]
    });
    table(header, rows)
}

fn shard_table(shards: &[ShardInfo]) -> String {
    let rows = shards.iter().map(|shard| {
        let replicas: Vec<String> = shard
            .replicas
            .iter()
            .map(|replica| match replica.role {
                flotilla_types::ReplicaRole::Voter => replica.node.to_string(),
                flotilla_types::ReplicaRole::Learner => format!("{}(learner)", replica.node),
            })
            .collect();
        [
            shard.id.to_string(),
            shard.collection.clone().unwrap_or_else(|| "(metadata)".to_owned()),
            shard.range.clone(),
            or_dash(shard.leader),
            replicas.join(","),
            format!("{}.{}", shard.epoch.range, shard.epoch.config),
            if shard.healthy { "ok".to_owned() } else { format!("NOT OK (wants {})", shard.desired_replicas) },
            shard.local.as_ref().map_or_else(
                || "-".to_owned(),
                |local| format!("{} t{} {}/{}", word(&local.role), local.term, local.applied, local.commit),
            ),
        ]
    });
    table(["SHARD", "COLLECTION", "RANGE", "LEADER", "REPLICAS", "EPOCH", "HEALTH", "HERE"], rows)
}

/// The name of a value in JSON, so that both output formats use the same words.
fn word(value: &impl serde::Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_without_quorum_says_so_and_lists_unhealthy_shards() {
        let status = r#"{"cluster_id":"00112233445566778899aabbccddeeff","node":2,"version":"0.1.0","started_ms":0,
            "draining":false,"metadata_leader":null,"quorum":false,"health":{"ok":false,"reasons":["n1 is down"]},
            "nodes":[],"collections":[],"peers":[],"shards":[{"id":4,"collection":"default","range":"buckets 0-3",
            "leader":null,"replicas":[{"replica":9,"node":2,"role":"learner"}],"epoch":{"range":1,"config":2},
            "desired_replicas":3,"healthy":false}]}"#;
        let text = summary(&serde_json::from_str(status).expect("a status"));
        for part in ["NO QUORUM", "n1 is down", "0 of 1 healthy", "s4", "n2(learner)", "wants 3"] {
            assert!(text.contains(part), "{part} is missing in\n{text}");
        }
    }
}
