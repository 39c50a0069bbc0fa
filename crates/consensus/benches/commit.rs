//! The cost of an entry in the consensus core: proposed, replicated, persisted and committed by three
//! replicas on one thread.
//!
//! Logs are in memory and messages are moved, not encoded: this measures raft-rs and the conversions around
//! it only.

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;
use divan::{Bencher, counter::ItemsCount};
use flotilla_consensus::{Config, Effects, Input, MultiRaft};
use flotilla_storage::{Log as _, LogBatch, MemoryLog, ReplicaWrite};
use flotilla_types::{
    Checkpoint, ConfState, Epoch, HardState, KeyRange, LogIndex, Message, NodeId, Position, ReplicaDescriptor,
    ReplicaId, ReplicaRole, ShardDescriptor, ShardId, Term, WalSequence,
};

const SHARD: ShardId = ShardId(1);
const VOTERS: [u64; 3] = [1, 2, 3];
/// Entries per cluster, so that logs stay short.
const ENTRIES: usize = 1_024;

fn main() {
    divan::main();
}

/// `batch` entries are proposed before any message is delivered.
#[divan::bench(args = [1, 16, 64], sample_count = 20, sample_size = 1)]
fn commit(bencher: Bencher, batch: usize) {
    let data = Bytes::from(vec![7; 256]);
    bencher.counter(ItemsCount::new(ENTRIES)).with_inputs(Cluster::elected).bench_local_values(|mut cluster| {
        for _ in 0..ENTRIES / batch {
            for _ in 0..batch {
                cluster.propose(data.clone());
            }
            cluster.settle();
        }
        assert!(cluster.nodes.iter().all(|node| node.applied >= ENTRIES as u64), "every entry is committed everywhere");
        cluster
    });
}

struct Node {
    replica: ReplicaId,
    raft: MultiRaft,
    log: MemoryLog,
    sequence: WalSequence,
    applied: u64,
}

/// Node *n* holds replica *n* only.
struct Cluster {
    nodes: Vec<Node>,
    in_flight: VecDeque<Message>,
}

impl Cluster {
    /// A cluster in which replica 1 leads.
    fn elected() -> Self {
        let mut cluster = Self { nodes: VOTERS.map(node).into(), in_flight: VecDeque::new() };
        cluster.step(0, Input::Campaign { replica: ReplicaId(VOTERS[0]) });
        cluster.settle();
        cluster
    }

    fn step(&mut self, at: usize, input: Input) {
        let mut effects = Effects::default();
        self.nodes[at].raft.step(input, &mut effects);
        self.perform(at, effects);
    }

    fn propose(&mut self, data: Bytes) {
        let mut effects = Effects::default();
        let Node { replica, raft, .. } = &mut self.nodes[0];
        raft.propose(*replica, data, &mut effects).expect("the leader accepts proposals");
        self.perform(0, effects);
    }

    /// Delivers messages until none is in flight.
    fn settle(&mut self) {
        loop {
            for at in 0..self.nodes.len() {
                self.drain(at);
            }
            let Some(message) = self.in_flight.pop_front() else { return };
            self.step(message.to.0 as usize - 1, Input::Message(message));
        }
    }

    fn drain(&mut self, at: usize) {
        loop {
            let mut effects = Effects::default();
            self.nodes[at].raft.drain(&mut effects);
            if !self.perform(at, effects) {
                return;
            }
        }
    }

    /// Performs effects; returns whether there was anything to write or apply.
    fn perform(&mut self, at: usize, effects: Effects) -> bool {
        let busy = !effects.persists.is_empty() || !effects.committed.is_empty();
        assert!(effects.failed.is_empty(), "no replica fails");
        self.in_flight.extend(effects.sends.into_iter().map(|(_, message)| message));
        for batch in effects.committed {
            let replica = batch.replica;
            let Some(index) = batch.entries.last().map(|entry| entry.index) else { continue };
            self.nodes[at].applied += batch.entries.len() as u64;
            self.step(at, Input::Applied { replica, index });
        }
        for (_, persist) in effects.persists {
            let (replica, number) = (persist.replica, persist.number);
            let node = &mut self.nodes[at];
            node.sequence = node.sequence.next();
            let write =
                ReplicaWrite { entries: persist.entries, hard_state: persist.hard_state, ..ReplicaWrite::new(replica) };
            write_one(&node.log, node.sequence, write);
            self.step(at, Input::Persisted { replica, number });
            self.in_flight.extend(persist.after);
        }
        busy
    }
}

fn node(id: u64) -> Node {
    let replica = ReplicaId(id);
    let voter = |id| ReplicaDescriptor { replica: ReplicaId(id), node: NodeId(id), role: ReplicaRole::Voter };
    let descriptor = ShardDescriptor {
        shard: SHARD,
        range: KeyRange::all(),
        epoch: Epoch { range: 1, config: 1 },
        replicas: VOTERS.map(voter).into(),
    };
    let conf = ConfState::of_voters(VOTERS.map(ReplicaId));
    let position =
        Position { index: LogIndex(1), term: Term(1), conf: Arc::new(conf), descriptor: Arc::new(descriptor) };
    let create = ReplicaWrite {
        create: Some(SHARD),
        checkpoint: Some(Checkpoint::empty(position)),
        truncate: Some((LogIndex(1), Term(1))),
        hard_state: Some(HardState { term: Term(1), vote: ReplicaId::NONE, commit: LogIndex(1) }),
        ..ReplicaWrite::new(replica)
    };
    let (log, sequence) = (MemoryLog::default(), WalSequence(1));
    write_one(&log, sequence, create);
    let mut raft = MultiRaft::new(Config::default(), Arc::new(log.clone()));
    let (_, state) = log.replicas().expect("an intact log").remove(0);
    raft.open(replica, &state, flotilla_consensus::Origin::Created, id).expect("an intact log");
    Node { replica, raft, log, sequence, applied: 0 }
}

fn write_one(log: &MemoryLog, sequence: WalSequence, write: ReplicaWrite) {
    log.write(LogBatch { sequence, replicas: vec![write], peer_sequences: Vec::new() }).expect("memory");
}
