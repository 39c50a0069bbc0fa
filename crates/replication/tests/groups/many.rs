//! A node with many replicas, whose peers agree to everything.

use std::{collections::BTreeSet, sync::Arc};

use flotilla_replication::{
    Core, Effects, HostConfig, Input, NodeHeartbeat, Outgoing, ReplicaStatus, Replicas, Role,
    work::{Wal, WalJob},
};
use flotilla_storage::{Log as _, LogBatch, LogEvidence, MemoryLog, ReplicaWrite};
use flotilla_types::{
    Checkpoint, ClusterVersion, ConfState, Epoch, HardState, Incarnation, KeyRange, LogIndex, Message, MessageKind,
    NodeId, Position, ReplicaDescriptor, ReplicaId, ReplicaRole, ShardDescriptor, ShardId, Term, VersionRange,
    WalSequence,
};

const INCARNATION: Incarnation = Incarnation(9);

/// A node that has started with one replica of each of `count` shards, and its two peers, which agree to
/// everything.
pub(crate) struct Many {
    pub(crate) core: Core<u64>,
    log: MemoryLog,
    wal: Wal,
    published: Replicas,
    pub(crate) now_ms: u64,
}

/// The replica of a shard on a node.
pub(crate) fn replica_of(shard: u64, node: u64) -> ReplicaId {
    ReplicaId(shard * 10 + node)
}

fn recovered(shard: u64) -> ReplicaWrite {
    let replicas = [1, 2, 3].map(|node| ReplicaDescriptor {
        replica: replica_of(shard, node),
        node: NodeId(node),
        role: ReplicaRole::Voter,
    });
    let conf = ConfState::of_voters(replicas.iter().map(|replica| replica.replica));
    let descriptor = ShardDescriptor {
        shard: ShardId(shard),
        range: KeyRange::all(),
        epoch: Epoch { range: 1, config: 1 },
        replicas: replicas.to_vec(),
    };
    let (index, term) = (LogIndex(1), Term(1));
    let position = Position { index, term, conf: Arc::new(conf), descriptor: Arc::new(descriptor) };
    ReplicaWrite {
        create: Some(ShardId(shard)),
        checkpoint: Some(Checkpoint::empty(position)),
        truncate: Some((index, term)),
        hard_state: Some(HardState { term, vote: ReplicaId::NONE, commit: index }),
        ..ReplicaWrite::new(replica_of(shard, 1))
    }
}

impl Many {
    pub(crate) fn new(count: u64) -> Self {
        let log = MemoryLog::default();
        let replicas = (1..=count).map(recovered).collect();
        log.write(LogBatch { sequence: WalSequence(1), replicas, peer_sequences: Vec::new() }).unwrap();
        let log = log.reopen_with(LogEvidence::Unknown);
        let mut effects = Effects::default();
        let core =
            Core::open(NodeId(1), INCARNATION, HostConfig::default(), Arc::new(log.clone()), 1, &mut effects).unwrap();
        let wal = Wal::new(&log, INCARNATION);
        let mut many = Self { core, log, wal, published: Replicas::default(), now_ms: 1_000 };
        many.input(Input::Peers(vec![NodeId(2), NodeId(3)]));
        many.publish();
        many
    }

    /// Peers verify the node, and its groups open.
    pub(crate) fn verify(&mut self) {
        let heartbeat = NodeHeartbeat {
            incarnation: Incarnation(1),
            recovered: WalSequence(0),
            synced: WalSequence(0),
            wall_ms: self.now_ms,
            recovery_complete: true,
            your_incarnation: INCARNATION,
            you_lost_up_to: None,
            leaders: Vec::new(),
            not_led: Vec::new(),
            versions: VersionRange::supported(),
        };
        for from in [NodeId(2), NodeId(3)] {
            self.input(Input::NodeHeartbeat { from, heartbeat: heartbeat.clone() });
        }
    }

    /// Peers have verified the node, its groups are open, and all have woken.
    pub(crate) fn verified(count: u64) -> Self {
        let mut many = Self::new(count);
        many.verify();
        while many.core.resting() > 0 {
            let effects = many.next_tick();
            many.answer(effects);
        }
        many.publish();
        assert!(many.published.iter().all(|status| status.group.is_some()));
        many
    }

    pub(crate) fn input(&mut self, input: Input<u64>) -> Effects<u64> {
        let mut effects = Effects::default();
        self.core.step(self.now_ms, self.now_ms, input, &mut effects);
        self.core.flush(self.now_ms, &mut effects);
        effects
    }

    /// The node comes to lead every shard.
    pub(crate) fn leading(count: u64) -> Self {
        let mut many = Self::verified(count);
        for _ in 0..40 {
            let effects = many.next_tick();
            many.answer(effects);
        }
        many.publish();
        assert_eq!(many.led().len() as u64, count);
        many
    }

    /// The node leads every shard, and all groups rest.
    pub(crate) fn resting(count: u64) -> Self {
        let mut many = Self::leading(count);
        many.input(Input::ClusterVersion(ClusterVersion::REST));
        for _ in 0..200 {
            let effects = many.next_tick();
            many.answer(effects);
        }
        many.publish();
        assert_eq!(many.core.resting() as u64, count);
        many
    }

    /// Writes become durable, and the peers answer, until nothing is left to do.
    pub(crate) fn answer(&mut self, mut effects: Effects<u64>) {
        loop {
            let mut sends = std::mem::take(&mut effects.sends);
            let mut inputs = Vec::new();
            if let Some(job) = WalJob::take(&mut effects) {
                let merged = self.wal.merge([job]);
                let durable = self.wal.write(&self.log, merged).unwrap();
                sends.extend(durable.after);
                inputs.push(Input::Written { sequence: durable.sequence, done: durable.done });
            }
            inputs.extend(sends.into_iter().filter_map(agree));
            if inputs.is_empty() {
                return;
            }
            effects = Effects::default();
            for input in inputs {
                self.core.step(self.now_ms, self.now_ms, input, &mut effects);
            }
            self.core.flush(self.now_ms, &mut effects);
        }
    }

    pub(crate) fn next_tick(&mut self) -> Effects<u64> {
        self.now_ms += 50;
        self.input(Input::Tick)
    }

    /// The shards that the node leads, as last published.
    pub(crate) fn led(&self) -> BTreeSet<ShardId> {
        let leads = |status: &&ReplicaStatus| status.group.as_ref().is_some_and(|group| group.role == Role::Leader);
        self.published.iter().filter(leads).map(|status| status.shard).collect()
    }

    pub(crate) fn publish(&mut self) {
        let updates = self.core.status_updates(&self.published);
        updates.apply(&mut self.published);
    }
}

/// A peer's answer to a message.
fn agree(Outgoing { node, shard, message, .. }: Outgoing) -> Option<Input<u64>> {
    let kind = match message.kind {
        MessageKind::RequestPreVote => MessageKind::RequestPreVoteResponse,
        MessageKind::RequestVote => MessageKind::RequestVoteResponse,
        MessageKind::Append => MessageKind::AppendResponse,
        MessageKind::Heartbeat => MessageKind::HeartbeatResponse,
        _ => return None,
    };
    let last = message.entries.last().map_or(message.index, |entry| entry.index);
    let (from, to) = (message.to, message.from);
    let message = Message { kind, from, to, index: last, entries: Vec::new(), ..message };
    Some(Input::Raft { from: node, shard, message })
}
