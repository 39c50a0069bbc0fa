//! Conformance suites that every implementation of a seam runs in its own tests.
//!
//! Each suite is given a closure that opens the same storage again; the suite drops what it was given before it calls the
//! closure. A suite panics with what broke. It proves the contract on intact storage: torn writes, damaged files and
//! power cuts are the implementation's own to test.

mod log;
mod model;
mod state_engine;

pub use log::log;
pub use state_engine::state_engine;

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
        conf: ConfState::of_voters([replica]),
        descriptor: ShardDescriptor {
            shard: ShardId(replica.0),
            range: KeyRange { start: bytes("a"), end: bytes("z") },
            epoch: Epoch { range: 1, config: index },
            replicas: Vec::new(),
        },
    }
}

fn empty_checkpoint(replica: ReplicaId, index: u64, term: u64) -> Checkpoint {
    Checkpoint { position: position(replica, index, term), system: None, base: Vec::new(), runs: Vec::new() }
}
