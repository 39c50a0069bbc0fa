//! A pure multi-raft core over raft-rs: inputs in, effects out.
//!
//! [`Group`] is one replica of one shard; [`MultiRaft`] owns all groups of a node and collects their effects.
//! The caller counts ticks and provides the seed of all randomness; a tick visits only the groups whose
//! timers end with it. Log writes are effects; log reads, the only I/O, are synchronous calls of
//! [`flotilla_storage::Log`], because raft-rs reads synchronously.
//!
//! raft-rs and protobuf types stay inside this crate, and the crate `protobuf` 2 (raft-rs uses it) never
//! parses bytes from a peer.

mod change;
mod config;
mod convert;
mod group;
mod multi;
mod shard_change;
mod status;
mod store;
mod timers;

pub use change::{ChangeError, ConfChange};
pub use config::{Config, ConfigError};
pub use group::{Group, GroupError, Lease, Origin, ProposeError};
pub use multi::{CommittedEntries, Effects, Input, MultiRaft, Persist, ReadReady, RoleChange};
pub use shard_change::{Freeze, Merge, ShardChange, Split, Thaw};
pub use status::{Follower, GroupStatus, Role};

#[doc = include_str!("../README.md")]
#[cfg(doctest)]
struct Readme;
