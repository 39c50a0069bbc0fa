//! What nodes say to each other, as protobuf messages, and conversions to and from the domain types.
//!
//! Bytes from a peer are never trusted: every conversion from a frame is fallible and typed. Framing (length, format
//! version) is the transport's. Nothing here does I/O.

mod convert;
mod frame;
#[cfg(test)]
mod hostile;

#[doc = include_str!("../README.md")]
#[cfg(doctest)]
struct Readme;

/// The generated protobuf messages.
#[expect(missing_docs, reason = "generated from proto/peer.proto, which has the comments")]
pub mod peer {
    include!(concat!(env!("OUT_DIR"), "/flotilla.peer.v1.rs"));
}

pub use convert::{
    WireError, checkpoint_from_wire, checkpoint_to_wire, decode, descriptor_from_wire, descriptor_to_wire, encode,
    envelope_from_wire, envelope_to_wire,
};
pub use frame::{FRAME_ENVELOPES_MAX, decode_frame};
