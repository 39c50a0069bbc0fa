//! What goes into the core: plain data, so that a simulator can stand in front of it.

use bytes::Bytes;
use flotilla_consensus::ConfChange;
use flotilla_storage::Usage;
use flotilla_types::{
    Checkpoint, Incarnation, LogIndex, Message, NodeId, ReplicaId, ShardDescriptor, ShardId, Term, Timestamp,
    WalSequence,
};

/// Why a request to a shard was not answered. `Unknown` alone means that state may have changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
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
    /// The caller's view of the shard is older than the shard's own. Nothing changed; refresh and route again.
    #[error("the request was routed by an outdated shard map")]
    StaleEpoch,
    /// The deadline passed before anything was proposed. Nothing changed.
    #[error("the deadline passed")]
    Deadline,
    /// The command was proposed and leadership was lost: it may or may not take effect.
    #[error("the outcome is not known")]
    Unknown,
    /// The node stops, or the replica failed. For a write that was proposed, [`RequestError::Unknown`] is answered instead.
    #[error("the replica stopped")]
    Stopped,
}

/// The answer to a request.
pub type Answer = Result<Bytes, RequestError>;

/// A write or a read on its way to a state machine. `T` is whatever the caller needs to deliver the answer.
#[derive(Debug)]
pub struct Request<T> {
    /// The shard.
    pub shard: ShardId,
    /// The range epoch that the caller routed by, or `None` not to check it.
    pub range_epoch: Option<u64>,
    /// The command or query, in the state machine's format.
    pub payload: Bytes,
    /// On the core's monotonic clock, milliseconds.
    pub deadline_ms: u64,
    /// Given back with the answer.
    pub reply: T,
}

/// How fresh a read must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    /// Linearizable: a quorum confirms the leader first, or has confirmed it so lately that nobody else can lead.
    Strong,
    /// Whatever this replica has applied.
    Local,
}

/// What a peer says of itself, and of us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Beat {
    /// How often the sender has started.
    pub incarnation: Incarnation,
    /// The last log batch it found when it started.
    pub recovered: WalSequence,
    /// The last log batch it synced since.
    pub synced: WalSequence,
    /// Its wall clock, Unix milliseconds.
    pub wall_ms: u64,
    /// Whether each of its replicas was greeted (or given up) since it started.
    pub settled: bool,
    /// Our incarnation as it heard of it; zero when it has not.
    pub your_incarnation: Incarnation,
    /// What it remembers of our log, when that is more than we recovered.
    pub you_lost_up_to: Option<WalSequence>,
    /// Shards that it leads.
    pub leaders: Vec<(ShardId, Term)>,
}

/// Something happened.
#[derive(Debug)]
pub enum Input<T> {
    /// A tick passed.
    Tick,
    /// A Raft message arrived; the transport vouches for the node.
    Raft {
        /// Who sent it.
        from: NodeId,
        /// Its shard.
        shard: ShardId,
        /// The message.
        message: Message,
    },
    /// A beat arrived.
    Beat {
        /// Who sent it.
        from: NodeId,
        /// What it says.
        beat: Beat,
    },
    /// The peers that beats go to.
    Peers(Vec<NodeId>),
    /// A connection to a peer came up or went down.
    Peer {
        /// The peer.
        node: NodeId,
        /// Up or down.
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
        /// What they were.
        done: Vec<Done>,
    },
    /// A state machine got on.
    Applied {
        /// Whose.
        replica: ReplicaId,
        /// The last applied entry.
        index: LogIndex,
        /// Hybrid time of the last applied command.
        clock: Timestamp,
        /// Bytes of the entries applied.
        bytes: usize,
        /// What its records take now.
        usage: Usage,
    },
    /// A replica's records are loaded, and its state machine stands at this position.
    Opened {
        /// Whose.
        replica: ReplicaId,
        /// The last applied entry.
        index: LogIndex,
        /// Hybrid time of the last applied command.
        clock: Timestamp,
    },
    /// A memtable was closed for a checkpoint, or could not be just now.
    Frozen {
        /// Whose.
        replica: ReplicaId,
        /// Whether it was.
        frozen: bool,
    },
    /// A checkpoint's objects are durable; `None` when building failed and may be tried again.
    Built {
        /// Whose.
        replica: ReplicaId,
        /// The checkpoint.
        checkpoint: Option<Checkpoint>,
    },
    /// The view has caught up with a checkpoint.
    Settled {
        /// Whose.
        replica: ReplicaId,
    },
    /// The objects that a snapshot names are here, or could not be had.
    Pulled {
        /// Whose.
        replica: ReplicaId,
        /// What the snapshot offers.
        checkpoint: Checkpoint,
        /// Whether its objects are here, durable and pinned.
        complete: bool,
    },
    /// A snapshot message went out, or not.
    SnapshotSent {
        /// Who sent it.
        replica: ReplicaId,
        /// To whom.
        to: ReplicaId,
        /// Whether it was handed to the network.
        sent: bool,
    },
    /// Raft messages to a node were dropped.
    Unreachable {
        /// The node.
        node: NodeId,
        /// Sending and receiving replica of each.
        replicas: Vec<(ReplicaId, ReplicaId)>,
    },
    /// The log cannot give space back because of this replica.
    WantCheckpoint {
        /// Whose.
        replica: ReplicaId,
    },
    /// A replica cannot go on: its state machine, records or disk failed.
    Broken {
        /// Whose.
        replica: ReplicaId,
    },
    /// Create a replica, by an operation of the metadata group.
    Create {
        /// The replica.
        replica: ReplicaId,
        /// The shard as it is created, with this replica among its voters; or as far as known, for a learner.
        descriptor: ShardDescriptor,
        /// Whether it is one of the shard's first replicas; otherwise it waits for a snapshot.
        founding: bool,
    },
    /// Destroy a replica for ever.
    Destroy {
        /// The replica.
        replica: ReplicaId,
    },
    /// All replicas that this node should hold and does not know have been destroyed, by inputs before this one: after a roll-back
    /// it may create again.
    TrustFolder,
    /// Change the replica set of a shard that this node leads.
    Change {
        /// The shard.
        shard: ShardId,
        /// The change.
        change: ConfChange,
    },
    /// Hand the leadership of a shard to a node.
    Transfer {
        /// The shard.
        shard: ShardId,
        /// To whom.
        to: NodeId,
    },
    /// Hand every leadership to somebody else, and take none: the node is about to leave.
    StepDown,
}

/// A write that became durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Done {
    /// A round of a group.
    Round {
        /// Whose.
        replica: ReplicaId,
        /// Its number.
        number: u64,
        /// The checkpoint it installed.
        installed: Option<Checkpoint>,
    },
    /// A new replica.
    Created {
        /// Whose.
        replica: ReplicaId,
    },
    /// A checkpoint pointer.
    Checkpointed {
        /// Whose.
        replica: ReplicaId,
        /// The checkpoint.
        checkpoint: Checkpoint,
        /// The last entry that is gone.
        truncate: (LogIndex, Term),
    },
    /// A tombstone.
    Destroyed {
        /// Whose.
        replica: ReplicaId,
    },
}
