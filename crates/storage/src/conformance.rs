//! Conformance suites that every implementation of [`Log`](crate::Log) or [`StateEngine`](crate::StateEngine)
//! runs in its own tests.
//!
//! Each suite takes a closure that opens the same storage again; before it calls the closure, it drops the
//! instance from the previous call. A suite panics when the contract is broken. All but [`scrub`] cover intact
//! storage only: implementations test torn writes, damaged files and power cuts themselves.
//!
//! [`DescriptorHistory`] and [`Observed`] check replicas as a whole: by which descriptor their state machines
//! apply each entry.

mod descriptors;
mod folds;
mod log;
mod model;
mod references;
mod referring;
mod scrub;
mod state_engine;
mod value_objects;

pub use descriptors::{DescriptorHistory, Observed, Observer};
pub use folds::folds;
pub use log::log;
pub use references::references;
pub use referring::Referring;
pub use scrub::scrub;
pub use state_engine::state_engine;
pub use value_objects::value_objects;

use std::sync::Arc;

use bytes::Bytes;
use flotilla_types::{
    Checkpoint, ConfState, Epoch, KeyRange, LogIndex, Position, ReplicaId, ShardDescriptor, ShardId, Term,
};

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn position(replica: ReplicaId, index: u64, term: u64) -> Position {
    Position {
        index: LogIndex(index),
        term: Term(term),
        conf: Arc::new(ConfState::of_voters([replica])),
        descriptor: Arc::new(ShardDescriptor {
            shard: ShardId(replica.0),
            range: KeyRange { start: bytes("a"), end: bytes("z") },
            epoch: Epoch { range: 1, config: index },
            replicas: Vec::new(),
        }),
    }
}

fn empty_checkpoint(replica: ReplicaId, index: u64, term: u64) -> Checkpoint {
    Checkpoint::empty(position(replica, index, term))
}
