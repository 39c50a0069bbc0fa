//! Shards as this node sees them: from the metadata, its own replicas, leader hints and membership.
//!
//! The work of one view is linear in shards and replicas; nothing here runs per tick.

use std::collections::BTreeMap;

use bytes::Bytes;
use flotilla_api::{FollowerInfo, LocalReplica, LocalRole, ReplicaInfo, ShardInfo};
use flotilla_control::MemberState;
use flotilla_meta::{MetaState, NodeState as RecordState, ShardRecord};
use flotilla_placement::{Collection, Sharding};
use flotilla_replication::{GroupStatus, ReplicaStatus, Replicas, Role};
use flotilla_types::{KeyRange, NodeId, RecordKey, ReplicaId, ReplicaRole, ShardDescriptor, ShardId};

use super::health::{Leadership, ShardFacts, Voter};

/// Bytes of a key that are shown.
const KEY_BYTES_SHOWN_MAX: usize = 32;

/// What this node knows, arranged for one pass over the shards.
pub(super) struct ShardView<'a> {
    me: NodeId,
    meta: &'a MetaState,
    nodes: BTreeMap<NodeId, NodeFacts>,
    /// The replicas on this node, in the order in which the host reports them: the newest of a shard last.
    here: BTreeMap<ShardId, Vec<&'a ReplicaStatus>>,
}

#[derive(Debug, Clone, Copy)]
struct NodeFacts {
    is_live: bool,
    keeps_replicas: bool,
}

impl<'a> ShardView<'a> {
    pub(super) fn new(
        me: NodeId,
        meta: &'a MetaState,
        replicas: &'a Replicas,
        liveness: impl Fn(NodeId) -> MemberState,
    ) -> Self {
        // Membership keeps the last state of a node that is gone; no peer talks to it any more.
        let facts = |state: RecordState, id| NodeFacts {
            is_live: !state.is_gone() && liveness(id) == MemberState::Alive,
            keeps_replicas: matches!(state, RecordState::Active | RecordState::Draining),
        };
        let nodes = meta.nodes().map(|node| (node.id, facts(node.state, node.id))).collect();
        let mut here = BTreeMap::<ShardId, Vec<&ReplicaStatus>>::new();
        for replica in replicas.iter() {
            here.entry(replica.shard).or_default().push(replica);
        }
        Self { me, meta, nodes, here }
    }

    /// All shards, in the order of their ids.
    pub(super) fn shards(&self, hint: impl Fn(ShardId) -> Option<NodeId>) -> Vec<ShardInfo> {
        self.meta.shards().map(|record| self.shard(record, hint(record.id))).collect()
    }

    /// A shard whose leader is `hint`, unless a replica here knows better.
    fn shard(&self, record: &ShardRecord, hint: Option<NodeId>) -> ShardInfo {
        let replicas = self.here.get(&record.id).map_or(&[][..], Vec::as_slice);
        let local = replicas.last().copied();
        // The local replica's descriptor can be newer than the one that its leader reported to the metadata
        // group.
        let own = local.filter(|replica| replica.descriptor.epoch >= record.descriptor.epoch);
        let descriptor = own.map_or(&record.descriptor, |replica| &replica.descriptor);
        let (leader, leadership) = self.leader(descriptor, replicas, hint);
        let facts = ShardFacts {
            leadership,
            halves: self.halves(descriptor, own.and_then(|replica| replica.group.as_ref()), replicas),
            desired: self.meta.replicas_desired(record).into(),
        };
        let health = facts.judge();
        let collection = self.meta.collection_with_id(record.collection);
        ShardInfo {
            id: record.id,
            collection: collection.map(|collection| collection.name.clone()),
            range: range_of(&descriptor.range, collection),
            leader,
            replicas: descriptor
                .replicas
                .iter()
                .map(|held| ReplicaInfo { replica: held.replica, node: held.node, role: held.role })
                .collect(),
            epoch: descriptor.epoch,
            desired_replicas: self.meta.replicas_desired(record),
            healthy: health.is_available && health.is_fully_replicated,
            available: health.is_available,
            fully_replicated: health.is_fully_replicated,
            failures_survivable: health.failures_survivable as u32,
            operations: Vec::new(),
            local: local.map(local_replica),
        }
    }

    /// The leader: by this node's own vote if it has one in the shard, else by the hint. A learner or a
    /// replica that was removed may remember a leader without end, so it does not count.
    fn leader(
        &self,
        descriptor: &ShardDescriptor,
        replicas: &[&ReplicaStatus],
        hint: Option<NodeId>,
    ) -> (Option<NodeId>, Leadership) {
        let voting = replicas.iter().find_map(|replica| {
            let group = replica.group.as_ref().filter(|group| group.conf.is_voter(replica.replica))?;
            descriptor.node_of(replica.replica).map(|_| replica.descriptor.node_of(group.leader))
        });
        match voting {
            Some(None) => (None, Leadership::Unknown),
            Some(leader) => (leader, Leadership::Confirmed),
            None => {
                let reported = |node| Leadership::Reported { is_live: self.node(node).is_live };
                (hint, hint.map_or(Leadership::Unknown, reported))
            }
        }
    }

    /// The voters of the shard's own configuration.
    fn halves(
        &self,
        descriptor: &ShardDescriptor,
        group: Option<&GroupStatus>,
        replicas: &[&ReplicaStatus],
    ) -> Vec<Vec<Voter>> {
        let voters = |ids: &mut dyn Iterator<Item = ReplicaId>| {
            ids.map(|id| self.voter(descriptor, id, replicas)).collect::<Vec<_>>()
        };
        let described = descriptor.replicas.iter().filter(|replica| replica.role == ReplicaRole::Voter);
        match group.map(|group| &group.conf) {
            None => vec![voters(&mut described.map(|replica| replica.replica))],
            Some(conf) if conf.is_joint() => {
                vec![voters(&mut conf.voters.iter().copied()), voters(&mut conf.voters_outgoing.iter().copied())]
            }
            Some(conf) => vec![voters(&mut conf.voters.iter().copied())],
        }
    }

    fn voter(&self, descriptor: &ShardDescriptor, id: ReplicaId, replicas: &[&ReplicaStatus]) -> Voter {
        let Some(node) = descriptor.node_of(id) else {
            return Voter { is_live: false, is_on_lasting_node: false };
        };
        let facts = self.node(node);
        // A node that has a newer replica of the shard gave this one up.
        let is_newest = descriptor.replica_on(node).is_some_and(|newest| newest.replica == id);
        // Of its own replicas this node knows whether they take part.
        let takes_part =
            node != self.me || replicas.iter().any(|replica| replica.replica == id && replica.group.is_some());
        Voter { is_live: facts.is_live && is_newest && takes_part, is_on_lasting_node: facts.keeps_replicas }
    }

    /// A node that the metadata does not know is gone.
    fn node(&self, node: NodeId) -> NodeFacts {
        self.nodes.get(&node).copied().unwrap_or(NodeFacts { is_live: false, keeps_replicas: false })
    }
}

/// The keys of a shard, in words.
fn range_of(range: &KeyRange, collection: Option<&Collection>) -> String {
    let Some(collection) = collection else { return "metadata".to_owned() };
    let key = |bytes: &Bytes| RecordKey::from_bytes(bytes.clone()).filter(|key| key.collection() == collection.id);
    let start = key(&range.start).map_or((0, Bytes::new()), |key| (key.bucket().0, key.user_key()));
    let end = key(&range.end).map_or((collection.buckets, Bytes::new()), |key| (key.bucket().0, key.user_key()));
    if collection.sharding == Sharding::Range {
        let end_key = Some(&end.1).filter(|_| end.0 == 0);
        return match (start.1.is_empty(), end_key) {
            (true, None) => "all keys".to_owned(),
            (true, Some(end)) => format!("keys before {}", shown(end)),
            (false, None) => format!("keys from {}", shown(&start.1)),
            (false, Some(end)) => format!("keys from {} to before {}", shown(&start.1), shown(end)),
        };
    }
    if start.1.is_empty() && end.1.is_empty() {
        let (first, last) = (start.0, end.0.saturating_sub(1));
        return if last > first { format!("buckets {first}–{last}") } else { format!("bucket {first}") };
    }
    let bound = |(bucket, key): (u16, Bytes)| match &key[..] {
        [] => format!("bucket {bucket}"),
        key => format!("{} of bucket {bucket}", shown(key)),
    };
    format!("from {} to before {}", bound(start), bound(end))
}

/// The beginning of a key, so that every terminal shows it and obeys nothing in it.
fn shown(key: &[u8]) -> String {
    match key.get(..KEY_BYTES_SHOWN_MAX) {
        Some(first) if first.len() < key.len() => format!("\"{}…\"", first.escape_ascii()),
        _ => format!("\"{}\"", key.escape_ascii()),
    }
}

fn local_replica(replica: &ReplicaStatus) -> LocalReplica {
    let group = replica.group.as_ref();
    LocalReplica {
        replica: replica.replica,
        role: match group {
            None => LocalRole::Quarantined,
            Some(group) if group.role == Role::Leader => LocalRole::Leader,
            Some(group) if group.role == Role::Candidate => LocalRole::Candidate,
            Some(group) if group.conf.is_voter(replica.replica) => LocalRole::Follower,
            Some(_) => LocalRole::Learner,
        },
        term: group.map_or(0, |group| group.term.0),
        commit: group.map_or(0, |group| group.commit.0),
        applied: replica.applied.0,
        checkpoint: replica.checkpoint.0,
        log_bytes: None,
        memtable_bytes: (replica.usage.active_bytes + replica.usage.frozen_bytes) as u64,
        followers: group
            .filter(|group| group.role == Role::Leader)
            .map_or_else(Vec::new, |group| followers(replica, group)),
    }
}

/// How far the replicas are that follow the one here.
fn followers(leader: &ReplicaStatus, group: &GroupStatus) -> Vec<FollowerInfo> {
    let followers = group.followers.iter().filter(|follower| follower.replica != leader.replica);
    followers
        .filter_map(|follower| {
            Some(FollowerInfo {
                replica: follower.replica,
                node: leader.descriptor.node_of(follower.replica)?,
                lag: group.commit.0.saturating_sub(follower.matched.0),
                active: follower.recently_active,
                in_snapshot: follower.in_snapshot,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests;
