//! The durable Raft log of a node on raft-engine: one write and one fsync per batch of all its replicas.
//!
//! Each replica has its own region of the engine; a reserved region holds the node's own records. The
//! engine's types stay inside this crate. It knows nothing of Raft's rules:
//! [`flotilla_storage::ReplicaBounds`] checks what a write may do.

mod engine_log;
mod entry;
mod error;
mod evidence;
mod format;
mod options;
mod reader;
mod record;
mod recovery;
mod tail;
mod terms;
#[cfg(test)]
mod tests;
mod witness;
mod zero_fill;

pub use engine_log::EngineLog;
pub use error::OpenError;
pub use evidence::{Doubt, Evidence};
pub use options::Options;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
