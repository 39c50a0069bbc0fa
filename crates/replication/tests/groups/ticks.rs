//! What a tick costs on a node with many replicas, counted in replicas visited.

use std::sync::Arc;

use flotilla_replication::{Core, Effects, HostConfig, Input, NodeHeartbeat, ReplicaStatus};
use flotilla_storage::{Log as _, LogBatch, LogEvidence, MemoryLog, ReplicaWrite, Usage};
use flotilla_types::{
    Checkpoint, ConfState, Epoch, HardState, Incarnation, KeyRange, LogIndex, NodeId, Position, ReplicaDescriptor,
    ReplicaId, ReplicaRole, ShardDescriptor, ShardId, Term, Timestamp, VersionRange, WalSequence,
};

const INCARNATION: Incarnation = Incarnation(9);

/// A node that has started with one replica of each of `count` shards.
struct Many {
    core: Core<u64>,
    published: Vec<ReplicaStatus>,
    now_ms: u64,
}

/// The replica of a shard on a node.
fn replica(shard: u64, node: u64) -> ReplicaId {
    ReplicaId(shard * 10 + node)
}

fn recovered(shard: u64) -> ReplicaWrite {
    let replicas = [1, 2, 3].map(|node| ReplicaDescriptor {
        replica: replica(shard, node),
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
    let position = Position { index, term, conf, descriptor };
    ReplicaWrite {
        create: Some(ShardId(shard)),
        checkpoint: Some(Checkpoint { position, system: None, base: Vec::new(), runs: Vec::new() }),
        truncate: Some((index, term)),
        hard_state: Some(HardState { term, vote: ReplicaId::NONE, commit: index }),
        ..ReplicaWrite::new(replica(shard, 1))
    }
}

impl Many {
    fn new(count: u64) -> Self {
        let log = MemoryLog::default();
        let replicas = (1..=count).map(recovered).collect();
        log.write(LogBatch { sequence: WalSequence(1), replicas, peer_sequences: Vec::new() }).unwrap();
        let mut effects = Effects::default();
        let core = Core::open(
            NodeId(1),
            INCARNATION,
            HostConfig::default(),
            Arc::new(log.reopen_with(LogEvidence::Unknown)),
            1,
            &mut effects,
        )
        .unwrap();
        let mut many = Self { core, published: Vec::new(), now_ms: 1_000 };
        many.input(Input::Peers(vec![NodeId(2), NodeId(3)]));
        many.publish();
        many
    }

    /// Peers verify the node, and its groups open.
    fn verified(count: u64) -> Self {
        let mut many = Self::new(count);
        let heartbeat = NodeHeartbeat {
            incarnation: Incarnation(1),
            recovered: WalSequence(0),
            synced: WalSequence(0),
            wall_ms: many.now_ms,
            recovery_complete: true,
            your_incarnation: INCARNATION,
            you_lost_up_to: None,
            leaders: Vec::new(),
            versions: VersionRange::supported(),
        };
        for from in [NodeId(2), NodeId(3)] {
            many.input(Input::NodeHeartbeat { from, heartbeat: heartbeat.clone() });
        }
        many.publish();
        assert!(many.published.iter().all(|status| status.group.is_some()));
        many
    }

    fn input(&mut self, input: Input<u64>) -> Effects<u64> {
        let mut effects = Effects::default();
        self.core.step(self.now_ms, self.now_ms, input, &mut effects);
        self.core.flush(self.now_ms, &mut effects);
        effects
    }

    fn publish(&mut self) {
        let updates = self.core.status_updates(&self.published);
        updates.apply(&mut self.published);
    }

    /// Ticks and publishes; returns how many replicas that visited.
    fn tick(&mut self, times: u64) -> u64 {
        let before = self.core.visits();
        for _ in 0..times {
            self.now_ms += 50;
            self.input(Input::Tick);
            self.publish();
        }
        self.core.visits() - before
    }

    fn applied(&mut self, shard: u64, active_bytes: usize) -> Effects<u64> {
        let usage = Usage { active_bytes, ..Usage::default() };
        let index = LogIndex(1);
        self.input(Input::Applied {
            replica: replica(shard, 1),
            index,
            clock: Timestamp::ZERO,
            bytes: 0,
            usage,
            version: None,
        })
    }
}

#[test]
fn ticks_do_not_visit_replicas_at_rest() {
    assert_eq!(Many::new(1_000).tick(100), 0, "unverified");
    assert_eq!(Many::verified(1_000).tick(7), 0, "no election timeout has ended");
}

#[test]
fn ticks_visit_what_is_busy_however_many_others_there_are() {
    let visits = [10, 1_000].map(|count| {
        let mut many = Many::verified(count);
        let before = many.core.visits();
        for shard in 1..=5 {
            many.applied(shard, 100);
        }
        many.tick(7);
        many.core.visits() - before
    });
    assert!((1..=20).contains(&visits[0]), "{visits:?}");
    assert_eq!(visits[0], visits[1]);
}

#[test]
fn without_a_leader_each_replica_is_visited_when_its_election_timeout_ends() {
    let count = 500;
    let ticks = 80;
    let visits = Many::verified(count).tick(ticks);
    // An election timeout is at least 8 ticks. Each end of one is a visit, which changes the status; input
    // that postpones it costs one visit more.
    assert!((count..=3 * count * (ticks / 8)).contains(&visits), "{visits}");
}
