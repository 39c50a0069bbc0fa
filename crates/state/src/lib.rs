//! The state engine: memtables, checkpoints, and a view through which the records of checkpoints are read.
//!
//! Invariant: the log and the objects are the source of truth. Applied records stay in the memtable until a
//! checkpoint writes them as objects (fsynced), which are sorted and searched in place. sled can serve reads
//! instead; nothing relies on its durability: a view that may have lost data is discarded and rebuilt from
//! the checkpoint's objects.
//!
//! No type of sled is public. The crate does not decide when to checkpoint, does not fetch objects and does
//! not interpret keys and values.

mod build;
mod clip;
mod compact;
mod engine;
mod failure;
mod fold;
mod gate;
#[cfg(test)]
mod hostile;
mod memtable;
mod merge;
mod middle;
mod options;
mod piece;
mod replica;
mod scrub;
mod sorted;
mod table;
#[cfg(test)]
mod tests;
mod value_objects;
mod view;

pub use engine::Engine;
pub use flotilla_objects::Options as ObjectOptions;
pub use options::{Options, ViewOptions};

#[doc = include_str!("../README.md")]
#[cfg(doctest)]
struct Readme;
