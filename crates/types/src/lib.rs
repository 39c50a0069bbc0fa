//! The shared types of Flotilla: ids, epochs, key ranges, hybrid time, object ids and plain Raft data.
//!
//! Everything here is data with its own invariants; nothing here does I/O, reads a clock or knows a wire
//! format. A type belongs here only if two layers that must not depend on each other share it.

mod address;
mod checkpoint;
mod ids;
mod label;
mod object;
mod operation;
mod raft;
mod range;
mod reference;
mod role;
mod shard;
mod time;
mod version;

pub use address::{HostPort, ParseHostPortError};
pub use checkpoint::{Checkpoint, CheckpointFormat, Folding, Position, TableKind, TableRef, Tables};
pub use ids::{
    ClusterId, CollectionId, Incarnation, LogIndex, NodeId, OperationId, ParseIdError, ReplicaId, SessionId, ShardId,
    Term, WalSequence,
};
pub use label::{escape_hidden, is_printable};
pub use object::{Holder, ObjectId};
pub use operation::{OperationKind, OperationPhase};
pub use raft::{ConfState, Entry, EntryKind, HardState, Message, MessageKind, Snapshot};
pub use range::{Bucket, KeyRange, RecordKey};
pub use reference::{ByteOrder, ObjectRef, Refs, RefsError};
pub use role::{Role, UnknownRole};
pub use shard::{Epoch, Locality, ReplicaDescriptor, ReplicaRole, ShardDescriptor};
pub use time::Timestamp;
#[cfg(feature = "version-limit")]
pub use version::limit_supported;
pub use version::{ClusterVersion, VersionRange};
