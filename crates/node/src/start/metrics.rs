//! The text of `/metrics`: the counters of all crates, and gauges of this node's current status.
//!
//! The gauges are rendered from the node's status at each scrape, so that a shard or peer that is gone leaves
//! no series: their number is bounded by the node's replicas and peers. Deliberately absent: bytes per peer,
//! and names of collections, because users choose them and each would add a series.

use std::{
    fmt::{Display, Write as _},
    fs,
    time::Duration,
};

use flotilla_api::{
    ClusterStatus, FollowerInfo, Liveness, LocalReplica, LocalRole, NodeRole, OperationInfo, OperationProgress,
    PeerInfo, PeerState, ShardInfo,
};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use rustix::time::{ClockId, clock_gettime};

/// Histogram buckets of durations, in seconds: from a cached read to a checkpoint of a large shard.
const SECONDS: [f64; 18] = [
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
    10.0, 30.0,
];
/// Histogram buckets of objects in one answer, of which there are at most 64.
const BATCH_OBJECTS: [f64; 7] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0];
/// How often buffered samples are moved into the histograms. The buffers grow until then.
const UPKEEP: Duration = Duration::from_secs(5);

const ROLES: [LocalRole; 6] = [
    LocalRole::Leader,
    LocalRole::Follower,
    LocalRole::Candidate,
    LocalRole::Learner,
    LocalRole::Quarantined,
    LocalRole::Stopped,
];
const LIVENESS: [Liveness; 5] = [Liveness::Alive, Liveness::Suspect, Liveness::Down, Liveness::Left, Liveness::Unknown];

/// Installs the recorder for the metrics of every crate. Call it once per process.
pub(crate) fn install() -> anyhow::Result<PrometheusHandle> {
    Ok(builder()?.install_recorder()?)
}

fn builder() -> Result<PrometheusBuilder, BuildError> {
    PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)?
        .set_buckets_for_metric(Matcher::Full("flotilla_value_batch_objects".to_owned()), &BATCH_OBJECTS)
}

/// Bounds the memory of buffered samples while `/metrics` is not scraped. Never returns.
pub(crate) async fn upkeep(metrics: PrometheusHandle) {
    let mut ticks = tokio::time::interval(UPKEEP);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        metrics.run_upkeep();
    }
}

/// The gauges of the node's status, in the Prometheus text format.
pub(crate) fn text(status: &ClusterStatus) -> String {
    let mut text = Text(String::new());
    node(&mut text, status);
    shards(&mut text, &status.shards);
    followers(&mut text, &status.shards);
    operations(&mut text, &status.shards);
    let peers = status.peers.iter().map(|peer| {
        let state = match peer.state {
            PeerState::Connected => "connected",
            PeerState::Connecting => "connecting",
            PeerState::Backoff => "backoff",
        };
        (format!(r#"peer="{}",state="{state}""#, peer.node), 1)
    });
    text.family("flotilla_peer_state", GAUGE, "State of the connection to a peer: 1 for the current state", peers);
    let up = |peer: &PeerInfo| (format!(r#"peer="{}""#, peer.node), u8::from(peer.state == PeerState::Connected));
    text.family("flotilla_transport_peer_up", GAUGE, "Whether a peer is connected", status.peers.iter().map(up));
    let rtt = |peer: &PeerInfo| Some((format!(r#"peer="{}""#, peer.node), peer.rtt_us? as f64 / 1e6));
    let rtts = status.peers.iter().filter_map(rtt);
    text.family("flotilla_transport_peer_rtt_seconds", GAUGE, "Round-trip time to a connected peer", rtts);
    process(&mut text);
    text.0
}

fn node(text: &mut Text, status: &ClusterStatus) {
    let version = format!(r#"version="{}",node="{}""#, status.version, status.node);
    text.family("flotilla_build_info", GAUGE, "Version and node id: always 1", [(version, 1)]);
    text.one("flotilla_start_time_seconds", "Start time of the node, in Unix seconds", status.started_ms / 1_000);
    text.one("flotilla_draining", "Whether the node is draining", u8::from(status.draining));
    text.one("flotilla_metadata_quorum", "Whether the metadata group has a leader", u8::from(status.quorum));
    text.one("flotilla_healthy", "Whether this node sees no problem in the cluster", u8::from(status.health.ok));
    let nodes = LIVENESS.map(|liveness| {
        let count = status.nodes.iter().filter(|node| node.liveness == liveness).count();
        (format!(r#"liveness="{}""#, liveness_name(liveness)), count)
    });
    let me = status.nodes.iter().find(|node| node.is_self);
    let weight = me.map(|node| {
        let role = match node.role {
            NodeRole::Storage => "storage",
            NodeRole::Gateway => "gateway",
        };
        (format!(r#"role="{role}""#), node.weight)
    });
    text.family("flotilla_node_weight", GAUGE, "Weight of this node, which has this role; 0 for a gateway", weight);
    text.family("flotilla_nodes", GAUGE, "Nodes of the cluster by liveness, as seen by this node", nodes);
    let leaderless = status.shards.iter().filter(|shard| shard.leader.is_none()).count();
    let unhealthy = status.shards.iter().filter(|shard| !shard.healthy).count();
    text.one("flotilla_shards", "Shards of the cluster", status.shards_total);
    text.one(
        "flotilla_shards_available",
        "Shards with a leader that a quorum of their own voters supports",
        status.available_shards,
    );
    text.one(
        "flotilla_shards_fully_replicated",
        "Shards with their desired number of replicas and all their own voters on active, live nodes",
        status.replicated_shards,
    );
    text.one(
        "flotilla_failures_survivable",
        "Node failures after which every shard still has a quorum",
        status.failures_survivable,
    );
    text.one("flotilla_shards_leaderless", "Shards without a known leader", leaderless);
    text.one("flotilla_shards_unhealthy", "Shards that are not available or not fully replicated", unhealthy);
}

fn shards(text: &mut Text, shards: &[ShardInfo]) {
    let here: Vec<_> = shards.iter().filter_map(|shard| Some((shard, shard.local.as_ref()?))).collect();
    let replicas = ROLES.map(|role| {
        let count = here.iter().filter(|(_, replica)| replica.role == role).count();
        (format!(r#"role="{}""#, role_name(role)), count)
    });
    text.family("flotilla_replicas", GAUGE, "Replicas on this node", replicas);
    let roles =
        here.iter().map(|(shard, replica)| (format!(r#"shard="{}",role="{}""#, shard.id, role_name(replica.role)), 1));
    text.family("flotilla_shard_role", GAUGE, "Role of the local replica of a shard: 1 for the current role", roles);
    let mut each = |name: &str, help: &str, value: fn(&LocalReplica) -> u64| {
        let samples = here.iter().map(|(shard, replica)| (format!(r#"shard="{}""#, shard.id), value(replica)));
        text.family(name, GAUGE, help, samples);
    };
    each("flotilla_shard_term", "Raft term", |replica| replica.term);
    each("flotilla_shard_commit_index", "Last entry known to be committed", |replica| replica.commit);
    each("flotilla_shard_applied_index", "Last entry applied", |replica| replica.applied);
    each("flotilla_shard_checkpoint_index", "Last entry covered by the checkpoint", |replica| replica.checkpoint);
    each("flotilla_shard_apply_lag_entries", "Committed entries that are not applied", |replica| {
        replica.commit.saturating_sub(replica.applied)
    });
    each("flotilla_shard_memtable_bytes", "Bytes in the memtable", |replica| replica.memtable_bytes);
}

/// How far the replicas are that follow a leader on this node.
fn followers(text: &mut Text, shards: &[ShardInfo]) {
    let led = shards.iter().filter_map(|shard| Some((shard.id, shard.local.as_ref()?)));
    let lags = led.flat_map(|(shard, leader)| {
        let lag = move |other: &FollowerInfo| (format!(r#"shard="{shard}",node="{}""#, other.node), other.lag);
        leader.followers.iter().map(lag)
    });
    let help = "Committed entries that a replica of a shard led here is not known to have";
    text.family("flotilla_shard_replica_lag_entries", GAUGE, help, lags);
}

/// What changes the shards that are led here, and the snapshots that are received here.
fn operations(text: &mut Text, shards: &[ShardInfo]) {
    let all = || shards.iter().flat_map(|shard| &shard.operations);
    let labels = |operation: &OperationInfo| {
        let OperationInfo { kind, shard, replica, node, .. } = operation;
        // A split has neither.
        let replica = replica.map_or_else(String::new, |replica| replica.to_string());
        let node = node.map_or_else(String::new, |node| node.to_string());
        format!(r#"kind="{kind}",shard="{shard}",replica="{replica}",node="{node}""#)
    };
    let since =
        all().map(|found| (format!(r#"{},phase="{}""#, labels(found), found.phase), found.since_ms as f64 / 1e3));
    let help = "When the current phase of an operation on a shard began, in Unix seconds";
    text.family("flotilla_operation_phase_start_seconds", GAUGE, help, since);
    let mut progress = |name: &str, help: &str, value: fn(&OperationProgress) -> Option<u64>| {
        let samples = all().filter_map(|found| Some((labels(found), value(&found.progress)?)));
        text.family(name, GAUGE, help, samples);
    };
    progress("flotilla_operation_objects", "Objects of a received snapshot that are here", |done| done.objects);
    progress("flotilla_operation_objects_expected", "Objects of a received snapshot", |done| done.objects_total);
    progress("flotilla_operation_bytes", "Bytes of a received snapshot that were fetched", |done| done.bytes);
}

fn process(text: &mut Text) {
    if let Some(bytes) = resident_bytes() {
        text.one("flotilla_process_resident_bytes", "Resident memory of the process", bytes);
    }
    let used_us = cpu_used_us();
    let name = "flotilla_process_cpu_seconds_total";
    let help = "CPU time used by the process";
    text.family(name, COUNTER, help, [(String::new(), format!("{}.{:06}", used_us / 1_000_000, used_us % 1_000_000))]);
}

/// CPU time that the process has used, in microseconds.
pub(super) fn cpu_used_us() -> u64 {
    let used = clock_gettime(ClockId::ProcessCPUTime);
    let (seconds, nanoseconds) = (u64::try_from(used.tv_sec).unwrap_or(0), u64::try_from(used.tv_nsec).unwrap_or(0));
    seconds * 1_000_000 + nanoseconds / 1_000
}

/// The resident memory of the process, in bytes. `None` without `/proc`.
fn resident_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

fn role_name(role: LocalRole) -> &'static str {
    match role {
        LocalRole::Leader => "leader",
        LocalRole::Follower => "follower",
        LocalRole::Candidate => "candidate",
        LocalRole::Learner => "learner",
        LocalRole::Quarantined => "quarantined",
        LocalRole::Stopped => "stopped",
    }
}

fn liveness_name(liveness: Liveness) -> &'static str {
    match liveness {
        Liveness::Alive => "alive",
        Liveness::Suspect => "suspect",
        Liveness::Down => "down",
        Liveness::Left => "left",
        Liveness::Unknown => "unknown",
    }
}

const GAUGE: &str = "gauge";
const COUNTER: &str = "counter";

/// A writer of the Prometheus text format. Labels are not escaped: no label contains a character that needs
/// it.
struct Text(String);

impl Text {
    /// One metric without labels.
    fn one(&mut self, name: &str, help: &str, value: impl Display) {
        self.family(name, GAUGE, help, [(String::new(), value)]);
    }

    /// All samples of one metric.
    fn family<V: Display>(
        &mut self,
        name: &str,
        kind: &str,
        help: &str,
        samples: impl IntoIterator<Item = (String, V)>,
    ) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (labels, value) in samples {
            let _ = match labels.as_str() {
                "" => writeln!(self.0, "{name} {value}"),
                labels => writeln!(self.0, "{name}{{{labels}}} {value}"),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> ClusterStatus {
        let text = r#"{"cluster_id":"00112233445566778899aabbccddeeff","node":2,"version":"0.1.0","started_ms":5000,
            "draining":false,"metadata_leader":null,"quorum":false,"health":{"ok":false,"reasons":["n1 is down"]},
            "nodes":[],"collections":[],"peers":[{"node":3,"addr":"h:1","state":"backoff"},{"node":5,"addr":"h:2","state":"connected","rtt_us":1500}],
            "shards":[{"id":4,"collection":"default","range":"bucket 0","leader":null,"replicas":[],
            "epoch":{"range":1,"config":2},"desired_replicas":3,"healthy":false,"local":{"replica":9,"role":"follower",
            "term":7,"commit":12,"applied":11,"checkpoint":3,"memtable_bytes":640,
            "followers":[{"replica":8,"node":5,"lag":7,"active":true,"in_snapshot":false}]},
            "operations":[{"id":"","kind":"receive_snapshot","phase":"fetching","reason":"","shard":4,"replica":9,
            "node":2,"reported_by":2,"since_ms":1500,"progress":{"objects":3,"objects_total":9,"bytes":70},
            "done":false,"error":null}]}],
            "available_shards":9,"replicated_shards":8,"shards_total":10,"failures_survivable":2}"#;
        serde_json::from_str(text).expect("a status")
    }

    #[test]
    fn series_of_replicas_and_peers_disappear_with_them() {
        let mut status = status();
        let shown = text(&status);
        for line in [
            r#"flotilla_replicas{role="follower"} 1"#,
            r#"flotilla_replicas{role="leader"} 0"#,
            r#"flotilla_shard_role{shard="s4",role="follower"} 1"#,
            r#"flotilla_shard_term{shard="s4"} 7"#,
            r#"flotilla_shard_commit_index{shard="s4"} 12"#,
            r#"flotilla_shard_applied_index{shard="s4"} 11"#,
            r#"flotilla_shard_checkpoint_index{shard="s4"} 3"#,
            r#"flotilla_shard_memtable_bytes{shard="s4"} 640"#,
            r#"flotilla_peer_state{peer="n3",state="backoff"} 1"#,
            r#"flotilla_transport_peer_up{peer="n3"} 0"#,
            r#"flotilla_transport_peer_up{peer="n5"} 1"#,
            r#"flotilla_transport_peer_rtt_seconds{peer="n5"} 0.0015"#,
            r#"flotilla_shard_replica_lag_entries{shard="s4",node="n5"} 7"#,
            r#"flotilla_shard_apply_lag_entries{shard="s4"} 1"#,
            r#"flotilla_operation_phase_start_seconds{kind="receive_snapshot",shard="s4",replica="r9",node="n2",phase="fetching"} 1.5"#,
            r#"flotilla_operation_objects{kind="receive_snapshot",shard="s4",replica="r9",node="n2"} 3"#,
            r#"flotilla_operation_objects_expected{kind="receive_snapshot",shard="s4",replica="r9",node="n2"} 9"#,
            r#"flotilla_operation_bytes{kind="receive_snapshot",shard="s4",replica="r9",node="n2"} 70"#,
            "flotilla_shards_leaderless 1",
            "flotilla_shards 10",
            "flotilla_shards_available 9",
            "flotilla_shards_fully_replicated 8",
            "flotilla_failures_survivable 2",
            "flotilla_metadata_quorum 0",
            "flotilla_start_time_seconds 5",
        ] {
            assert!(shown.lines().any(|found| found == line), "{line} is missing in\n{shown}");
        }
        status.shards.clear();
        status.peers.clear();
        let shown = text(&status);
        assert!(!["s4", "n3", "n5"].iter().any(|gone| shown.contains(gone)), "{shown}");
    }

    #[test]
    fn every_sample_follows_its_type_and_has_a_number() {
        let mut family = String::new();
        for line in text(&status()).lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                family = rest.split(' ').next().unwrap_or_default().to_owned();
            } else if !line.starts_with('#') {
                let (series, value) = line.rsplit_once(' ').expect("a value");
                assert_eq!(series.split('{').next(), Some(family.as_str()), "{line}");
                assert!(value.parse::<f64>().is_ok(), "{line}");
            }
        }
    }

    #[test]
    fn durations_are_histograms_with_buckets() {
        let recorder = builder().expect("buckets").build_recorder();
        metrics::with_local_recorder(&recorder, || metrics::histogram!("flotilla_test_seconds").record(0.000_2));
        let shown = recorder.handle().render();
        assert!(shown.contains(r#"flotilla_test_seconds_bucket{le="0.00025"} 1"#), "{shown}");
        metrics::with_local_recorder(&recorder, || metrics::histogram!("flotilla_value_batch_objects").record(3.0));
        let shown = recorder.handle().render();
        assert!(shown.contains(r#"flotilla_value_batch_objects_bucket{le="4"} 1"#), "{shown}");
        assert!(!shown.contains("quantile"), "{shown}");
    }
}
