//! What changes the shards that are led here, since when and how far it is: for operators. It decides nothing.
//!
//! A leader derives it from its status and the intent in a pass that looks at every shard that changes anyway;
//! only those take memory. `since` begins anew with another leader.

use std::collections::BTreeMap;

use bytes::Bytes;
use flotilla_placement::PlanReplica;
use flotilla_replication::{GroupStatus, IncomingSnapshot, ReplicaStatus};
use flotilla_types::{NodeId, OperationKind, OperationPhase, ReplicaId, ReplicaRole, ShardId};
use flotilla_wire::{WireError, decode, encode, peer};

use super::step::is_caught_up;

/// Operations that a node reports, at most; of the others only the number.
pub const OPERATIONS_MAX: usize = 1_024;

/// A change of a shard that is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operation {
    /// The shard.
    pub shard: ShardId,
    /// What is done.
    pub kind: OperationKind,
    /// How far it is.
    pub phase: OperationPhase,
    /// The replica that is added, removed, becomes the leader, or receives a snapshot. The leader itself
    /// while no other can take its leadership.
    pub replica: ReplicaId,
    /// The node of that replica.
    pub node: NodeId,
    /// When this phase was first seen, in Unix milliseconds.
    pub since_ms: u64,
    /// Committed entries that the replica is not known to have.
    pub lag: Option<u64>,
    /// Of a snapshot: its objects that are here, all its objects, and the bytes that were fetched.
    pub fetched: Option<Fetched>,
}

/// How much of a snapshot is here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Fetched {
    /// Objects of the snapshot that are here.
    pub objects: u64,
    /// All objects of the snapshot.
    pub objects_total: u64,
    /// Objects among those here that were fetched: the others were here before.
    pub objects_fetched: u64,
    /// Bytes of what was fetched.
    pub bytes: u64,
}

/// The operations of one node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Operations {
    /// At most [`OPERATIONS_MAX`].
    pub operations: Vec<Operation>,
    /// The number of those beyond.
    pub more: u64,
}

impl Operations {
    fn push(&mut self, operation: Operation) {
        if self.operations.len() < OPERATIONS_MAX {
            self.operations.push(operation);
        } else {
            self.more += 1;
        }
    }

    /// With the snapshots that replicas here receive.
    #[must_use]
    pub fn with_snapshots(mut self, snapshots: impl IntoIterator<Item = IncomingSnapshot>, me: NodeId) -> Self {
        for snapshot in snapshots {
            self.push(Operation {
                shard: snapshot.shard,
                kind: OperationKind::ReceiveSnapshot,
                phase: if snapshot.fetches { OperationPhase::Fetching } else { OperationPhase::Waiting },
                replica: snapshot.replica,
                node: me,
                since_ms: snapshot.since_ms,
                lag: None,
                fetched: Some(Fetched {
                    objects: snapshot.objects,
                    objects_total: snapshot.objects_total,
                    objects_fetched: snapshot.objects_fetched,
                    bytes: snapshot.bytes,
                }),
            });
        }
        self
    }

    /// As bytes, for a peer.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let operations = self.operations.iter().map(|operation| encode(&to_wire(operation))).collect();
        encode(&peer::Operations { operations, more: self.more })
    }

    /// The output of [`Operations::encode`]. Leaves out operations of kinds and phases that this version does
    /// not know, and those beyond the bound.
    ///
    /// # Errors
    /// The bytes are something else.
    pub fn decode(bytes: Bytes) -> Result<Self, WireError> {
        let answer: peer::Operations = decode(bytes)?;
        let mut decoded = Self { operations: Vec::new(), more: answer.more };
        for bytes in answer.operations.into_iter().take(OPERATIONS_MAX) {
            match from_wire(&decode(bytes)?) {
                Some(operation) => decoded.operations.push(operation),
                None => decoded.more = decoded.more.saturating_add(1),
            }
        }
        Ok(decoded)
    }
}

fn to_wire(operation: &Operation) -> peer::Operation {
    let fetched = operation.fetched.unwrap_or_default();
    peer::Operation {
        shard: operation.shard.0,
        kind: operation.kind as u32,
        phase: operation.phase as u32,
        replica: operation.replica.0,
        node: operation.node.0,
        since_ms: operation.since_ms,
        lag_plus_one: operation.lag.map_or(0, |lag| lag.saturating_add(1)),
        objects: fetched.objects,
        objects_total: fetched.objects_total,
        objects_fetched: fetched.objects_fetched,
        bytes: fetched.bytes,
    }
}

fn from_wire(operation: &peer::Operation) -> Option<Operation> {
    let kind = *OperationKind::ALL.get(usize::try_from(operation.kind).ok()?)?;
    let fetched = Fetched {
        objects: operation.objects,
        objects_total: operation.objects_total,
        objects_fetched: operation.objects_fetched,
        bytes: operation.bytes,
    };
    Some(Operation {
        shard: ShardId(operation.shard),
        kind,
        phase: *OperationPhase::ALL.get(usize::try_from(operation.phase).ok()?)?,
        replica: ReplicaId(operation.replica),
        node: NodeId(operation.node),
        since_ms: operation.since_ms,
        lag: operation.lag_plus_one.checked_sub(1),
        fetched: (kind == OperationKind::ReceiveSnapshot).then_some(fetched),
    })
}

/// The operations of the shards that are led here.
#[derive(Debug, Default)]
pub(super) struct Tracker {
    /// Of each shard that changes.
    changing: BTreeMap<ShardId, Vec<Operation>>,
    shown: Operations,
}

impl Tracker {
    /// Takes what changes a shard that is led here, and returns whether anything does. `gives_up` if its leader
    /// is to lead nothing.
    pub(super) fn observe(
        &mut self,
        leader: &ReplicaStatus,
        group: &GroupStatus,
        intent: &[PlanReplica],
        gives_up: bool,
        wall_ms: u64,
    ) -> bool {
        let shard = leader.shard;
        let before = self.changing.remove(&shard).unwrap_or_default();
        let mut operations = Vec::new();
        each_change(leader, group, intent, gives_up, |kind, phase, replica, node| {
            let is_same = |known: &&Operation| (known.kind, known.phase, known.replica) == (kind, phase, replica);
            let known = before.iter().find(is_same);
            let follower = group.followers.iter().find(|follower| follower.replica == replica);
            operations.push(Operation {
                shard,
                kind,
                phase,
                replica,
                node,
                since_ms: known.map_or(wall_ms, |known| known.since_ms),
                lag: follower.map(|follower| group.commit.0.saturating_sub(follower.matched.0)),
                fetched: None,
            });
        });
        let changes = !operations.is_empty();
        if changes {
            self.changing.insert(shard, operations);
        }
        changes
    }

    /// Forgets a shard that is not led here any more.
    pub(super) fn forget(&mut self, shard: ShardId) {
        self.changing.remove(&shard);
    }

    /// Ends a pass.
    pub(super) fn finish(&mut self) {
        self.shown = Operations::default();
        self.changing.values().flatten().for_each(|operation| self.shown.push(*operation));
    }

    pub(super) fn shown(&self) -> &Operations {
        &self.shown
    }
}

/// What changes one shard, as its leader sees it.
fn each_change(
    leader: &ReplicaStatus,
    group: &GroupStatus,
    intent: &[PlanReplica],
    gives_up: bool,
    mut change: impl FnMut(OperationKind, OperationPhase, ReplicaId, NodeId),
) {
    use OperationKind::{AddReplica, RemoveReplica, TransferLeader};
    use OperationPhase as Phase;
    let conf = &group.conf;
    for wanted in intent {
        let votes = conf.voters.contains(&wanted.replica);
        let follower = group.followers.iter().find(|follower| follower.replica == wanted.replica);
        let phase = match follower {
            _ if votes && (!conf.is_joint() || conf.voters_outgoing.contains(&wanted.replica)) => continue,
            _ if votes => Phase::Promoting,
            _ if !conf.contains(wanted.replica) => Phase::Waiting,
            Some(follower) if follower.in_snapshot => Phase::ReceivingSnapshot,
            _ if is_caught_up(group, wanted.replica) => Phase::CaughtUp,
            _ => Phase::CatchingUp,
        };
        change(AddReplica, phase, wanted.replica, wanted.node);
    }
    let is_wanted = |replica| intent.iter().any(|wanted| wanted.replica == replica);
    // Without an intent nothing changes.
    for held in leader.descriptor.replicas.iter().filter(|held| !intent.is_empty() && !is_wanted(held.replica)) {
        let phase = match held.role {
            _ if conf.is_joint() && conf.voters_outgoing.contains(&held.replica) => Phase::Demoting,
            ReplicaRole::Voter => Phase::Waiting,
            ReplicaRole::Learner => Phase::Removing,
        };
        change(RemoveReplica, phase, held.replica, held.node);
    }
    if let Some(to) = group.transfers_to {
        let node = leader.descriptor.node_of(to).unwrap_or(NodeId::NONE);
        change(TransferLeader, Phase::Transferring, to, node);
    } else if gives_up && conf.voters.len() > 1 {
        let node = leader.descriptor.node_of(leader.replica).unwrap_or(NodeId::NONE);
        change(TransferLeader, Phase::Waiting, leader.replica, node);
    }
}

#[cfg(test)]
mod tests {
    use flotilla_hostile::{Proportion, attack, mutated};
    use flotilla_meta::NodeState;
    use proptest::strategy::Just;

    use super::*;
    use crate::core::{
        ShardsLed,
        testing::{Meta, World, leads},
    };

    /// The operations that the reconciler shows after a pass: shard, kind, phase, replica and node.
    fn shown(led: &ShardsLed) -> Vec<(OperationKind, OperationPhase, u64, u64)> {
        let operations = &led.operations().operations;
        operations.iter().map(|found| (found.kind, found.phase, found.replica.0, found.node.0)).collect()
    }

    #[test]
    fn a_replica_is_shown_from_its_assignment_to_its_vote_with_the_start_of_each_phase() {
        use OperationKind::AddReplica;
        use OperationPhase as Phase;
        let mut meta = Meta::of_nodes(2);
        meta.assign(ShardId::META, 2);
        let mut world = World::new(1, meta);
        let mut led = ShardsLed::default();
        let add = |phase| vec![(AddReplica, phase, 2, 2)];
        let mut step = |world: &mut World, replica: ReplicaStatus| {
            world.wall_ms += 10;
            world.replicas = vec![replica];
            world.reconcile(&mut led);
            (shown(&led), led.operations().operations.first().map(|found| (found.since_ms, found.lag)))
        };
        let began = world.wall_ms;
        assert_eq!(step(&mut world, leads(0, &[(1, 1)], &[])), (add(Phase::Waiting), Some((began + 10, None))));
        let mut learner = leads(0, &[(1, 1)], &[(2, 2)]);
        let follower = |learner: &mut ReplicaStatus, matched, in_snapshot| {
            let group = learner.group.as_mut().expect("a leader");
            let follower = group.followers.iter_mut().find(|follower| follower.replica == ReplicaId(2));
            let follower = follower.expect("a follower");
            (follower.matched, follower.in_snapshot) = (flotilla_types::LogIndex(matched), in_snapshot);
        };
        follower(&mut learner, 0, true);
        let receiving = step(&mut world, learner.clone());
        assert_eq!(receiving, (add(Phase::ReceivingSnapshot), Some((began + 20, Some(10_000)))));
        follower(&mut learner, 100, false);
        assert_eq!(step(&mut world, learner.clone()), (add(Phase::CatchingUp), Some((began + 30, Some(9_900)))));
        follower(&mut learner, 200, false);
        assert_eq!(
            step(&mut world, learner.clone()),
            (add(Phase::CatchingUp), Some((began + 30, Some(9_800)))),
            "the same phase goes on"
        );
        follower(&mut learner, 9_990, false);
        assert_eq!(step(&mut world, learner.clone()), (add(Phase::CaughtUp), Some((began + 50, Some(10)))));
        let mut joint = leads(0, &[(1, 1), (2, 2)], &[]);
        joint.group.as_mut().expect("a leader").conf.voters_outgoing = vec![ReplicaId(1)];
        assert_eq!(step(&mut world, joint).0, add(Phase::Promoting));
        assert_eq!(step(&mut world, leads(0, &[(1, 1), (2, 2)], &[])), (vec![], None));
    }

    #[test]
    fn a_replica_that_is_not_wanted_is_shown_until_it_is_gone() {
        use OperationKind::{AddReplica, RemoveReplica};
        use OperationPhase as Phase;
        let mut meta = Meta::of_nodes(4);
        let shard = meta.collection(&[&[1, 2, 3]])[0];
        let before = meta.state().shard(shard).expect("a shard").intent.clone();
        meta.unassign(shard, 3);
        meta.assign(shard, 4);
        let new = meta.state().shard(shard).expect("a shard").desired_on(NodeId(4)).expect("a replica").0;
        let held = |index: usize| (before[index].node.0, before[index].replica.0);
        let old = held(2).1;
        let mut world = World::new(1, meta);
        let mut led = ShardsLed::default();
        let mut step = |replica: ReplicaStatus| {
            world.replicas = vec![replica];
            world.reconcile(&mut led);
            shown(&led)
        };
        let all = [held(0), held(1), held(2)];
        let waits = (RemoveReplica, Phase::Waiting, old, 3);
        assert_eq!(step(leads(shard.0, &all, &[])), [(AddReplica, Phase::Waiting, new, 4), waits]);
        let mut joint = leads(shard.0, &[held(0), held(1), (4, new), held(2)], &[]);
        let conf = &mut joint.group.as_mut().expect("a leader").conf;
        conf.voters.retain(|voter| voter.0 != old);
        conf.voters_outgoing = all.map(|(_, id)| ReplicaId(id)).to_vec();
        assert_eq!(step(joint), [(AddReplica, Phase::Promoting, new, 4), (RemoveReplica, Phase::Demoting, old, 3)]);
        let swapped = leads(shard.0, &[held(0), held(1), (4, new)], &[held(2)]);
        assert_eq!(step(swapped), [(RemoveReplica, Phase::Removing, old, 3)]);
        assert_eq!(step(leads(shard.0, &[held(0), held(1), (4, new)], &[])), []);
    }

    #[test]
    fn leaderships_of_a_node_that_drains_are_shown_until_they_have_moved() {
        use OperationKind::TransferLeader;
        let mut meta = Meta::of_nodes(3);
        let shard = meta.collection(&[&[1, 2, 3]])[0];
        let intent = meta.state().shard(shard).expect("a shard").intent.clone();
        let held = [0, 1, 2].map(|index: usize| (intent[index].node.0, intent[index].replica.0));
        meta.raise();
        meta.set_state(1, NodeState::Draining);
        let mut world = World::new(1, meta);
        let mut led = ShardsLed::default();
        world.replicas = vec![leads(shard.0, &held, &[])];
        world.reconcile(&mut led);
        assert_eq!(shown(&led), [(TransferLeader, OperationPhase::Waiting, held[0].1, 1)]);
        world.replicas[0].group.as_mut().expect("a leader").transfers_to = Some(ReplicaId(held[1].1));
        world.reconcile(&mut led);
        assert_eq!(shown(&led), [(TransferLeader, OperationPhase::Transferring, held[1].1, 2)]);
        world.replicas.clear();
        world.reconcile(&mut led);
        assert_eq!(shown(&led), []);
    }

    fn operation(shard: u64) -> Operation {
        Operation {
            shard: ShardId(shard),
            kind: OperationKind::ReceiveSnapshot,
            phase: OperationPhase::Fetching,
            replica: ReplicaId(7),
            node: NodeId(3),
            since_ms: 9,
            lag: Some(0),
            fetched: Some(Fetched { objects: 1, objects_total: 2, objects_fetched: 1, bytes: 3 }),
        }
    }

    #[test]
    fn reports_survive_the_wire_within_their_bound_and_unknown_kinds_are_only_counted() {
        let mut report = Operations::default();
        (0..OPERATIONS_MAX as u64 + 5).for_each(|shard| report.push(operation(shard)));
        assert_eq!((report.operations.len(), report.more), (OPERATIONS_MAX, 5));
        assert_eq!(Operations::decode(report.encode()).expect("a report"), report);
        let later = peer::Operation { kind: 99, ..to_wire(&operation(1)) };
        let flood = peer::Operations { operations: vec![encode(&later); OPERATIONS_MAX + 9], more: u64::MAX };
        let decoded = Operations::decode(encode(&flood)).expect("a report");
        assert_eq!(decoded, Operations { operations: vec![], more: u64::MAX });
    }

    #[test]
    fn a_damaged_report_is_an_error_or_a_report() {
        let valid = Operations { operations: vec![operation(1), operation(2)], more: 1 }.encode();
        attack(1_000, mutated(Just(valid)), |bytes| {
            let length = bytes.len();
            if let Ok(report) = Proportion::DEFAULT.of(length, || Operations::decode(bytes.into())) {
                assert!(report.operations.len() <= OPERATIONS_MAX);
            }
        });
    }
}
