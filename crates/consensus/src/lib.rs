//! A pure multi-raft core over raft-rs: many groups, inputs in, effects out.
//!
//! [`Group`] is one replica of one shard; [`MultiRaft`] owns all groups of a node and collects their effects.
//! Time is ticks that the caller counts and randomness is a seed. Log reads are synchronous calls through
//! [`flotilla_storage::Log`], because raft-rs reads in line; log writes are effects.
//!
//! raft-rs and protobuf types stay inside this crate, and protobuf 2 never parses bytes from a peer.

mod change;
mod config;
mod convert;
mod group;
mod multi;
mod status;
mod store;

pub use change::{ChangeError, ConfChange};
pub use config::{Config, ConfigError};
pub use group::{Group, GroupError, Lease, Origin, ProposeError};
pub use multi::{CommittedEntries, Effects, Input, MultiRaft, Persist, ReadReady, RoleChange};
pub use status::{Follower, GroupStatus, Role};

#[doc = include_str!("../README.md")]
#[cfg(doctest)]
struct Readme;
