//! The metadata state machine: nodes, join tokens, collections, shards and their placement intent.
//!
//! Invariants: a pure function of the log; ids are never reused; a command is applied whole or refused whole,
//! with a typed reason; a refused command changes nothing. Each shard's own log is authoritative for its
//! range and replicas: the metadata holds the highest epoch the shard reported, next to the intent.
//!
//! Deliberately absent: deciding what to propose (the reconcilers do, with `flotilla_placement`), liveness,
//! checking or issuing certificates, transport. Secrets are never stored, only their hashes.

mod apply;
mod codec;
mod command;
mod feed;
mod follower;
mod machine;
mod operation;
mod records;
mod settings;
mod state;
mod store;
mod view;

pub use apply::{
    ADDRESS_BYTES_MAX, AUTHORITY_BYTES_MAX, BATCH_COMMANDS_MAX, BUCKETS_MAX, COLLECTIONS_MAX, INTENT_MAX,
    KEY_COLLECTIONS_MAX, KEYS_MAX, LABELS_MAX, NAME_BYTES_MAX, NODES_GONE_MAX, NODES_MAX, OBJECTS_FROM_MAX,
    OBJECTS_FROM_MIN, OPERATIONS_ENDED_MAX, SHARDS_MAX, SPLIT_BYTES, SPLIT_KEY_BYTES_MAX, TOKEN_USES_MAX, TOKENS_MAX,
    VALUE_BYTES_CUT_MIN,
};
pub use codec::{COMMAND_BYTES_MAX, CodecError};
pub use command::{
    CollectionSettings, Displaced, Field, JoinRequest, Limit, MetaCommand, MetaRefusal, MetaReply, NewNode, SeenNode,
};
pub use feed::{FEED_BYTES_MAX, FEED_INCREMENTS_MAX, FEED_REPLY_BYTES_MAX, Feed, Increment, MetaQuery};
pub use follower::{FeedError, MetaFollower};
pub use machine::{MetaMachine, Publish};
pub use operation::{OperationChange, OperationReason, OperationRecord, OperationState, OperationWork};
pub use records::{
    Addresses, AuthorityRecord, KeyId, KeyRecord, NodeRecord, NodeRole, NodeStart, NodeState, PlannedMerge,
    PlannedSplit, PreparedAuthority, ShardRecord, TokenId, TokenRecord,
};
pub use settings::Setting;
pub use state::{MetaState, ReplicaStatus};
pub use view::Liveness;

#[doc = include_str!("../README.md")]
#[cfg(doctest)]
struct Readme;
