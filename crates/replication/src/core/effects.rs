//! What comes out of the core: plain data, so that a simulator can stand behind it.

use bytes::Bytes;
use flotilla_consensus::GroupStatus;
use flotilla_storage::{ReplicaWrite, Usage};
use flotilla_types::{
    Checkpoint, ConfState, Entry, LogIndex, Message, NodeId, ObjectId, ReplicaId, ShardDescriptor, ShardId, Term,
    WalSequence,
};

use super::{Answer, Beat, Done};

/// One write for the log, in order, and what waits for it.
#[derive(Debug)]
pub struct Write {
    /// What to write; `None` when messages only wait for the writes before.
    pub write: Option<ReplicaWrite>,
    /// Reported back when durable.
    pub done: Done,
    /// Leave when durable.
    pub after: Vec<Outgoing>,
}

/// A Raft message to a node.
#[derive(Debug, Clone)]
pub struct Outgoing {
    /// Where to.
    pub node: NodeId,
    /// Its shard.
    pub shard: ShardId,
    /// The message.
    pub message: Message,
}

/// Work for the thread that owns the state machines. Tasks of one replica run in order.
#[derive(Debug)]
pub enum ApplyTask<T> {
    /// Load the replica's records from its durable checkpoint, on a background thread; later tasks wait.
    Open {
        /// Whose.
        replica: ReplicaId,
        /// Its shard.
        shard: ShardId,
        /// The checkpoint.
        checkpoint: Checkpoint,
        /// Whether it replaces what the replica holds (a snapshot), or is what it held before a restart.
        replaces: bool,
    },
    /// Apply entries.
    Apply {
        /// Whose.
        replica: ReplicaId,
        /// The entries.
        entries: Vec<Entry>,
        /// The configuration after them.
        conf: ConfState,
        /// The descriptor after them.
        descriptor: ShardDescriptor,
        /// Who waits for the commands of which entry, in order.
        waiters: Vec<(LogIndex, Vec<T>)>,
    },
    /// Answer queries on what is applied by now.
    Read {
        /// Whose.
        replica: ReplicaId,
        /// The queries and who asked.
        queries: Vec<(Bytes, T)>,
    },
    /// Close the memtable for a checkpoint.
    Freeze {
        /// Whose.
        replica: ReplicaId,
    },
    /// Forget the replica and its records.
    Close {
        /// Whose.
        replica: ReplicaId,
    },
}

/// Slow work for background threads.
#[derive(Debug)]
pub enum Background {
    /// Build the frozen memtable's checkpoint.
    Build {
        /// Whose.
        replica: ReplicaId,
    },
    /// The checkpoint is durable: feed the view.
    Settle {
        /// Whose.
        replica: ReplicaId,
        /// The checkpoint.
        checkpoint: Checkpoint,
    },
    /// Fetch the objects of a snapshot from a node.
    Pull {
        /// For whom.
        replica: ReplicaId,
        /// From where.
        from: NodeId,
        /// What the snapshot names.
        checkpoint: Checkpoint,
    },
    /// A snapshot whose objects were pulled is of no use any more: let go of them.
    Release {
        /// What it named.
        objects: Vec<ObjectId>,
    },
}

/// What others may want to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// A shard's leader, as a replica here or a peer knows it.
    Leader {
        /// The shard.
        shard: ShardId,
        /// The term.
        term: Term,
        /// The leader's node; `None` when a replica here lost its leader.
        node: Option<NodeId>,
    },
    /// A shard led here has this descriptor.
    Descriptor(ShardDescriptor),
    /// Replicas that this node may not use any more: their log went backwards, or they broke.
    Lost {
        /// The replicas with their shards.
        replicas: Vec<(ShardId, ReplicaId)>,
        /// Why.
        reason: LostReason,
    },
    /// A replica is gone from this node for ever.
    Destroyed {
        /// The replica.
        replica: ReplicaId,
    },
}

/// Why a node may not use a replica any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LostReason {
    /// A peer remembers more of this node's log than the node recovered.
    RolledBack,
    /// The replica's log, records or state machine failed.
    Broken,
}

/// What the shell must do, in the order of the fields; each list in its own order.
#[derive(Debug)]
pub struct Effects<T> {
    /// Raft messages.
    pub sends: Vec<Outgoing>,
    /// Beats.
    pub beats: Vec<(NodeId, Beat)>,
    /// Log writes.
    pub writes: Vec<Write>,
    /// Batch sequences must continue above this one: peers remember that we were there before.
    pub sequence_floor: Option<WalSequence>,
    /// What peers said of their logs, to be stored with the next write.
    pub marks: Vec<(NodeId, WalSequence)>,
    /// Work for the state machines.
    pub apply: Vec<ApplyTask<T>>,
    /// Slow work.
    pub background: Vec<Background>,
    /// Answers.
    pub replies: Vec<(T, Answer)>,
    /// News.
    pub notices: Vec<Notice>,
}

impl<T> Default for Effects<T> {
    fn default() -> Self {
        Self {
            sends: Vec::new(),
            beats: Vec::new(),
            writes: Vec::new(),
            sequence_floor: None,
            marks: Vec::new(),
            apply: Vec::new(),
            background: Vec::new(),
            replies: Vec::new(),
            notices: Vec::new(),
        }
    }
}

/// One replica at a glance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicaStatus {
    /// The shard.
    pub shard: ShardId,
    /// The replica.
    pub replica: ReplicaId,
    /// The shard as this replica knows it.
    pub descriptor: ShardDescriptor,
    /// Its group; `None` while it waits to be greeted, or may not be used.
    pub group: Option<GroupStatus>,
    /// The last applied entry.
    pub applied: LogIndex,
    /// The last entry that its durable checkpoint covers.
    pub checkpoint: LogIndex,
    /// What its records take.
    pub usage: Usage,
}
