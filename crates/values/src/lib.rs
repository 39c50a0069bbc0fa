//! How a large value becomes objects, and how it is read back.
//!
//! A value is cut by content into chunks, and the list of its chunks is cut by content too, so that values
//! with common parts consist of common objects. Every object is named by the BLAKE3 hash of its bytes; a
//! [`ValueRef`] is what a record keeps of the value.
//!
//! Invariants: the objects of a value follow from its content and its [`Chunking`] alone, not from how it
//! was pushed. Memory is bounded whatever the length of a value. A reference has one encoding, as has a list;
//! bytes that are neither are typed errors, and cost no more memory than their own length.
//!
//! Deliberately absent: I/O, stores, threads, compression, and any trust in a reference that somebody else
//! made: whoever accepts one cuts the content again and compares.

mod chunking;
mod chunking_text;
mod content;
mod cutter;
mod difference;
mod error;
mod list;
mod list_node;
mod need;
mod plan;
mod reader;
mod value_ref;

#[cfg(test)]
mod hostile;
#[cfg(test)]
mod tests;

pub use chunking::Chunking;
pub use chunking_text::ChunkingTextError;
pub use cutter::{Cutter, Finished, Object, ObjectKind, cut};
pub use difference::new_bytes;
pub use error::{ChunkingError, FormatError, OutOfRange, TooLong, VerifyError};
pub use list_node::{Level, ListNode, Part};
pub use need::{Kind, Need, list_refs};
pub use plan::{NotSupplied, Plan};
pub use reader::{Reader, Slice, Step};
pub use value_ref::{List, ValueRef};

/// Length of a chunk at most, bytes.
pub const CHUNK_BYTES_MAX: u32 = 1 << 20;
/// Chunks whose ids stand in the reference itself, at most.
pub const CHUNKS_IN_REF_MAX: usize = 64;
/// Chunks of a list node, except the last one of a value, at least.
const NODE_CHUNKS_MIN: usize = 32;
/// Chunks of a list node at most.
const NODE_CHUNKS_MAX: usize = 256;
/// List nodes of a value at most.
const NODES_MAX: usize = 512;

#[doc = include_str!("../README.md")]
#[cfg(doctest)]
struct Readme;
