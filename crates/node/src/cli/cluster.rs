//! `status`, `nodes`, `shards`: three views of one node's status.

use flotilla_api::{ClusterStatus, NodeInfo, NodeList, OperationInfo, ShardInfo, ShardList, ValueTraffic};
use flotilla_client::Client;

use super::{
    failure::Failure,
    operations::{divided, since},
    output::{Output, or_dash, table, time},
    upgrade::range,
};

/// Shards with a problem that `status` lists.
const SHARDS_SHOWN_MAX: usize = 20;

pub(super) async fn status(client: &Client, output: Output) -> Result<(), Failure> {
    output.show(&client.status().await?, summary)
}

pub(super) async fn nodes(client: &Client, output: Output) -> Result<(), Failure> {
    let nodes = client.status().await?.nodes;
    output.show(&NodeList { nodes }, |list| node_table(&list.nodes))
}

pub(super) async fn shards(client: &Client, output: Output) -> Result<(), Failure> {
    let shards = client.shards().await?;
    output.show(&ShardList { shards }, |list| shard_table(&list.shards))
}

fn summary(status: &ClusterStatus) -> String {
    let mut lines = vec![
        format!("Cluster {}, seen by {} (version {})", status.cluster_id, status.node, status.version),
        match (status.quorum, status.metadata_leader) {
            (true, Some(leader)) => format!("Metadata group: led by {leader}"),
            (true, None) => "Metadata group: electing a leader".to_owned(),
            (false, _) => "Metadata group: NO QUORUM; what follows is this node's last known state".to_owned(),
        },
        format!("Cluster version: {}", status.cluster_version),
        format!("Shards: {}", status.redundancy()),
    ];
    if let Some(hit_percent) = status.values.as_ref().and_then(ValueTraffic::hit_percent) {
        let traffic = status.values.clone().unwrap_or_default();
        lines.push(format!(
            "Large values: {hit_percent} % of the needed objects were on this node already ({} bytes not sent again)",
            traffic.saved_bytes
        ));
    }
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
    // Without counts, the answer is of an older node, which says nothing of single shards either.
    let is_listed = |shard: &&ShardInfo| !shard.healthy && status.shards_total > 0;
    let mut unhealthy: Vec<ShardInfo> = status.shards.iter().filter(is_listed).cloned().collect();
    if !unhealthy.is_empty() {
        unhealthy.sort_by_key(|shard| shard.available);
        let more = unhealthy.len().saturating_sub(SHARDS_SHOWN_MAX);
        unhealthy.truncate(SHARDS_SHOWN_MAX);
        lines.push(String::new());
        lines.push(shard_table(&unhealthy));
        if more > 0 {
            lines.push(format!("and {more} more, which `flotilla shards` lists"));
        }
    }
    lines.join("\n")
}

/// The health of a shard in words: both facts, and what it can still lose.
fn shard_health(shard: &ShardInfo) -> String {
    match (shard.available, shard.fully_replicated) {
        (true, true) => format!("available, fully replicated, survives {}", shard.failures_survivable),
        (true, false) => {
            format!(
                "available, NOT FULLY REPLICATED (wants {}), survives {}",
                shard.desired_replicas, shard.failures_survivable
            )
        }
        (false, true) => "NOT AVAILABLE, fully replicated".to_owned(),
        (false, false) => format!("NOT AVAILABLE, NOT FULLY REPLICATED (wants {})", shard.desired_replicas),
    }
}

/// What changes a shard: what is done, to which replica, how far it is and for how long.
fn operations(shard: &ShardInfo) -> String {
    let operation = |operation: &OperationInfo| {
        let (kind, state) = (operation.kind.name().replace('_', " "), operation.state());
        let what = match operation.child {
            Some(_) => divided(operation),
            None => format!("{} on {}", or_dash(operation.replica), or_dash(operation.node)),
        };
        format!("{kind} {what}: {state}, for {}", since(operation.since_ms))
    };
    or_dash(Some(shard.operations.iter().map(operation).collect::<Vec<_>>().join("\n")).filter(|text| !text.is_empty()))
}

fn node_table(nodes: &[NodeInfo]) -> String {
    let header = [
        "ID", "NAME", "ROLE", "WEIGHT", "STATE", "LIVENESS", "METADATA", "REPLICAS", "LEADS", "HTTP", "REDIS", "PEERS",
        "VERSION", "STARTED", "SUPPORTS", "PLACE",
    ];
    let rows = nodes.iter().map(|node| {
        [
            format!("{}{}", node.id, if node.is_self { "*" } else { "" }),
            node.name.clone(),
            word(&node.role),
            node.weight.to_string(),
            word(&node.state),
            word(&node.liveness),
            word(&node.metadata_role),
            node.replicas.to_string(),
            node.leaders.to_string(),
            node.http.clone(),
            node.redis.clone(),
            node.quic.clone(),
            or_dash(node.version.as_deref()),
            or_dash(node.started_ms.map(time)),
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
            shard_health(shard),
            operations(shard),
            shard.local.as_ref().map_or_else(
                || "-".to_owned(),
                |local| {
                    let lag = local.followers.iter().map(|follower| follower.lag).max().filter(|lag| *lag > 0);
                    let lag = lag.map_or_else(String::new, |lag| format!(" lag {lag}"));
                    format!("{} t{} {}/{}{lag}", word(&local.role), local.term, local.applied, local.commit)
                },
            ),
        ]
    });
    table(["SHARD", "COLLECTION", "RANGE", "LEADER", "REPLICAS", "EPOCH", "HEALTH", "CHANGES", "HERE"], rows)
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
            "desired_replicas":3,"healthy":false,"available":false,"fully_replicated":false,
            "failures_survivable":0}],"available_shards":0,"replicated_shards":0,"shards_total":1,
            "failures_survivable":0}"#;
        let mut status: ClusterStatus = serde_json::from_str(status).expect("a status");
        let text = summary(&status);
        let counts = "0 of 1 available, 0 of 1 fully replicated; no more node failure can be survived";
        for part in ["NO QUORUM", "n1 is down", counts, "s4", "n2(learner)", "NOT AVAILABLE", "wants 3"] {
            assert!(text.contains(part), "{part} is missing in\n{text}");
        }
        // With very many such shards, the unavailable ones come first and the rest is only counted.
        let degraded = ShardInfo { id: flotilla_types::ShardId(5), available: true, ..status.shards[0].clone() };
        status.shards.splice(0..0, vec![degraded; 1_030]);
        let text = summary(&status);
        assert!(text.contains("s4") && text.contains("and 1011 more"), "{text}");
        assert!(text.lines().count() < 40, "{text}");
    }

    #[test]
    fn both_facts_are_shown_for_each_shard() {
        let shard = |available, fully_replicated| {
            let text = format!(
                r#"{{"id":4,"collection":null,"range":"","leader":1,"replicas":[],"epoch":{{"range":1,"config":2}},
                "desired_replicas":3,"healthy":false,"available":{available},"fully_replicated":{fully_replicated},
                "failures_survivable":1}}"#
            );
            shard_health(&serde_json::from_str(&text).expect("a shard"))
        };
        assert_eq!(shard(true, true), "available, fully replicated, survives 1");
        assert_eq!(shard(true, false), "available, NOT FULLY REPLICATED (wants 3), survives 1");
        assert_eq!(shard(false, true), "NOT AVAILABLE, fully replicated");
        assert_eq!(shard(false, false), "NOT AVAILABLE, NOT FULLY REPLICATED (wants 3)");
    }
}
