//! What the host's threads do, without the threads: the order of durable and sent, the shape of frames, the rules of
//! a pull, what became of a slow job.
//!
//! The host's shell runs these parts on threads and sockets, a simulator as events of virtual time. Nothing here waits,
//! reads a clock or starts anything; calls into log and engine happen in line, where the caller puts them.

mod frames;
mod jobs;
mod pull;
mod wal;

pub use frames::{Packed, pack, pack_beat, unpack};
pub use jobs::{BUILD_RETRY_MS, BUILD_TRIES_MAX, Job, Worked};
pub use pull::{Pull, PullError, serve};
pub use wal::{Durable, Merged, Wal, WalJob};
