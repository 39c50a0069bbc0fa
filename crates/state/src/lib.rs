//! The state engine: memtables, runs, checkpoints, and sled as a view that can be rebuilt.
//!
//! The log and the objects are the truth. What a replica applied lives in its memtable until a checkpoint writes it as
//! objects (fsynced); sled only makes the records of the last checkpoint quick to find. Nothing rests on sled's own
//! durability: a view that may have lost something is thrown away and loaded again from the checkpoint's objects.
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
mod trust;
mod view;

pub use engine::Engine;
pub use flotilla_objects::Options as ObjectOptions;
pub use options::Options;

#[doc = include_str!("../README.md")]
#[cfg(doctest)]
struct Readme;
