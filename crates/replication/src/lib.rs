//! The shard host: drives consensus, log, state engine and transport for every replica of a node.
//!
//! [`Core`] and [`Applier`] decide; [`Host`] performs, with real threads, disks and sockets. The host is generic over the
//! state machine: it knows neither keys nor metadata. A write passes through in this order: [`Handle::propose`] →
//! raft thread (merged into a [`Batch`], replicated) → fsync → apply → answer.

mod applier;
mod batch;
/// The clocks of a host.
pub mod clock;
mod config;
mod core;
mod host;
/// What the host's threads do, for shells of other kinds.
pub mod work;

pub use applier::{Applied, Applier, Held, Load, MachineFactory};
pub use batch::{Batch, BatchError};
pub use config::{HostConfig, HostConfigError, Leases};
pub use core::{
    Answer, ApplyTask, Background, Beat, Core, Done, Effects, Freshness, Input, LostReason, Notice, Outgoing,
    ReadCounts, ReplicaStatus, Request, RequestError, Write, first_sequence,
};
pub use flotilla_consensus::{ConfChange, Config as RaftConfig, Follower, GroupStatus, Role};
pub use host::{Digest, DigestError, Handle, Host, HostParts, INBOX_MAX};

#[doc = include_str!("../README.md")]
#[cfg(doctest)]
struct Readme;
