//! The work of the host's threads, without the threads: write-ahead batches, frames, object pulls, background
//! jobs.
//!
//! The host runs it on threads and sockets, a simulator as events of virtual time. Nothing here waits, reads
//! a clock or starts a thread; calls to log and engine are synchronous.

mod budget;
mod frames;
mod jobs;
mod pull;
mod scrub;
mod wal;

pub use budget::Budget;
pub use frames::{PackedFrame, pack, pack_node_heartbeat, unpack};
pub use jobs::{Job, JobResult, TRIES_MAX};
pub use pull::{
    End, Pull, PullBounds, PullError, PullOrder, PullRequest, PullState, Served, Stored, serve, serve_later,
    waiting_request,
};
pub(crate) use pull::{other_nodes, sources};
pub use scrub::{ScrubStatus, Scrubber};
pub use wal::{Durable, Merged, Wal, WalJob};
