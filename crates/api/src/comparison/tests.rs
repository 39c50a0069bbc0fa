//! Tests of the verdicts: by example, and against what the replicas truly hold.

use std::collections::BTreeSet;

use proptest::{collection::vec, prelude::*};
use serde_json::json;

use super::*;

const SHARD: ShardId = ShardId(7);

/// A status of a node that knows one shard with a voter on each of these nodes. Replica 10·n is on node n.
fn status(node: u64, config: u64, voters: &[u64]) -> ClusterStatus {
    let replicas: Vec<_> =
        voters.iter().map(|node| json!({ "replica": node * 10, "node": node, "role": "voter" })).collect();
    serde_json::from_value(json!({
        "cluster_id": "00".repeat(16), "node": node, "version": "0", "started_ms": 0, "draining": false,
        "metadata_leader": null, "quorum": true, "health": { "ok": true, "reasons": [] }, "nodes": [],
        "collections": [], "peers": [],
        "shards": [{
            "id": SHARD, "collection": "default", "range": "", "leader": 1, "replicas": replicas,
            "epoch": { "range": 1, "config": config }, "desired_replicas": 3, "healthy": true,
        }],
    }))
    .expect("a status")
}

fn list(node: u64, applied: u64, digest: &str) -> DigestList {
    let held = RecordsDigest { applied, records: 1, digest: digest.to_owned() };
    let replica = ReplicaDigest { shard: SHARD, replica: ReplicaId(node * 10), held: Some(held), reason: None };
    DigestList { node: NodeId(node), replicas: vec![replica] }
}

fn unread(node: u64, reason: &str) -> DigestList {
    let reason = Some(reason.to_owned());
    let replica = ReplicaDigest { shard: SHARD, replica: ReplicaId(node * 10), held: None, reason };
    DigestList { node: NodeId(node), replicas: vec![replica] }
}

/// Adds what each node holds: number, applied entry, digest.
fn add(comparison: &mut DigestComparison, held: &[(u64, u64, &str)]) {
    for (node, applied, digest) in held {
        let endpoint = format!("h{node}");
        comparison.add(&endpoint, &status(*node, 1, &[1, 2, 3]), list(*node, *applied, digest));
    }
}

fn of(held: &[(u64, u64, &str)]) -> DigestComparison {
    let mut comparison = DigestComparison::default();
    add(&mut comparison, held);
    comparison
}

#[test]
fn all_voters_at_one_entry_are_equal_or_different() {
    let equal = of(&[(1, 5, "aa"), (2, 5, "aa"), (3, 5, "aa")]);
    assert_eq!((equal.report().verdict, equal.report().shards[0].applied), (Verdict::Equal, Some(5)));
    assert_eq!((equal.report().reasons, equal.undecided()), (Vec::new(), Vec::new()));
    let different = of(&[(1, 5, "aa"), (2, 6, "bb"), (3, 6, "cc")]).report();
    assert_eq!((different.verdict, different.shards[0].applied), (Verdict::Different, Some(6)));
    assert_eq!(different.reasons, ["s7: n2 and n3 differ after entry 6"]);
}

#[test]
fn nothing_compared_is_not_a_pass() {
    let moving = of(&[(1, 5, "aa"), (2, 6, "bb"), (3, 7, "cc")]);
    assert_eq!(moving.report().verdict, Verdict::Inconclusive);
    assert_eq!(moving.report().reasons, ["s7: read at different entries: n1 at 5, n2 at 6, n3 at 7"]);
    assert_eq!(moving.undecided(), [SHARD], "another round may decide it");
    let two = of(&[(1, 5, "aa"), (2, 5, "aa")]);
    assert_eq!(two.report().reasons, ["s7: n3 was not asked or did not answer"]);
    assert_eq!((two.report().verdict, two.undecided()), (Verdict::Inconclusive, Vec::new()));
    let empty = DigestComparison::default();
    assert_eq!(empty.report().reasons, ["no node reported a shard"]);
    assert_eq!(empty.report().verdict, Verdict::Inconclusive);
}

#[test]
fn a_single_replica_is_inconclusive() {
    let mut comparison = DigestComparison::default();
    comparison.add("h1", &status(1, 1, &[1]), list(1, 5, "aa"));
    assert_eq!(comparison.report().verdict, Verdict::Inconclusive);
    assert!(comparison.report().reasons[0].contains("one replica"), "{:?}", comparison.report().reasons);
    assert_eq!(comparison.undecided(), Vec::new(), "no further round can decide it");
}

#[test]
fn a_node_that_does_not_answer_or_cannot_read_prevents_a_pass() {
    let mut silent = of(&[(1, 5, "aa"), (2, 5, "aa"), (3, 5, "aa")]);
    silent.add_silent("h4", "connection refused");
    assert_eq!(silent.report().shards[0].verdict, Verdict::Equal);
    assert_eq!(silent.report().verdict, Verdict::Inconclusive);
    assert_eq!(silent.report().reasons, ["h4 did not answer: connection refused"]);
    let mut busy = of(&[(1, 5, "aa"), (2, 5, "aa")]);
    busy.add("h3", &status(3, 1, &[1, 2, 3]), unread(3, "it applies writes"));
    assert_eq!(busy.report().reasons, ["s7: n3: it applies writes"]);
    assert_eq!(busy.undecided(), [SHARD]);
    let mut quarantined = status(3, 1, &[1, 2, 3]);
    quarantined.shards[0].local =
        serde_json::from_value(json!({ "replica": 30, "role": "quarantined", "term": 1, "commit": 5, "applied": 5,
            "checkpoint": 1, "memtable_bytes": 0 }))
        .expect("a replica");
    busy.add("h3", &quarantined, list(3, 5, "aa"));
    assert_eq!(busy.report().verdict, Verdict::Inconclusive, "a quarantined replica does not count");
}

#[test]
fn later_rounds_complete_earlier_ones() {
    let mut comparison = of(&[(1, 5, "aa"), (2, 6, "bb"), (3, 5, "aa")]);
    add(&mut comparison, &[(1, 7, "cc"), (2, 7, "cc"), (3, 6, "bb")]);
    assert_eq!(comparison.report().verdict, Verdict::Inconclusive);
    add(&mut comparison, &[(1, 8, "dd"), (2, 8, "dd"), (3, 7, "cc")]);
    assert_eq!((comparison.report().verdict, comparison.report().shards[0].applied), (Verdict::Equal, Some(7)));
    add(&mut comparison, &[(3, 8, "xx")]);
    assert_eq!(comparison.report().verdict, Verdict::Different, "a difference overrides");
    add(&mut comparison, &[(1, 9, "ee"), (2, 9, "ee"), (3, 9, "ee")]);
    assert_eq!(comparison.report().verdict, Verdict::Different, "and stays");
}

#[test]
fn the_newest_epoch_names_the_voters() {
    let mut comparison = DigestComparison::default();
    comparison.add("h1", &status(1, 2, &[1, 2, 4]), list(1, 5, "aa"));
    comparison.add("h2", &status(2, 1, &[1, 2, 3]), list(2, 5, "aa"));
    comparison.add("h3", &status(3, 1, &[1, 2, 3]), list(3, 5, "aa"));
    assert_eq!(comparison.report().reasons, ["s7: n4 was not asked or did not answer"]);
    comparison.add("h4", &status(4, 2, &[1, 2, 4]), list(4, 5, "aa"));
    assert_eq!(comparison.report().verdict, Verdict::Equal);
}

#[test]
fn a_report_is_bounded_and_kept_entries_are_too() {
    let mut comparison = of(&[]);
    for applied in 0..1_000 {
        add(&mut comparison, &[(1, applied, "aa")]);
    }
    assert_eq!(comparison.seen[&SHARD].len(), ENTRIES_MAX);
    for i in 0..1_000 {
        comparison.add_silent(&format!("x{i}"), "down");
    }
    assert!(comparison.report().reasons.len() <= 4 * SHOWN_MAX);
}

proptest! {
    /// Replicas hold `d{entry}`; replica `damaged` holds something else from entry `from` on.
    #[test]
    fn a_verdict_is_never_stronger_than_what_was_read(
        reads in vec((1_u64..=3, 0_u64..6), 0..24),
        damaged in 1_u64..=3,
        from in 0_u64..12,
    ) {
        let mut comparison = DigestComparison::default();
        let mut read: BTreeMap<u64, BTreeSet<u64>> = BTreeMap::new();
        for (node, applied) in reads {
            let digest = if node == damaged && applied >= from { "damaged".to_owned() } else { format!("d{applied}") };
            add(&mut comparison, &[(node, applied, &digest)]);
            read.entry(applied).or_default().insert(node);
        }
        let report = comparison.report();
        let differs = read.iter().any(|(entry, nodes)| *entry >= from && nodes.contains(&damaged) && nodes.len() > 1);
        let all_at_one = read.values().any(|nodes| nodes.len() == 3);
        let expected = match (differs, all_at_one) {
            (true, _) => Verdict::Different,
            (false, true) => Verdict::Equal,
            (false, false) => Verdict::Inconclusive,
        };
        prop_assert_eq!(report.verdict, expected);
        prop_assert_eq!(report.verdict == Verdict::Equal, report.reasons.is_empty());
    }
}
