//! Effects of the core: plain data, so that a simulator can perform them.

use std::{fmt, sync::Arc};

use bytes::Bytes;
use flotilla_consensus::{GroupError, GroupStatus, ShardChange};
use flotilla_storage::{CountAhead, ReplicaWrite, StateReader, Usage};
use flotilla_types::{
    Checkpoint, CheckpointFormat, ClusterVersion, ConfState, Entry, Epoch, Folding, Holder, Incarnation, LogIndex,
    Message, NodeId, ObjectId, ObjectRef, ReplicaId, ShardDescriptor, ShardId, Term, VersionRange, WalSequence,
};

use super::{Answer, Done, NodeHeartbeat, Request};

/// One log write, and the messages that wait for it.
#[derive(Debug)]
pub struct Write {
    /// What to write; `None` when the messages wait for earlier writes only.
    pub write: Option<ReplicaWrite>,
    /// Reported back when durable.
    pub done: Done,
    /// Messages to send when durable.
    pub after: Vec<Outgoing>,
}

/// Objects that a holder needs from now on, in place of those that it needed before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hold {
    /// The holder.
    pub holder: Holder,
    /// The objects; none ends the hold.
    pub objects: Vec<ObjectId>,
}

impl Hold {
    /// The end of a hold.
    pub(super) fn end(holder: Holder) -> Self {
        Self { holder, objects: Vec::new() }
    }
}

/// A Raft message to a node.
#[derive(Debug, Clone)]
pub struct Outgoing {
    /// The receiving node.
    pub node: NodeId,
    /// The shard.
    pub shard: ShardId,
    /// The message.
    pub message: Message,
    /// The log batch that the message waited for, if it is a promise; zero otherwise. The receiver remembers
    /// it, as what this node must still hold after a restart.
    pub synced: WalSequence,
}

/// A query whose read was admitted and confirmed.
#[derive(Debug)]
pub struct Query<T> {
    /// The query, in the state machine's format.
    pub payload: Bytes,
    /// When to give up, on the core's monotonic clock, milliseconds.
    pub deadline_ms: u64,
    /// Given back with the answer.
    pub reply: T,
}

impl<T> From<Request<T>> for Query<T> {
    fn from(request: Request<T>) -> Self {
        let Request { payload, deadline_ms, reply, .. } = request;
        Self { payload, deadline_ms, reply }
    }
}

/// Work for the thread that owns the state machines. Tasks of one replica run in order.
#[derive(Debug)]
pub enum ApplyTask<T> {
    /// Load the replica's records from its durable checkpoint, on a background thread; later tasks wait.
    Open {
        /// The replica.
        replica: ReplicaId,
        /// The shard.
        shard: ShardId,
        /// The checkpoint.
        checkpoint: Checkpoint,
        /// Whether it is a snapshot that replaces the replica's records, or the replica's own after a
        /// restart.
        replaces: bool,
    },
    /// Apply entries.
    Apply {
        /// The replica.
        replica: ReplicaId,
        /// The entries; only the last one may be a change, of the configuration or of the shard.
        entries: Vec<Entry>,
        /// The change of the shard that the last one makes.
        shard_change: Option<ShardChange>,
        /// The configuration after them.
        conf: Arc<ConfState>,
        /// The descriptor after them.
        descriptor: Arc<ShardDescriptor>,
        /// The callers that wait for the commands of an entry, in order.
        waiters: Vec<(LogIndex, Vec<T>)>,
        /// For a merge: the checkpoint of the replica here that is merged into this one. Without it the entry fails.
        source: Option<Box<Checkpoint>>,
    },
    /// Answer queries from the records applied by now.
    Read {
        /// The replica.
        replica: ReplicaId,
        /// The entry that must have been applied: the one at which the reads were confirmed. Zero for any
        /// state.
        index: LogIndex,
        /// The queries.
        queries: Vec<Query<T>>,
    },
    /// Begin to count what a split would give up.
    CountAhead {
        /// The replica.
        replica: ReplicaId,
        /// The first key that it would give up.
        at: Bytes,
    },
    /// Freeze the memtable for a checkpoint.
    Freeze {
        /// The replica.
        replica: ReplicaId,
    },
    /// Forget the replica and its records.
    Close {
        /// The replica.
        replica: ReplicaId,
    },
}

/// Objects that are needed, with all below them, durable. They are held before this is ordered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gather {
    /// Who needs them. A newer order for the same holder replaces this one.
    pub holder: Holder,
    /// Told back with the result.
    pub number: u64,
    /// The objects, each once.
    pub refs: Vec<ObjectRef>,
    /// The nodes to fetch them from. The first is said to have all of them.
    pub sources: Vec<NodeId>,
    /// When to give up, on the core's monotonic clock, milliseconds; `None` as long as some source serves.
    pub deadline_ms: Option<u64>,
    /// Whether what is here of it was not stored here for this purpose, so that it spares a transfer.
    pub spares: bool,
}

/// A count of what a split would give up.
#[derive(Clone)]
pub struct Count {
    /// The replica.
    pub replica: ReplicaId,
    /// The first key that it would give up.
    pub at: Bytes,
    /// What counts.
    pub counting: Arc<dyn CountAhead>,
    /// The records as of when it was begun.
    pub records: Arc<dyn StateReader>,
}

impl fmt::Debug for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Count {} from {:?}", self.replica, self.at)
    }
}

/// Slow work for background threads.
#[derive(Debug)]
pub enum Background {
    /// Build the frozen memtable's checkpoint.
    Build {
        /// The replica.
        replica: ReplicaId,
        /// Its format.
        format: CheckpointFormat,
    },
    /// A checkpoint that was built here is durable in the log: install it in the engine.
    InstallCheckpoint {
        /// The replica.
        replica: ReplicaId,
        /// The checkpoint.
        checkpoint: Checkpoint,
    },
    /// Merge tables of the replica's checkpoint, slowly, beside other work on the replica. At most one at a
    /// time.
    Compact {
        /// The replica.
        replica: ReplicaId,
        /// Who decides about its folds.
        folding: Folding,
    },
    /// Count what a split would give up, slowly. On the thread of compactions.
    Count(Count),
    /// Fetch what entries or a command refer to.
    Gather(Gather),
    /// These objects were here before a restart, and are held: tell the engine, and report what is damaged.
    Expect {
        /// The objects.
        objects: Vec<ObjectId>,
    },
    /// Fetch the objects of a snapshot from a node, in place of those of an earlier one for the same replica.
    Pull {
        /// The replica that needs it.
        replica: ReplicaId,
        /// The node that offers it.
        from: NodeId,
        /// The snapshot's checkpoint.
        checkpoint: Checkpoint,
    },
}

/// A change that the rest of the node may act on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// A shard's leader, as reported by a replica here or by a peer.
    Leader {
        /// The shard.
        shard: ShardId,
        /// The term.
        term: Term,
        /// The leader's node; `None` when a replica here has no leader any more.
        node: Option<NodeId>,
    },
    /// A peer's start, by its first node heartbeat, and the cluster versions that its binary supports.
    PeerVersions {
        /// The peer.
        node: NodeId,
        /// Its start.
        incarnation: Incarnation,
        /// The versions.
        versions: VersionRange,
    },
    /// The current descriptor of a shard led here.
    Descriptor(ShardDescriptor),
    /// Replicas that this node must not use any more.
    Lost {
        /// The replicas with their shards.
        replicas: Vec<(ShardId, ReplicaId)>,
        /// Why they are lost.
        reason: LostReason,
    },
    /// Objects of a replica were found damaged. It goes on without them until it is replaced.
    Damaged {
        /// The shard.
        shard: ShardId,
        /// The replica.
        replica: ReplicaId,
        /// Some of the objects.
        objects: Vec<ObjectId>,
    },
    /// The damaged objects of a replica are here again, or another replica has taken its place.
    Repaired {
        /// The shard.
        shard: ShardId,
        /// The replica that was damaged.
        replica: ReplicaId,
    },
    /// A replica was destroyed: its tombstone is durable.
    Destroyed {
        /// The replica.
        replica: ReplicaId,
    },
}

/// Why a node must not use a replica any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LostReason {
    /// A peer remembers more of this node's log than the node recovered.
    RolledBack,
    /// The replica's log, records or state machine failed.
    Broken,
    /// The replica's state differs from that of a majority of its shard.
    Diverged,
    /// It was given up here before, and the node stopped before the metadata had replaced it: its id has a tombstone,
    /// so that it can not be created.
    Tombstone,
}

/// The effects that the shell must perform, in the order of the fields; each list in its own order.
#[derive(Debug)]
pub struct Effects<T> {
    /// Changes of what the engine must keep. Memory only, and done at once: before a later effect of the core
    /// can let objects go.
    pub holds: Vec<Hold>,
    /// Raft messages.
    pub sends: Vec<Outgoing>,
    /// Node heartbeats.
    pub node_heartbeats: Vec<(NodeId, NodeHeartbeat)>,
    /// Log writes.
    pub writes: Vec<Write>,
    /// Log batches must be numbered above this sequence: a peer remembers it from before a roll-back.
    pub sequence_floor: Option<WalSequence>,
    /// Log sequences of peers, to be stored with the next write.
    pub peer_sequences: Vec<(NodeId, WalSequence)>,
    /// The log may be trusted again when it is opened, once the writes so far are durable.
    pub log_complete: bool,
    /// Work for the state machines.
    pub apply: Vec<ApplyTask<T>>,
    /// Slow work.
    pub background: Vec<Background>,
    /// Answers.
    pub replies: Vec<(T, Answer)>,
    /// Notices for the rest of the node.
    pub notices: Vec<Notice>,
    /// The log cannot be read, or not by this binary: nothing is lost, but the node must end, and perform no
    /// other effect.
    pub fatal: Option<GroupError>,
}

impl<T> Default for Effects<T> {
    fn default() -> Self {
        Self {
            holds: Vec::new(),
            sends: Vec::new(),
            node_heartbeats: Vec::new(),
            writes: Vec::new(),
            sequence_floor: None,
            peer_sequences: Vec::new(),
            log_complete: false,
            apply: Vec::new(),
            background: Vec::new(),
            replies: Vec::new(),
            notices: Vec::new(),
            fatal: None,
        }
    }
}

/// The status of one replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicaStatus {
    /// The shard.
    pub shard: ShardId,
    /// The replica.
    pub replica: ReplicaId,
    /// The shard's descriptor as this replica has it.
    pub descriptor: ShardDescriptor,
    /// Its group; `None` while it is unverified, or after it was abandoned.
    pub group: Option<GroupStatus>,
    /// The last applied entry.
    pub applied: LogIndex,
    /// The version of its state machine, if it has one of its own; `None` also while it is not loaded.
    pub version: Option<ClusterVersion>,
    /// The last entry that its durable checkpoint covers.
    pub checkpoint: LogIndex,
    /// The shard's epoch in that checkpoint, if the shard is frozen there.
    pub frozen: Option<Epoch>,
    /// Memory and disk that its records take.
    pub usage: Usage,
    /// Whether it needs objects that are damaged.
    pub damaged: bool,
}
