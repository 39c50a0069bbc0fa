//! The commands of the metadata group and their replies.
//!
//! Invariants: every command is safe to propose again after its answer was lost: it then does nothing, or is
//! refused with a reason that shows it was applied. A command carries no current time; the entry's timestamp
//! is used.

use bytes::Bytes;
use flotilla_placement::Sharding;
use flotilla_types::{
    ClusterId, ClusterVersion, CollectionId, Epoch, Incarnation, Locality, NodeId, OperationId, ReplicaId, Role,
    ShardDescriptor, ShardId, VersionRange,
};
use flotilla_values::Chunking;

use crate::{Addresses, KeyId, NodeRole, NodeState, OperationChange, OperationReason, PreparedAuthority, TokenId};

/// One change of the metadata.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MetaCommand {
    /// The first command of a cluster: names it and records its first node as [`NodeId`] 1, which holds
    /// replica 1 of the metadata group. Answered by [`MetaReply::Node`].
    Bootstrap {
        /// The new cluster.
        cluster: ClusterId,
        /// The node that proposes it.
        node: NewNode,
    },
    /// Records a join token. The proposer has generated its id and secret.
    CreateToken {
        /// Its id.
        id: TokenId,
        /// Hash of its secret.
        hash: [u8; 32],
        /// The time from which it is refused, in Unix milliseconds.
        expires_at_ms: u64,
        /// Joins it allows, at least 1.
        uses: u32,
    },
    /// Deletes a join token.
    RevokeToken {
        /// Its id.
        id: TokenId,
    },
    /// Records a client key. The proposer has generated its id and secret.
    CreateKey {
        /// Its id.
        id: KeyId,
        /// Hash of its secret.
        hash: [u8; 32],
        /// What its holder may do.
        role: Role,
        /// The collections whose records it opens, by name; empty for all. At most
        /// [`crate::KEY_COLLECTIONS_MAX`].
        collections: Vec<String>,
        /// The time from which it is refused, in Unix milliseconds; 0 for never.
        expires_at_ms: u64,
    },
    /// Deletes a client key.
    RevokeKey {
        /// Its id.
        id: KeyId,
    },
    /// Records the authority that [`BeginRotation`](Self::BeginRotation) may put in force. Refused while a
    /// rotation goes on.
    PrepareAuthority {
        /// Certificate of the authority in force (DER, at most [`crate::AUTHORITY_BYTES_MAX`]).
        current: Bytes,
        /// The next one. One that was prepared before is forgotten.
        next: PreparedAuthority,
    },
    /// Puts the prepared authority in force, beside the one before. Refused unless every node of the metadata
    /// group holds its key.
    BeginRotation {
        /// Certificate of the prepared authority.
        certificate: Bytes,
        /// The nodes that hold its key durably.
        holders: Vec<NodeId>,
    },
    /// Records that a node has a certificate of the authority in force. The last node's ends the rotation.
    NodeCertified {
        /// The node.
        node: NodeId,
        /// [`crate::AuthorityRecord::serial`] of the authority.
        serial: u64,
    },
    /// Admits a node. Answered by [`MetaReply::Node`]; a key that was admitted before gets its id back
    /// without spending a use. A node that was active at the same QUIC address becomes [`NodeState::Lost`].
    Join(JoinRequest),
    /// Updates a node's description after it has started.
    UpdateNode {
        /// The node.
        node: NodeId,
        /// The count of its starts. A lower one than recorded is refused: the folder was restored or copied.
        incarnation: Incarnation,
        /// Where it listens.
        addresses: Addresses,
        /// Its locality labels.
        locality: Locality,
        /// The versions that its binary supports, as for [`JoinRequest::versions`].
        versions: Option<VersionRange>,
    },
    /// Changes a node's administrative state. A removed node stays removed.
    SetNodeState {
        /// The node.
        node: NodeId,
        /// The new state.
        state: NodeState,
    },
    /// Removes a node permanently; the same as setting [`NodeState::Removed`].
    RemoveNode {
        /// The node.
        node: NodeId,
    },
    /// Records a start of a node and its software.
    ReportStart {
        /// The node.
        node: NodeId,
        /// The count of its starts. Another one than the recorded is refused.
        incarnation: Incarnation,
        /// The version of its software: at most [`crate::NAME_BYTES_MAX`] bytes that no terminal obeys.
        build: String,
    },
    /// Records what a node does. Refused for a gateway of which a shard has, or wants, a replica, so that no gateway
    /// holds any.
    SetNodeRole {
        /// The node.
        node: NodeId,
        /// The count of its starts. Another one than the recorded is refused.
        incarnation: Incarnation,
        /// What it does.
        role: NodeRole,
    },
    /// Removes a node that was to leave ([`NodeState::Leaving`]) and of which no shard has a replica any
    /// more. Refused for any other node, so that a late proposal does not remove one that was taken back.
    CompleteLeave {
        /// The node.
        node: NodeId,
    },
    /// Creates a collection and its shards. Answered by [`MetaReply::Collection`].
    CreateCollection {
        /// 1 to 64 characters of `a-z 0-9 _ -`.
        name: String,
        /// How keys are distributed.
        sharding: Sharding,
        /// 1 to 1,024 for hash collections, 1 for range collections. A hash collection cannot have more
        /// shards.
        buckets: u16,
        /// 1, 3 or 5.
        replicas: u8,
        /// The nodes of each shard's initial replicas, in the order of the shards: an odd number of distinct
        /// active nodes, at most `replicas`. One to `buckets` shards; the buckets are distributed evenly, in
        /// order.
        initial_nodes: Vec<Vec<NodeId>>,
        /// Its settings, as far as they are said.
        settings: CollectionSettings,
    },
    /// Changes settings of a collection. Large values that are stored stay as they are.
    ChangeCollection {
        /// The collection.
        collection: CollectionId,
        /// What changes.
        settings: CollectionSettings,
    },
    /// Drops a collection and its shards; nodes destroy the replicas.
    DropCollection {
        /// The collection.
        collection: CollectionId,
    },
    /// Adds a replica to a shard's intent. Answered by [`MetaReply::Replica`].
    AssignReplica {
        /// The shard.
        shard: ShardId,
        /// Its new node.
        node: NodeId,
        /// The [`crate::ShardRecord::intent_version`] on which the decision is based.
        intent_version: u64,
    },
    /// Removes a replica from a shard's intent.
    UnassignReplica {
        /// The shard.
        shard: ShardId,
        /// The replica.
        replica: ReplicaId,
    },
    /// Replaces a replica whose node has lost its log by a new one on the same node. Answered by
    /// [`MetaReply::Replica`].
    ReplaceReplica {
        /// The shard.
        shard: ShardId,
        /// The replica that can no longer be trusted.
        replica: ReplicaId,
    },
    /// Replaces a replica of a shard's intent by a new one on another node, and records that as an operation.
    /// Answered by [`MetaReply::Operation`].
    MoveReplica {
        /// The shard.
        shard: ShardId,
        /// The replica that is to go.
        replica: ReplicaId,
        /// Where the new one is to be.
        to: NodeId,
        /// The [`crate::ShardRecord::intent_version`] on which the decision is based.
        intent_version: u64,
        /// Why.
        reason: OperationReason,
    },
    /// Pauses, resumes or cancels an operation. Cancelling a move is refused once the new replica votes, and cancelling
    /// a split always: only the shard's log knows whether it has happened.
    ChangeOperation {
        /// The operation.
        operation: OperationId,
        /// Its [`crate::OperationRecord::changes`] on which the decision is based, so that no late copy of a command
        /// undoes a later one.
        changes: u64,
        /// What to do.
        change: OperationChange,
    },
    /// Plans to split a shard: allocates the ids of the new shard and its replicas, and records that as an operation.
    /// The shard's log decides when it is split; until its report, the new shard has no record. Answered by
    /// [`MetaReply::Operation`].
    SplitShard {
        /// The shard.
        shard: ShardId,
        /// The first record key of the new shard.
        at: Bytes,
        /// The epoch of the recorded descriptor on which the decision is based.
        epoch: Epoch,
        /// Why.
        reason: OperationReason,
    },
    /// Plans to merge a shard's right neighbour into it, and records that as an operation. Both have replicas on the same
    /// nodes. The left shard's log decides whether they are merged. Answered by [`MetaReply::Operation`].
    MergeShards {
        /// The left shard, and the epoch of the recorded descriptor on which the decision is based.
        left: (ShardId, Epoch),
        /// The right one, in the same way.
        right: (ShardId, Epoch),
        /// Why.
        reason: OperationReason,
    },
    /// A replica of the right shard of a planned merge has its durable checkpoint where the shard was frozen for it.
    ReportFrozen {
        /// The left shard.
        left: ShardId,
        /// The right shard's epoch that the merge is planned for.
        right_epoch: Epoch,
        /// The replica.
        replica: ReplicaId,
    },
    /// Records a shard's new configuration or range. A range that ends where a split of the shard is planned ends
    /// that operation, and creates the record of the new shard.
    ReportShard {
        /// The shard's current descriptor, from its own log.
        descriptor: ShardDescriptor,
    },
    /// Changes a setting (see [`crate::Setting`]).
    PutSetting {
        /// Its name.
        key: String,
        /// Its value.
        value: String,
    },
    /// Puts the next cluster version in force. Refused unless the proposer has seen, of every node that is
    /// not gone, a start at least as late as the recorded one with a binary that supports the version. So a
    /// node that joined or restarted in the meantime is noticed.
    SetClusterVersion {
        /// The version.
        version: ClusterVersion,
        /// What the proposer has seen.
        seen: Vec<SeenNode>,
    },
    /// All of these in order, or none. Not nested; at most [`crate::BATCH_COMMANDS_MAX`].
    Batch(Vec<MetaCommand>),
}

/// The description of a new node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewNode {
    /// The name its operator gave it: 1 to 64 bytes.
    pub name: String,
    /// Where it listens; the QUIC address is required.
    pub addresses: Addresses,
    /// Its locality labels.
    pub locality: Locality,
    /// Digest of its public key.
    pub key_digest: [u8; 32],
}

/// A start of a node, as another node has seen it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SeenNode {
    /// The node.
    pub node: NodeId,
    /// Its start.
    pub incarnation: Incarnation,
    /// The versions that its binary supports.
    pub versions: VersionRange,
}

/// A node's request to join.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinRequest {
    /// The token it presented.
    pub token: TokenId,
    /// Hash of the secret it presented.
    pub secret_hash: [u8; 32],
    /// The node.
    pub node: NewNode,
    /// The versions that its binary supports. Given once [`ClusterVersion::NODE_VERSIONS`] is in force (see
    /// [`crate::MetaState::announced`]): binaries of earlier versions would not record them.
    pub versions: Option<VersionRange>,
    /// The nodes at the same address that were found to be gone: they become lost. Counts only if `versions`
    /// are given ([`ClusterVersion::NAMED_DISPLACEMENT`]); without them every node at the address becomes
    /// lost.
    pub displaced: Vec<Displaced>,
    /// What it does. Another role than the default needs [`ClusterVersion::NODE_ROLES`].
    pub role: NodeRole,
}

/// A node that another one displaces, and its start that was found to be over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Displaced {
    /// The node.
    pub node: NodeId,
    /// Its start. After a later one the node is not displaced.
    pub incarnation: Incarnation,
}

/// The result of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MetaReply {
    /// Applied now or before.
    Done,
    /// The node's id.
    Node(NodeId),
    /// The new collection.
    Collection {
        /// Its id.
        collection: CollectionId,
        /// Its shards, in key order.
        shards: Vec<ShardId>,
    },
    /// The new replica's id.
    Replica(ReplicaId),
    /// The operation's id.
    Operation(OperationId),
    /// One reply for each command of a batch.
    Batch(Vec<MetaReply>),
    /// Nothing was changed.
    Refused(MetaRefusal),
}

/// Settings of a collection, as far as they are said.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CollectionSettings {
    /// Longer values, in bytes, are stored as objects: 1,024 to 4,194,304.
    pub objects_from: Option<u32>,
    /// How those are cut: chunks of at least 4 KiB.
    pub chunking: Option<Chunking>,
    /// Shards with more bytes of keys and values than this are split, see [`Collection::split_bytes`]: 1,024 to
    /// 2^40; 0 for never.
    ///
    /// [`Collection::split_bytes`]: flotilla_placement::Collection::split_bytes
    pub split_bytes: Option<u64>,
}

impl CollectionSettings {
    /// Nothing is said.
    pub const NONE: Self = Self { objects_from: None, chunking: None, split_bytes: None };

    /// The lowest cluster version that has these settings; `None` if nothing is said.
    #[must_use]
    pub fn since(&self) -> Option<ClusterVersion> {
        let Self { objects_from, chunking, split_bytes } = self;
        let of_values = (objects_from.is_some() || chunking.is_some()).then_some(ClusterVersion::VALUE_REFS);
        of_values.max(split_bytes.map(|_| ClusterVersion::SIZE_SPLITS))
    }

    /// Those that a binary of `version` knows.
    pub(crate) fn known_to(self, version: ClusterVersion) -> Self {
        let Self { objects_from, chunking, split_bytes } = self;
        let split_bytes = split_bytes.filter(|_| version >= ClusterVersion::SIZE_SPLITS);
        let knows_values = version >= ClusterVersion::VALUE_REFS;
        if knows_values { Self { objects_from, chunking, split_bytes } } else { Self::NONE }
    }
}

/// Why a command changed nothing. Retrying the same command does not help unless a variant says otherwise.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MetaRefusal {
    /// The cluster does not exist yet.
    #[error("the cluster is not bootstrapped")]
    NotBootstrapped,
    /// This is another cluster.
    #[error("this is cluster {0}")]
    OtherCluster(ClusterId),
    /// The token never existed, was revoked, or expired long ago.
    #[error("unknown join token")]
    UnknownToken,
    /// The token has expired.
    #[error("the join token has expired")]
    TokenExpired,
    /// The token has no use left.
    #[error("the join token is used up")]
    TokenUsedUp,
    /// The secret is not the token's.
    #[error("the join token's secret is wrong")]
    WrongSecret,
    /// The id belongs to another token. Generate another one.
    #[error("a join token with this id exists")]
    TokenExists,
    /// The key belongs to a node that was removed or lost. Join with a new key.
    #[error("this key belonged to {0}, which was removed permanently")]
    KeyRemoved(NodeId),
    /// No such node.
    #[error("{0} does not exist")]
    UnknownNode(NodeId),
    /// The node was removed or lost.
    #[error("{node} is {state}")]
    NodeGone {
        /// The node.
        node: NodeId,
        /// Its state.
        state: NodeState,
    },
    /// The node cannot take replicas now.
    #[error("{0} is not active")]
    NodeNotActive(NodeId),
    /// The node takes no replicas.
    #[error("{0} is a gateway, which holds no replicas")]
    NodeIsGateway(NodeId),
    /// A later start of the node is recorded: this folder was restored or copied.
    #[error("start {known} of this node is already recorded")]
    StaleIncarnation {
        /// The recorded start.
        known: Incarnation,
    },
    /// No active node would be left.
    #[error("no active node would be left")]
    LastNode,
    /// No such collection.
    #[error("{0} does not exist")]
    UnknownCollection(CollectionId),
    /// The name is taken.
    #[error("the collection exists as {0}")]
    CollectionExists(CollectionId),
    /// The initial nodes do not fit the collection or the cluster. Choose again from newer metadata.
    #[error(
        "the first replicas of the collection do not fit: each shard needs at least one bucket, and one node, or \
         several of an odd number up to its replicas, all active; nodes may have changed, so try again"
    )]
    BadPlacement,
    /// No such shard.
    #[error("{0} does not exist")]
    UnknownShard(ShardId),
    /// The replica is not in the shard's intent.
    #[error("{0} is not in the shard's intent")]
    UnknownReplica(ReplicaId),
    /// The node already has a replica of the shard.
    #[error("the node holds {0} of this shard")]
    ReplicaExists(ReplicaId),
    /// It is the last replica of the shard's intent.
    #[error("this is the last replica of the shard")]
    LastReplica,
    /// The intent has changed since the decision. Decide again.
    #[error("the shard's intent is at version {found}")]
    IntentChanged {
        /// Its current version.
        found: u64,
    },
    /// The report is not newer than the recorded epoch.
    #[error("the shard is recorded at epoch {}.{}", known.range, known.config)]
    StaleEpoch {
        /// The recorded epoch.
        known: Epoch,
    },
    /// A binary does not support the version in force. Install one that does.
    #[error(
        "the cluster is at version {in_force} and this binary supports {supported}; install a binary that supports {in_force}"
    )]
    VersionNotSupported {
        /// The version in force.
        in_force: ClusterVersion,
        /// What the binary supports.
        supported: VersionRange,
    },
    /// The node was not seen, since its last recorded start, with a binary that supports the version. Ask
    /// again when it was.
    #[error("{node} was not seen with a binary that supports version {version}")]
    VersionNotSeen {
        /// The first such node.
        node: NodeId,
        /// The version.
        version: ClusterVersion,
    },
    /// Versions rise one step at a time.
    #[error("the cluster is at version {in_force}; the next is {}", in_force.next())]
    VersionNotNext {
        /// The version in force.
        in_force: ClusterVersion,
    },
    /// The command needs a later version than the one in force.
    #[error("the command needs version {needed}, and the cluster is at version {in_force}")]
    VersionNotInForce {
        /// The version that it needs.
        needed: ClusterVersion,
        /// The version in force.
        in_force: ClusterVersion,
    },
    /// No such client key.
    #[error("there is no such client key")]
    UnknownKey,
    /// Another client key has this id.
    #[error("another client key has this id")]
    KeyExists,
    /// Without this key no other one could be created.
    #[error("this is the last admin key; create another one first")]
    LastAdminKey,
    /// The node is not to leave, or not any more.
    #[error("{0} is not leaving")]
    NodeNotLeaving(NodeId),
    /// A shard still has, or wants, a replica on the node.
    #[error("{0} still holds replicas")]
    NodeHoldsReplicas(NodeId),
    /// The authority was replaced, or another one was prepared since. Start again from newer metadata.
    #[error("the cluster's authority is another one, or another one was prepared")]
    OtherAuthority,
    /// The last rotation has not ended.
    #[error("a rotation of the authority is in progress")]
    RotationInProgress,
    /// A node of the metadata group does not hold the key of the prepared authority. Give it the key.
    #[error("{0} does not hold the key of the next authority")]
    AuthorityNotHeld(NodeId),
    /// Another node is at the address, and was not found to be gone. Ask again when it is, or join from
    /// another address.
    #[error("{0} is at this address")]
    AddressInUse(NodeId),
    /// The shard does not have the replicas yet that it should have. Try again when it does.
    #[error("the replicas of {0} are changing already")]
    ShardChanging(ShardId),
    /// No such operation, or it ended long ago.
    #[error("there is no operation {0}, or it ended long ago")]
    UnknownOperation(OperationId),
    /// The operation has ended.
    #[error("{0} has ended")]
    OperationEnded(OperationId),
    /// Another operator has changed the operation since. Look at it again.
    #[error("{0} was changed since; look at it again")]
    OperationChanged(OperationId),
    /// The new replica votes already, or the old one is gone, or the shard may be split already.
    #[error("{0} can no longer be cancelled: its shard may have done what cannot be undone")]
    OperationTooLate(OperationId),
    /// A split of the shard is planned. Wait for it.
    #[error("{0} splits the shard already")]
    SplitPlanned(OperationId),
    /// The shard holds data of the cluster itself.
    #[error("{0} holds data of the cluster itself, which is not split")]
    NotSplittable(ShardId),
    /// The shards do not follow each other in one collection of users. Name two that do.
    #[error("{right} is not the right neighbour of {left} in one collection")]
    NotNeighbours {
        /// The left shard.
        left: ShardId,
        /// The right one.
        right: ShardId,
    },
    /// Shards that are to be merged have replicas on different nodes. Move them first.
    #[error(
        "{shard} has no replica on {node}, where the other shard has one: move replicas of one of them until both are \
         on the same nodes"
    )]
    ReplicasApart {
        /// The shard without a replica there.
        shard: ShardId,
        /// The node.
        node: NodeId,
    },
    /// The shard takes part in a merge. Wait for it.
    #[error("{0} merges the shard already")]
    MergePlanned(OperationId),
    /// Merges do not pause.
    #[error("{0} merges shards, which cannot pause; it can be cancelled")]
    OperationNotPaused(OperationId),
    /// No such setting.
    #[error("there is no such setting")]
    UnknownSetting,
    /// A field violates its rules.
    #[error("the {0}")]
    Invalid(Field),
    /// The cluster is at its limit.
    #[error("there may be at most {0}")]
    LimitReached(Limit),
    /// The command does not parse.
    #[error("the command does not parse")]
    Malformed,
    /// A command of the batch was refused; none was applied.
    #[error("command {position} of the batch: {refusal}")]
    InBatch {
        /// Its index in the batch.
        position: u32,
        /// Why.
        refusal: Box<MetaRefusal>,
    },
}

macro_rules! numbered_enum {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $number:literal, $text:literal;)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)*
        }

        impl $name {
            pub(crate) fn number(self) -> u64 {
                match self {
                    $(Self::$variant => $number,)*
                }
            }

            pub(crate) fn from_number(number: u64) -> Option<Self> {
                match number {
                    $($number => Some(Self::$variant),)*
                    _ => None,
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(match self {
                    $(Self::$variant => $text,)*
                })
            }
        }
    };
}

numbered_enum! {
    /// A field with rules.
    Field {
        /// A node's name: 1 to 64 bytes without control characters.
        NodeName = 1, "name of a node must have 1 to 64 bytes and no control characters";
        /// An address: at most 255 bytes; the QUIC address must not be empty.
        Address = 2, "addresses of a node must have at most 255 bytes each, and the one for other nodes at least one";
        /// A locality: at most 16 labels of 64 bytes each.
        Locality = 3, "locality must have at most 16 labels, of 64 bytes each and without control characters";
        /// Uses of a token: 1 to 1,000,000.
        TokenUses = 4, "number of uses must be 1 to 1,000,000";
        /// A token's expiry: after now.
        TokenExpiry = 5, "expiry of the token must be after now";
        /// A collection's name: 1 to 64 characters of `a-z 0-9 _ -`.
        CollectionName = 6, "name of a collection must have 1 to 64 characters of a-z, 0-9, _ and -";
        /// A collection's buckets: 1 to 1,024, and 1 for range collections.
        Buckets = 7, "number of buckets must be 1 to 1,024, and 1 for a range collection";
        /// A collection's replicas: 1, 3 or 5.
        Replicas = 8, "number of replicas must be 1, 3 or 5";
        /// A reported descriptor: known replicas and nodes, at least one voter, a range that is not empty.
        Descriptor = 9, "reported shard descriptor must name known replicas on known nodes once each, at least one voter, and the keys of the shard";
        /// A setting's value.
        Setting = 10, "value of the setting must be in its range, which the list of settings shows";
        /// A state that is not reachable from the node's current state.
        NodeState = 11, "state of a node must be reachable from its present one";
        /// A client key's expiry: never or after now.
        KeyExpiry = 12, "expiry of the key must be after now";
        /// A client key's collections: valid names, at most [`crate::KEY_COLLECTIONS_MAX`], none for roles
        /// that see no records.
        KeyCollections = 13, "collections of a key must be at most 64 names of collections, and none for a role that sees no records";
        /// The version of a node's software: at most 64 bytes that no terminal obeys.
        Build = 14, "version of the software must have at most 64 bytes and no control characters";
        /// An authority's certificate: 1 to [`crate::AUTHORITY_BYTES_MAX`] bytes, and not the current one.
        Authority = 15, "certificate of the authority must have 1 to 4,096 bytes and differ from the one in force";
        /// From which length on values are objects: 1,024 to 4,194,304 bytes.
        ObjectsFrom = 16, "length from which on values are stored as objects must be 1,024 to 4,194,304 bytes";
        /// How values are cut: chunks of at least 4 KiB, so that every value can be.
        Chunking = 17, "chunks of large values must have at least 4,096 bytes each";
        /// Where a shard is split: a record key inside its range, of at most [`crate::SPLIT_KEY_BYTES_MAX`] bytes.
        SplitKey = 18, "key at which a shard is split must lie between its keys, not be its first one, and have at most 4,102 bytes with its collection and bucket";
        /// The weight of a node: at most [`NodeRole::WEIGHT_MAX`].
        Weight = 19, "weight of a node must be at most 1,000";
        /// What shards may grow to: [`crate::SPLIT_BYTES`], or 0.
        SplitBytes = 20, "bytes that a shard may grow to must be 1,024 to 1,099,511,627,776, or 0 for no bound";
    }
}

numbered_enum! {
    /// A limit on a count.
    Limit {
        /// [`crate::NODES_MAX`].
        Nodes = 1, "1,000 nodes";
        /// [`crate::TOKENS_MAX`].
        Tokens = 2, "1,000 join tokens";
        /// [`crate::COLLECTIONS_MAX`].
        Collections = 3, "1,000 collections";
        /// [`crate::SHARDS_MAX`].
        Shards = 4, "20,000 shards";
        /// [`crate::INTENT_MAX`].
        Replicas = 5, "10 replicas of a shard";
        /// [`crate::BATCH_COMMANDS_MAX`].
        Batch = 6, "1,024 commands in a batch";
        /// [`crate::KEYS_MAX`].
        Keys = 7, "1,000 client keys";
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        AUTHORITY_BYTES_MAX, BATCH_COMMANDS_MAX, BUCKETS_MAX, COLLECTIONS_MAX, INTENT_MAX, KEY_COLLECTIONS_MAX,
        KEYS_MAX, LABELS_MAX, NAME_BYTES_MAX, NODES_MAX, OBJECTS_FROM_MAX, OBJECTS_FROM_MIN, SHARDS_MAX,
        SPLIT_KEY_BYTES_MAX, TOKEN_USES_MAX, TOKENS_MAX,
    };

    /// A number with commas between thousands.
    fn grouped(number: u64) -> String {
        let (rest, last) = (number / 1_000, number % 1_000);
        if rest == 0 { last.to_string() } else { format!("{},{last:03}", grouped(rest)) }
    }

    #[test]
    fn refusals_of_a_value_name_its_bounds() {
        let named = |refusal: MetaRefusal, bound: u64| {
            let text = refusal.to_string();
            assert!(text.contains(&grouped(bound)), "{text}");
        };
        for (field, bound) in [
            (Field::NodeName, NAME_BYTES_MAX as u64),
            (Field::Locality, LABELS_MAX as u64),
            (Field::TokenUses, TOKEN_USES_MAX.into()),
            (Field::CollectionName, NAME_BYTES_MAX as u64),
            (Field::Buckets, BUCKETS_MAX.into()),
            (Field::KeyCollections, KEY_COLLECTIONS_MAX as u64),
            (Field::Authority, AUTHORITY_BYTES_MAX as u64),
            (Field::ObjectsFrom, OBJECTS_FROM_MIN.into()),
            (Field::ObjectsFrom, OBJECTS_FROM_MAX.into()),
            (Field::Chunking, Chunking::default().min().into()),
            (Field::SplitKey, SPLIT_KEY_BYTES_MAX as u64),
        ] {
            named(MetaRefusal::Invalid(field), bound);
        }
        for (limit, bound) in [
            (Limit::Nodes, NODES_MAX),
            (Limit::Tokens, TOKENS_MAX),
            (Limit::Collections, COLLECTIONS_MAX),
            (Limit::Shards, SHARDS_MAX),
            (Limit::Replicas, INTENT_MAX),
            (Limit::Batch, BATCH_COMMANDS_MAX),
            (Limit::Keys, KEYS_MAX),
        ] {
            named(MetaRefusal::LimitReached(limit), bound as u64);
        }
        for number in 1.. {
            let Some(field) = Field::from_number(number) else { break };
            let text = MetaRefusal::Invalid(field).to_string();
            assert!(text.contains(" must "), "it says what must hold: {text}");
        }
    }
}
