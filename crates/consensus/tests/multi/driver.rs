//! A few nodes with one replica each, on one thread: the test decides when messages are delivered and disks
//! write.
//!
//! State machines apply at once. Message loss, delay and crashes are not modelled; the simulated hosts of
//! `replication` do.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use bytes::Bytes;
use flotilla_consensus::{Config, Effects, Input, MultiRaft, Origin, Persist, Role, ShardChange};
use flotilla_storage::{Log as _, LogBatch, MemoryLog, ReplicaWrite};
use flotilla_types::{
    Checkpoint, ConfState, Entry, EntryKind, Epoch, HardState, KeyRange, LogIndex, Message, NodeId, Position,
    ReplicaDescriptor, ReplicaId, ReplicaRole, ShardDescriptor, ShardId, Term, WalSequence,
};

pub(crate) const SHARD: ShardId = ShardId(7);

/// One node.
pub(crate) struct Node {
    pub(crate) raft: MultiRaft,
    pub(crate) log: MemoryLog,
    pub(crate) committed: Vec<Entry>,
    /// Of each delivered batch: its last entry, its change of the shard, and the range epoch after it.
    pub(crate) batches: Vec<(u64, Option<ShardChange>, u64)>,
    pub(crate) failed: Vec<ReplicaId>,
    pub(crate) wants_checkpoint: bool,
    /// Writes wait while this is set.
    pub(crate) disk_held: bool,
    position: Position,
    unwritten: VecDeque<Persist>,
    sequence: WalSequence,
}

/// All nodes; the replica on node *n* is replica *n*.
#[derive(Default)]
pub(crate) struct Driver {
    /// The shard of all replicas; [`SHARD`] by default.
    shard: Option<ShardId>,
    pub(crate) nodes: BTreeMap<u64, Node>,
    /// Messages in flight, in order.
    pub(crate) wire: VecDeque<Message>,
    /// Partitioned nodes: messages from and to them are dropped.
    pub(crate) cut: BTreeSet<u64>,
    /// Events, one line each.
    pub(crate) transcript: Vec<String>,
}

pub(crate) fn descriptor(voters: &[u64]) -> ShardDescriptor {
    let voter = |id: &u64| ReplicaDescriptor { replica: ReplicaId(*id), node: NodeId(*id), role: ReplicaRole::Voter };
    ShardDescriptor {
        shard: SHARD,
        range: KeyRange::all(),
        epoch: Epoch { range: 1, config: 1 },
        replicas: voters.iter().map(voter).collect(),
    }
}

fn checkpoint(position: Position) -> Checkpoint {
    Checkpoint::empty(position)
}

impl Driver {
    /// Replicas that all begin with the same voters.
    pub(crate) fn of_voters(voters: &[u64]) -> Self {
        Self::of_shard(SHARD, voters)
    }

    /// Like [`Self::of_voters`], for another shard.
    pub(crate) fn of_shard(shard: ShardId, voters: &[u64]) -> Self {
        let mut driver = Self { shard: Some(shard), ..Self::default() };
        for id in voters {
            driver.create(*id, voters);
        }
        driver
    }

    /// Creates a replica; without voters it waits for a snapshot.
    pub(crate) fn create(&mut self, id: u64, voters: &[u64]) {
        self.create_with(id, voters, None);
    }

    /// Creates a replica of a shard that was split off, which this heir leads first.
    pub(crate) fn split_off(&mut self, id: u64, voters: &[u64], heir: u64) {
        self.create_with(id, voters, Some(heir));
    }

    fn create_with(&mut self, id: u64, voters: &[u64], heir: Option<u64>) {
        let first = if voters.is_empty() { (LogIndex(0), Term(0)) } else { (LogIndex(1), Term(1)) };
        let conf = ConfState::of_voters(voters.iter().copied().map(ReplicaId));
        let position =
            Position { index: first.0, term: first.1, conf: Arc::new(conf), descriptor: Arc::new(descriptor(voters)) };
        let log = MemoryLog::default();
        let create = ReplicaWrite {
            create: Some(self.shard.unwrap_or(SHARD)),
            checkpoint: Some(checkpoint(position.clone())),
            truncate: Some(first),
            hard_state: Some(match heir {
                Some(heir) => HardState { term: Term(2), vote: ReplicaId(heir), commit: first.0 },
                None => HardState { term: first.1, vote: ReplicaId::NONE, commit: first.0 },
            }),
            ..ReplicaWrite::new(ReplicaId(id))
        };
        log.write(LogBatch { sequence: WalSequence(1), replicas: vec![create], peer_sequences: Vec::new() }).unwrap();
        let mut raft = MultiRaft::new(Config::default(), Arc::new(log.clone()));
        let (_, state) = log.replicas().unwrap().remove(0);
        let origin = if heir == Some(id) { Origin::Heir } else { Origin::Created };
        raft.open(ReplicaId(id), &state, origin, id).unwrap();
        let node = Node {
            raft,
            log,
            committed: Vec::new(),
            batches: Vec::new(),
            failed: Vec::new(),
            wants_checkpoint: false,
            disk_held: false,
            position,
            unwritten: VecDeque::new(),
            sequence: WalSequence(1),
        };
        self.nodes.insert(id, node);
    }

    /// Restarts the process; its replica is opened after `delay_ticks`.
    pub(crate) fn restart(&mut self, id: u64, delay_ticks: usize) {
        let node = self.node(id);
        let mut raft = MultiRaft::new(Config::default(), Arc::new(node.log.clone()));
        for _ in 0..delay_ticks {
            raft.step(Input::Tick, &mut Effects::default());
        }
        let (_, state) = node.log.replicas().unwrap().remove(0);
        raft.open(ReplicaId(id), &state, Origin::Recovered, id).unwrap();
        node.position = state.checkpoint.position;
        node.committed.clear();
        node.batches.clear();
        node.raft = raft;
        self.drain(id);
    }

    pub(crate) fn node(&mut self, id: u64) -> &mut Node {
        self.nodes.get_mut(&id).unwrap()
    }

    /// Feeds an input without draining.
    pub(crate) fn step(&mut self, id: u64, input: Input) {
        let mut effects = Effects::default();
        self.node(id).raft.step(input, &mut effects);
        self.perform(id, effects);
    }

    /// Feeds an input, then drains the node.
    pub(crate) fn input(&mut self, id: u64, input: Input) {
        self.step(id, input);
        self.drain(id);
    }

    pub(crate) fn propose(&mut self, id: u64, data: &'static str) {
        let mut effects = Effects::default();
        self.node(id).raft.propose(ReplicaId(id), Bytes::from_static(data.as_bytes()), &mut effects).unwrap();
        self.perform(id, effects);
        self.drain(id);
    }

    pub(crate) fn change(&mut self, id: u64, change: &flotilla_consensus::ConfChange) {
        let mut effects = Effects::default();
        self.node(id).raft.propose_change(ReplicaId(id), change, &mut effects).unwrap();
        self.perform(id, effects);
        self.settle();
    }

    /// Performs the effects of a node until there are none left.
    pub(crate) fn drain(&mut self, id: u64) {
        loop {
            let mut effects = Effects::default();
            self.node(id).raft.drain(&mut effects);
            if !self.perform(id, effects) {
                return;
            }
        }
    }

    /// Performs effects; returns whether there was anything to write or apply.
    pub(crate) fn perform(&mut self, id: u64, effects: Effects) -> bool {
        let Effects { roles, sends, reads, persists, committed, wants_checkpoint, failed, rests: _, wakes: _ } =
            effects;
        let mut busy = false;
        for change in roles {
            self.transcript
                .push(format!("{} is {:?} in {}, leader {}", change.replica, change.role, change.term, change.leader));
        }
        for (_, message) in sends {
            self.send(message);
        }
        for read in reads {
            self.transcript.push(format!("{} may read at {}", read.replica, read.index));
        }
        for (_, persist) in persists {
            self.node(id).unwritten.push_back(persist);
            busy = true;
        }
        for batch in committed {
            busy = true;
            for entry in &batch.entries {
                let what = match entry.kind {
                    EntryKind::ConfChange => "change".to_owned(),
                    EntryKind::Shard => "shard change".to_owned(),
                    EntryKind::Normal => format!("{:?}", entry.data),
                };
                self.transcript.push(format!("{} applies {} {what}", batch.replica, entry.index));
            }
            let node = self.node(id);
            if let Some(last) = batch.entries.last() {
                node.batches.push((last.index.0, batch.shard_change, batch.descriptor.epoch.range));
                node.position =
                    Position { index: last.index, term: last.term, conf: batch.conf, descriptor: batch.descriptor };
            }
            node.committed.extend(batch.entries);
            let index = node.position.index;
            self.step(id, Input::Applied { replica: ReplicaId(id), index });
        }
        self.node(id).wants_checkpoint |= !wants_checkpoint.is_empty();
        self.node(id).failed.extend(failed.into_iter().map(|(replica, _)| replica));
        if !self.node(id).disk_held {
            self.write(id);
        }
        busy
    }

    /// Performs the pending writes.
    pub(crate) fn write(&mut self, id: u64) {
        while let Some(persist) = self.node(id).unwritten.pop_front() {
            let number = persist.number;
            let (replica, after) = self.node(id).persist(persist);
            self.step(id, Input::Persisted { replica, number });
            for message in after {
                self.send(message);
            }
        }
    }

    fn send(&mut self, message: Message) {
        if !self.cut.contains(&message.from.0) && !self.cut.contains(&message.to.0) {
            let Message { kind, from, to, term, index, .. } = &message;
            self.transcript.push(format!("{from} → {to}: {kind:?} in {term} at {index}"));
            self.wire.push_back(message);
        }
    }

    /// Delivers messages until none is in flight.
    pub(crate) fn settle(&mut self) {
        loop {
            for id in self.nodes.keys().copied().collect::<Vec<_>>() {
                self.drain(id);
            }
            let Some(message) = self.wire.pop_front() else { return };
            let to = message.to.0;
            if self.nodes.contains_key(&to) && !self.cut.contains(&to) {
                self.input(to, Input::Message(message));
            }
        }
    }

    /// Settles and ticks until every follower has received the commit index.
    pub(crate) fn heartbeat(&mut self) {
        self.settle();
        self.tick(Config::default().heartbeat_ticks);
    }

    /// Ticks every node.
    pub(crate) fn tick(&mut self, times: usize) {
        for _ in 0..times {
            for id in self.nodes.keys().copied().collect::<Vec<_>>() {
                self.input(id, Input::Tick);
            }
            self.settle();
        }
    }

    /// Makes a durable checkpoint of the applied state and truncates the log up to it.
    pub(crate) fn checkpoint(&mut self, id: u64) {
        let checkpoint = self.build(id);
        self.adopt(id, checkpoint);
    }

    /// Builds a checkpoint of the applied state.
    pub(crate) fn build(&mut self, id: u64) -> Checkpoint {
        checkpoint(self.node(id).position.clone())
    }

    /// Makes a checkpoint durable and truncates the log up to it.
    pub(crate) fn adopt(&mut self, id: u64, checkpoint: Checkpoint) {
        let node = self.node(id);
        let truncate = (checkpoint.position.index, checkpoint.position.term);
        let write = ReplicaWrite {
            checkpoint: Some(checkpoint.clone()),
            truncate: Some(truncate),
            ..ReplicaWrite::new(ReplicaId(id))
        };
        node.write(write);
        self.step(id, Input::Checkpointed { replica: ReplicaId(id), checkpoint, truncate: Some(truncate) });
    }

    /// The leader of the highest term.
    pub(crate) fn leader(&self) -> Option<u64> {
        let leaders = self.nodes.iter().filter_map(|(id, node)| {
            let (role, term, _) = node.raft.group(ReplicaId(*id))?.role();
            (role == Role::Leader).then_some((term, *id))
        });
        leaders.max().map(|(_, id)| id)
    }

    /// The entries that a node applied, without empty ones.
    pub(crate) fn applied(&self, id: u64) -> Vec<&[u8]> {
        let normal = self.nodes[&id].committed.iter().filter(|entry| entry.kind == EntryKind::Normal);
        normal.map(|entry| &entry.data[..]).filter(|data| !data.is_empty()).collect()
    }

    pub(crate) fn conf(&self, id: u64) -> ConfState {
        self.nodes[&id].raft.group(ReplicaId(id)).map(|group| (**group.conf()).clone()).unwrap_or_default()
    }

    /// Events since the last call.
    pub(crate) fn take_transcript(&mut self) -> String {
        std::mem::take(&mut self.transcript).join("\n")
    }
}

impl Node {
    fn write(&mut self, write: ReplicaWrite) {
        self.sequence = self.sequence.next();
        self.log
            .write(LogBatch { sequence: self.sequence, replicas: vec![write], peer_sequences: Vec::new() })
            .unwrap();
    }

    fn persist(&mut self, persist: Persist) -> (ReplicaId, Vec<Message>) {
        let mut write = ReplicaWrite::new(persist.replica);
        if let Some(checkpoint) = persist.install {
            write.clear = true;
            write.truncate = Some((checkpoint.position.index, checkpoint.position.term));
            self.position = checkpoint.position.clone();
            write.checkpoint = Some(checkpoint);
        }
        write.entries = persist.entries;
        write.hard_state = persist.hard_state;
        if write != ReplicaWrite::new(persist.replica) {
            self.write(write);
        }
        (persist.replica, persist.after)
    }
}
