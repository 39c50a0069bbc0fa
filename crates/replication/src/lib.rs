//! The shard host: drives consensus, log, state engine and transport for every replica of a node.
//!
//! [`Core`] and [`Applier`] decide; [`Host`] performs their effects, with real threads, disks and sockets.
//! The host is generic over the state machine and knows neither keys nor metadata. The path of a write:
//! [`Handle::propose`] → raft thread (merged into a [`Batch`], replicated) → fsync → apply → answer.

mod applier;
mod batch;
/// The clocks that a host reads.
pub mod clock;
mod config;
mod core;
mod damage;
mod host;
/// The work of the host's threads, without the threads, for other shells such as a simulator.
pub mod work;

pub use applier::{
    Applied, Applier, ChainDigest, ChainSamples, Contents, Fingerprints, Load, Loaded, MachineFactory, PIN_IDLE_MS,
    PIN_MS_MAX, PINNED_BYTES_MAX, PINS_MAX, PinId, PinnedQuery, ReplicaContents, Returned, SAMPLE_SPACING, SAMPLES_MAX,
    SLOW_READS_MAX, SLOW_READS_PER_REPLICA_MAX, SYSTEM_SPACING, Size, Slow, SlowApply, SlowDone, SlowRead,
};
pub use batch::{Batch, BatchError, refs_of};
pub use config::{FolderTrust, HostConfig, HostConfigError, Leases, ScrubConfig, TRANSFER_RATE_MIN};
pub use core::{
    Answer, Answered, ApplyTask, Background, CommandRefs, Core, Count, Demand, Demands, Done, Effects, Freshness,
    Gather, GatherEnd, Hold, Input, LEADERS_PER_ROUND, LostReason, NodeHeartbeat, Notice, Outgoing, Query, ReadCounts,
    ReplicaStatus, Replicas, Request, RequestError, StatusUpdates, Write, first_sequence,
};
pub use flotilla_consensus::{
    ConfChange, Config as RaftConfig, Follower, Freeze, GroupStatus, Merge, Role, ShardChange, Split, Thaw,
};
pub use host::{
    Digest, DigestError, FetchError, Fetched, Handle, Host, HostParts, INBOX_MAX, IncomingSnapshot, LinkTraffic,
    NotDone, ValueTraffic, Workers,
};

pub use work::ScrubStatus;

#[doc = include_str!("../README.md")]
#[cfg(doctest)]
struct Readme;
