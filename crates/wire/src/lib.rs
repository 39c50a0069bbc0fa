//! The messages between nodes as protobuf, and conversions to and from the domain types.
//!
//! Bytes from a peer are never trusted: conversions from a frame return typed errors. Framing (length, format
//! version) belongs to the transport. Nothing here does I/O.

mod convert;
mod frame;
#[cfg(test)]
mod hostile;

#[doc = include_str!("../README.md")]
#[cfg(doctest)]
struct Readme;

/// The generated protobuf messages.
#[expect(missing_docs, reason = "generated from proto/peer.proto, which documents the messages")]
pub mod peer {
    include!(concat!(env!("OUT_DIR"), "/flotilla.peer.v1.rs"));
}

pub use convert::{
    WireError, checkpoint_from_wire, checkpoint_to_wire, decode, descriptor_from_wire, descriptor_to_wire, encode,
    envelope_from_wire, envelope_to_wire,
};
pub use frame::{FRAME_ENVELOPES_MAX, decode_frame};
