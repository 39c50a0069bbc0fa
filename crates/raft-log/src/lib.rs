//! The durable Raft log of a node on raft-engine: one write and one fsync for the work of all its replicas.
//!
//! One region of the engine per replica id; a reserved region holds what belongs to the node. The engine's types stay
//! inside this crate. It decides nothing about Raft: what a write may do is judged by
//! [`flotilla_storage::ReplicaBounds`].

mod engine_log;
mod entry;
mod error;
mod files;
mod format;
mod options;
mod reader;
mod record;
mod recovery;
mod tail;
mod terms;
#[cfg(test)]
mod tests;

pub use engine_log::EngineLog;
pub use error::OpenError;
pub use options::Options;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
