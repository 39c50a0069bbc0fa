//! The end of a run: everything is put right, and then the cluster must be whole, alike and truthful within a bound.

use std::collections::{BTreeMap, BTreeSet};

use flotilla_meta::{MetaState, NodeState};
use flotilla_replication::{ReplicaStatus, Role};
use flotilla_storage::StateEngine as _;
use flotilla_types::{KeyRange, NodeId, ShardId};

use crate::world::World;

/// Clients finish what they do within this time: their longest deadline, and slack.
const REST_MS: u64 = 12_000;
/// A cluster that is put right is whole within this time.
const WHOLE_MS: u64 = 60_000;
/// Writes succeed again within this time.
const SERVE_MS: u64 = 20_000;
/// So many of them.
const SERVE_WRITES: usize = 20;
/// How long a resting cluster may take until all replicas have applied the same.
const ALIKE_MS: u64 = 20_000;

impl World {
    /// The replica that leads a shard in the highest term.
    pub(crate) fn leader(&self, shard: ShardId) -> Option<(NodeId, ReplicaStatus)> {
        let all = self.nodes.values().flat_map(|node| node.status().into_iter().map(|replica| (node.id, replica)));
        let led = all.filter(|(_, replica)| replica.shard == shard);
        let led = led.filter(|(_, replica)| replica.group.as_ref().is_some_and(|group| group.role == Role::Leader));
        led.max_by_key(|(_, replica)| replica.group.as_ref().map(|group| group.term))
    }

    /// Why the cluster is not whole, if it is not: every live node runs, knows the metadata, and holds what it should; every shard
    /// has its replicas, as intended, none of them more than `lag_max` entries behind.
    pub(crate) fn unsettled(&self, lag_max: u64) -> Option<String> {
        let Some((node, _)) = self.leader(ShardId::META) else { return Some("no metadata leader".to_owned()) };
        let Some(running) = self.nodes.get(&node).and_then(|node| node.running.as_ref()) else {
            return Some("no metadata".to_owned());
        };
        let meta = running.control.known.meta().clone();
        self.unsettled_node(&meta)
            .or_else(|| meta.shards().find_map(|record| self.unsettled_shard(&meta, record.id, lag_max)))
    }

    fn unsettled_node(&self, meta: &MetaState) -> Option<String> {
        for node in self.nodes.values() {
            let active = meta.node(node.id).is_some_and(|record| record.state == NodeState::Active);
            match &node.running {
                _ if node.retired && active => return Some(format!("{} is gone and still active", node.id)),
                _ if node.retired => {}
                None => return Some(format!("{} does not run", node.id)),
                Some(_) if !active => {}
                Some(_) if node.paused_until_us > self.now_us => return Some(format!("{} is paused", node.id)),
                Some(running) if running.control.known.meta().version() != meta.version() => {
                    return Some(format!("{} does not know the newest metadata", node.id));
                }
                Some(_) => {}
            }
        }
        None
    }

    fn unsettled_shard(&self, meta: &MetaState, shard: ShardId, lag_max: u64) -> Option<String> {
        let record = meta.shard(shard)?;
        let Some((_, leader)) = self.leader(shard) else { return Some(format!("{shard} has no leader")) };
        let Some(group) = &leader.group else { return Some(format!("{shard} has no group")) };
        let live = meta.nodes().filter(|node| node.state == NodeState::Active).count();
        // One, three or five: an even number would tolerate no more failures.
        let wanted = usize::from(record.replicas_desired.max(3)).min(if live < 3 { 1 } else { live });
        let intent: BTreeSet<_> = record.intent.iter().map(|held| held.replica).collect();
        let voters: BTreeSet<_> = group.conf.voters.iter().copied().collect();
        if group.conf.is_joint() || !group.conf.learners.is_empty() || voters != intent || voters.len() < wanted.min(3)
        {
            return Some(format!("{shard} is {:?}, and {intent:?} are wanted of {live} nodes", group.conf));
        }
        if record.descriptor.epoch != leader.descriptor.epoch {
            return Some(format!("{shard} was not reported"));
        }
        for node in self.nodes.values() {
            for replica in node.status().iter().filter(|replica| replica.shard == shard) {
                if !voters.contains(&replica.replica) {
                    return Some(format!("{} of {} is of no use and still there", replica.replica, node.id));
                }
            }
        }
        let held: Vec<_> = self.nodes.values().flat_map(crate::node::Node::status).collect();
        let behind = |voter: &&flotilla_types::ReplicaId| {
            let replica = held.iter().find(|replica| replica.replica == **voter);
            replica.is_none_or(|replica| replica.group.is_none() || replica.applied.0 + lag_max < group.commit.0)
        };
        voters.iter().find(behind).map(|voter| format!("{voter} of {shard} is behind"))
    }

    /// Puts everything right and sees whether the cluster recovers. Panics when it does not.
    pub(crate) fn finish(&mut self) {
        self.heal();
        self.workload.rest(true);
        let rests = self.run_until(REST_MS, |world| world.workload.is_at_rest());
        assert!(rests, "clients wait for answers beyond their deadlines\n{}", self.describe());
        self.go_on();
        let whole = self.run_until(WHOLE_MS, |world| world.operator.is_idle() && world.unsettled(64).is_none());
        assert!(
            whole,
            "not whole within {WHOLE_MS} ms: {}\n{}",
            self.unsettled(64).unwrap_or_else(|| "orders are open".to_owned()),
            self.describe()
        );
        let before = self.workload.acknowledged();
        let serves = self.run_until(SERVE_MS, |world| world.workload.acknowledged() >= before + SERVE_WRITES);
        assert!(serves, "no writes within {SERVE_MS} ms after everything was put right\n{}", self.describe());
        self.workload.rest(true);
        assert!(self.run_until(REST_MS, |world| world.workload.is_at_rest()), "clients wait\n{}", self.describe());
        let alike = self.run_until(ALIKE_MS, |world| world.unsettled(0).is_none());
        assert!(alike, "replicas do not catch up: {:?}\n{}", self.unsettled(0), self.describe());
        self.compare();
    }

    /// All replicas of a shard hold the same records.
    fn compare(&self) {
        let mut first: BTreeMap<ShardId, (flotilla_types::ReplicaId, Vec<(bytes::Bytes, bytes::Bytes)>)> =
            BTreeMap::new();
        for node in self.nodes.values().filter(|node| node.running.is_some()) {
            for replica in node.status() {
                let Ok(reader) = node.disk.reader(replica.replica) else {
                    panic!("{} of {} cannot be read", replica.replica, node.id)
                };
                let Ok(records) = reader.scan(&KeyRange::all(), usize::MAX, usize::MAX) else {
                    panic!("{} of {} cannot be scanned", replica.replica, node.id)
                };
                let (other, others) = first.entry(replica.shard).or_insert_with(|| (replica.replica, records.clone()));
                assert_eq!(*others, records, "{other} and {} of {} differ", replica.replica, replica.shard);
            }
        }
    }

    /// Every node's replicas at a glance.
    pub(crate) fn describe(&self) -> String {
        let mut lines = format!("at {} ms\n", self.now_ms());
        for node in self.nodes.values() {
            let state = match &node.running {
                Some(running) => format!("up, metadata version {}", running.control.known.meta().version()),
                None if node.retired => "gone".to_owned(),
                None => "down".to_owned(),
            };
            lines += &format!("{} {state} {}\n", node.id, node.incarnation);
            for replica in node.status() {
                let group = replica.group.map(|group| {
                    let followers = group.followers.iter().map(|follower| {
                        format!(
                            "{}@{}{}",
                            follower.replica,
                            follower.matched,
                            if follower.in_snapshot { "s" } else { "" }
                        )
                    });
                    let followers: Vec<_> = followers.collect();
                    format!(
                        "{:?} {} of {} commit {} last {} truncated {} voters {:?}/{:?} learners {:?} {followers:?}",
                        group.role,
                        group.term,
                        group.leader,
                        group.commit,
                        group.last,
                        group.truncated,
                        group.conf.voters,
                        group.conf.voters_outgoing,
                        group.conf.learners,
                    )
                });
                lines += &format!(
                    "  {} {} applied {} checkpoint {} {}\n",
                    replica.shard,
                    replica.replica,
                    replica.applied,
                    replica.checkpoint,
                    group.as_deref().unwrap_or("no group")
                );
            }
        }
        lines
    }
}
