//! The state engine: memtables, runs, checkpoints, and a view in which their records are found.
//!
//! The log and the objects are the truth. What a replica applied lives in its memtable until a checkpoint writes it as
//! objects (fsynced), which are sorted and searched where they are. sled can be had in their place; nothing rests on its own
//! durability then: a view that may have lost something is thrown away and loaded again from the checkpoint's objects.
//!
//! No type of sled leaves this crate. It does not decide when to checkpoint, fetches no objects and knows nothing of what
//! keys and values mean.

mod build;
mod engine;
mod failure;
#[cfg(test)]
mod hostile;
mod memtable;
mod merge;
mod options;
mod piece;
mod replica;
mod sorted;
#[cfg(test)]
mod tests;
mod view;

pub use engine::Engine;
pub use flotilla_objects::Options as ObjectOptions;
pub use options::{Options, ViewOptions};

#[doc = include_str!("../README.md")]
#[cfg(doctest)]
struct Readme;
