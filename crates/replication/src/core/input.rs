//! Inputs of the core: plain data, so that a simulator can produce them.

use bytes::Bytes;
use flotilla_consensus::{ConfChange, ShardChange};
use flotilla_storage::{CompactionDue, DamagedReplica, Usage};
use flotilla_types::{
    Checkpoint, ClusterVersion, Epoch, Holder, Incarnation, LogIndex, Message, NodeId, Refs, ReplicaId,
    ShardDescriptor, ShardId, Term, Timestamp, VersionRange, WalSequence,
};

use super::Count;

/// What has become of a [`Gather`](super::Gather).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GatherEnd {
    /// All of it is here, durable, and what it is said to be.
    Complete,
    /// Some of it could not be had, or is not what it is said to be.
    Incomplete,
    /// The disk here did not take what came: it is full, say.
    NotStored,
}

/// Why a request to a shard was not answered. Only `Unknown` means that state may have changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The shard has no replica on this node. Nothing changed; route again.
    #[error("this node holds no replica of the shard")]
    UnknownShard,
    /// This node does not lead the shard. Nothing changed; ask the leader, if one is named.
    #[error("this node does not lead the shard")]
    NotLeader {
        /// The node that does, as far as this one knows.
        leader: Option<NodeId>,
    },
    /// A bound is reached. Nothing changed; try again later.
    #[error("the shard is busy; try again")]
    Busy,
    /// The caller's shard map is older than the shard's descriptor. Nothing changed; route again.
    #[error("the request was routed by an outdated shard map")]
    StaleEpoch {
        /// The descriptors that replaced the one that the caller routed by: the shard's own, and those of
        /// shards that took over a part of its keys.
        now: Box<[ShardDescriptor]>,
    },
    /// The deadline passed before anything was proposed. Nothing changed.
    #[error("the deadline passed")]
    Deadline,
    /// The command needs a later cluster version than the one in force, as far as this node knows. Nothing
    /// changed; a node whose metadata lags may accept it later.
    #[error("the command needs a later version than the cluster's")]
    VersionNotInForce,
    /// The command must follow a time that is too far ahead of this node's clock, which would bind the shard
    /// to it. Nothing changed; send it without that time, or when the clock has come closer.
    #[error("the command must follow a time that is too far ahead")]
    AfterAhead,
    /// The command was proposed and leadership was lost: it may or may not take effect.
    #[error("the outcome is not known")]
    Unknown,
    /// The node is stopping, or the replica failed. Nothing changed: a proposed write gets
    /// [`RequestError::Unknown`].
    #[error("the replica stopped")]
    Stopped,
    /// A read met a damaged object on this node's disk. Nothing changed; try again: another replica takes this
    /// one's place, if there is one.
    #[error("what the read needs is damaged on the disk")]
    Damaged,
    /// The objects that the command refers to are not all here, and not to be had, or are not what it says. Nothing
    /// changed; store them again, and send the command again.
    #[error("objects that the command refers to are missing")]
    ObjectsMissing,
    /// The snapshot that the query names is not open at this replica (any more). Nothing changed; open another
    /// one, which sees a later state.
    #[error("the snapshot has expired")]
    SnapshotExpired,
}

/// What a shard answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answered {
    /// The outcome or answer, in the state machine's format.
    pub payload: Bytes,
    /// Hybrid time of the last entry that the answer can depend on.
    pub clock: Timestamp,
}

/// The answer to a request.
pub type Answer = Result<Answered, RequestError>;

/// A write or a read of a state machine. `T` is what the caller needs to deliver the answer.
#[derive(Debug)]
pub struct Request<T> {
    /// The shard.
    pub shard: ShardId,
    /// The range epoch that the caller routed by, or `None` not to check it.
    pub range_epoch: Option<u64>,
    /// Hybrid time that a command must follow: its own is later. Zero for none, and for a query.
    pub after: Timestamp,
    /// The command or query, in the state machine's format.
    pub payload: Bytes,
    /// What a command refers to.
    pub refs: CommandRefs,
    /// When to give up, on the core's monotonic clock, milliseconds.
    pub deadline_ms: u64,
    /// Given back with the answer.
    pub reply: T,
}

/// What a command refers to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CommandRefs {
    /// The references: all that the records refer to which it writes, unless other records refer to it already.
    pub refs: Refs,
    /// A node that holds all of them until the command is answered. Others are asked as well.
    pub held_by: Option<NodeId>,
    /// Who holds them here until the command is proposed.
    pub(super) holder: Option<Holder>,
}

impl CommandRefs {
    /// References of a command, and a node that holds what they name.
    #[must_use]
    pub fn new(refs: Refs, held_by: NodeId) -> Self {
        Self { refs, held_by: Some(held_by), holder: None }
    }
}

/// How fresh a read must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    /// Linearizable: a quorum confirms the leader first, or it holds a lease.
    Strong,
    /// Whatever this replica has applied.
    Local,
}

/// The heartbeat of a node: its state, and the result of checking the receiver's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeHeartbeat {
    /// How often the sender has started.
    pub incarnation: Incarnation,
    /// The last log batch that it recovered when it started.
    pub recovered: WalSequence,
    /// The last log batch that it has synced since.
    pub synced: WalSequence,
    /// Its wall clock, Unix milliseconds.
    pub wall_ms: u64,
    /// Whether each of its replicas has been verified or abandoned since it started.
    pub recovery_complete: bool,
    /// The receiver's incarnation as last seen by the sender; zero when it has seen none.
    pub your_incarnation: Incarnation,
    /// The receiver's log sequence that the sender remembers, if the receiver recovered less.
    pub you_lost_up_to: Option<WalSequence>,
    /// Shards that it leads: those that are new, and some of the others in turn.
    pub leaders: Vec<(ShardId, Term)>,
    /// Shards whose groups rested under a leader here that is gone.
    pub not_led: Vec<ShardId>,
    /// The cluster versions that its binary supports.
    pub versions: VersionRange,
}

/// An event for the core.
#[derive(Debug)]
pub enum Input<T> {
    /// A tick passed.
    Tick,
    /// A Raft message arrived; the transport has authenticated the sender.
    Raft {
        /// The sender.
        from: NodeId,
        /// Its shard.
        shard: ShardId,
        /// The message.
        message: Message,
    },
    /// A peer made promises in messages that follow: its log is synced up to this batch.
    PeerSynced {
        /// The peer.
        from: NodeId,
        /// The batch.
        sequence: WalSequence,
    },
    /// A node heartbeat arrived.
    NodeHeartbeat {
        /// The sender.
        from: NodeId,
        /// The heartbeat.
        heartbeat: NodeHeartbeat,
    },
    /// The cluster version in force, by newer metadata. Until the first of these it is
    /// [`ClusterVersion::FIRST`].
    ClusterVersion(ClusterVersion),
    /// The peers to send node heartbeats to.
    Peers(Vec<NodeId>),
    /// A connection to a peer came up or went down.
    Peer {
        /// The peer.
        node: NodeId,
        /// Whether it came up.
        connected: bool,
    },
    /// A write.
    Propose(Request<T>),
    /// A read.
    Read(Request<T>, Freshness),
    /// Log writes are durable.
    Written {
        /// The sequence of the batch that carried them.
        sequence: WalSequence,
        /// The writes.
        done: Vec<Done>,
    },
    /// A state machine applied entries.
    Applied {
        /// The replica.
        replica: ReplicaId,
        /// The last applied entry.
        index: LogIndex,
        /// Hybrid time of the last applied command.
        clock: Timestamp,
        /// The version of the state machine, if it has one of its own.
        version: Option<ClusterVersion>,
        /// When its upkeep is due, Unix milliseconds of hybrid time.
        upkeep_due_ms: Option<u64>,
        /// Bytes of the entries applied.
        bytes: usize,
        /// Memory and disk that its records take now.
        usage: Usage,
    },
    /// A replica's records are loaded and its state machine is restored.
    Opened {
        /// The replica.
        replica: ReplicaId,
        /// The last applied entry.
        index: LogIndex,
        /// Hybrid time of the last applied command.
        clock: Timestamp,
        /// The version of the state machine, if it has one of its own.
        version: Option<ClusterVersion>,
        /// When its upkeep is due, Unix milliseconds of hybrid time.
        upkeep_due_ms: Option<u64>,
    },
    /// A memtable was frozen for a checkpoint, or could not be for now.
    Frozen {
        /// The replica.
        replica: ReplicaId,
        /// Whether it was frozen.
        frozen: bool,
    },
    /// A checkpoint's objects are durable; `None` when building failed and may be tried again.
    Built {
        /// The replica.
        replica: ReplicaId,
        /// The checkpoint.
        checkpoint: Option<Checkpoint>,
        /// If its shard was split there: the first checkpoint of the replica that is split off.
        split: Option<Box<Checkpoint>>,
    },
    /// The engine has installed a checkpoint that was built here.
    CheckpointInstalled {
        /// The replica.
        replica: ReplicaId,
        /// What is to be done with its tables.
        due: CompactionDue,
    },
    /// A fold that the log has ordered is pinned: its base can be made once a checkpoint behind it is
    /// installed.
    FoldPinned {
        /// The replica.
        replica: ReplicaId,
    },
    /// A compaction has ended.
    Compacted {
        /// The replica.
        replica: ReplicaId,
        /// Whether it has made something for the next checkpoint.
        done: bool,
    },
    /// The objects that a snapshot names are here, or could not be fetched.
    Pulled {
        /// The replica.
        replica: ReplicaId,
        /// The snapshot's checkpoint.
        checkpoint: Checkpoint,
        /// Whether its objects are here, durable and held.
        complete: bool,
    },
    /// A [`Gather`](super::Gather) has ended.
    Gathered {
        /// Who needs it.
        holder: Holder,
        /// The number of the order.
        number: u64,
        /// What has become of it.
        end: GatherEnd,
    },
    /// A peer was served objects of the snapshot that its replica was offered.
    ObjectsServed {
        /// The peer.
        node: NodeId,
        /// Its replica.
        to: ReplicaId,
        /// Whether none of the objects is missing or damaged here.
        complete: bool,
    },
    /// A snapshot message was sent, or could not be.
    SnapshotSent {
        /// The sending replica.
        replica: ReplicaId,
        /// The receiving replica.
        to: ReplicaId,
        /// Whether the network took it.
        sent: bool,
    },
    /// Raft messages to a node were dropped.
    Unreachable {
        /// The node.
        node: NodeId,
        /// The sending and the receiving replica of each message.
        replicas: Vec<(ReplicaId, ReplicaId)>,
    },
    /// The log cannot free space because of this replica's oldest entries: truncate what its checkpoint
    /// covers, or else checkpoint it.
    ReleaseLog {
        /// The replica.
        replica: ReplicaId,
    },
    /// The replicas that need damaged objects, all there are now; a replica that is not named any more is
    /// whole again.
    Damaged(Vec<DamagedReplica>),
    /// A replica's records cannot be loaded, or an entry cannot be applied, for want of a damaged object.
    Halted {
        /// The replica.
        replica: ReplicaId,
    },
    /// A replica failed: its state machine, records or disk.
    Broken {
        /// The replica.
        replica: ReplicaId,
    },
    /// A replica's state differs from that of a majority of its shard.
    Diverged {
        /// The replica.
        replica: ReplicaId,
    },
    /// Create a replica, by an operation of the metadata group.
    Create {
        /// The replica.
        replica: ReplicaId,
        /// A founder's initial shard descriptor, with this replica among the voters; a learner's last known
        /// one.
        descriptor: ShardDescriptor,
        /// Whether it is one of the shard's first replicas. All others start with a snapshot.
        founding: bool,
    },
    /// Destroy a replica; its id can never be used again.
    Destroy {
        /// The replica.
        replica: ReplicaId,
    },
    /// Trust the data folder again after a roll-back: earlier inputs have destroyed every replica that it
    /// forgot.
    TrustFolder,
    /// Change the replica set of a shard that this node leads.
    Change {
        /// The shard.
        shard: ShardId,
        /// The change.
        change: ConfChange,
    },
    /// Change a shard that this node leads, in another way than its replica set. Ignored below the cluster
    /// version [`SHARD_ENTRIES`](ClusterVersion::SHARD_ENTRIES); the shard's descriptor tells what was done.
    ChangeShard {
        /// The shard.
        shard: ShardId,
        /// The change.
        change: ShardChange,
    },
    /// A split of a shard is planned: its replica here counts ahead what it will give up, as far as its state machine
    /// does. May be repeated.
    PrepareSplit {
        /// The shard.
        shard: ShardId,
        /// The first key of the new shard.
        at: Bytes,
    },
    /// A merge is planned in which a shard takes part: its replica here checkpoints now if that would take long later,
    /// when keys are not served. May be repeated.
    PrepareMerge {
        /// The shard.
        shard: ShardId,
        /// The epoch that the merge is planned for.
        epoch: Epoch,
    },
    /// A count was begun.
    CountBegun(Count),
    /// A count has ended, done or not, or there is nothing to count.
    Counted {
        /// The replica.
        replica: ReplicaId,
        /// The first key that it would give up.
        at: Bytes,
    },
    /// Transfer the leadership of a shard to a node.
    Transfer {
        /// The shard.
        shard: ShardId,
        /// The new leader.
        to: NodeId,
    },
    /// Transfer every leadership to other nodes, now and repeatedly later: the node is about to stop.
    StepDown,
}

/// A write that became durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Done {
    /// The log write of one round of a Raft group.
    Round {
        /// The replica.
        replica: ReplicaId,
        /// The round's number.
        number: u64,
        /// The snapshot that it installed.
        installed: Option<Checkpoint>,
    },
    /// A new replica.
    Created {
        /// The replica.
        replica: ReplicaId,
    },
    /// A checkpoint pointer.
    Checkpointed {
        /// The replica.
        replica: ReplicaId,
        /// The checkpoint.
        checkpoint: Checkpoint,
        /// The last truncated entry.
        truncate: (LogIndex, Term),
    },
    /// A truncation without a new checkpoint.
    Truncated {
        /// The replica.
        replica: ReplicaId,
        /// The last truncated entry.
        to: (LogIndex, Term),
    },
    /// A tombstone.
    Destroyed {
        /// The replica.
        replica: ReplicaId,
    },
}
