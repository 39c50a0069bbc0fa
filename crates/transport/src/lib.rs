//! QUIC between the nodes of a cluster: frames by class, datagrams, calls, and the door through which new nodes join.
//!
//! Bird's-eye view: `Transport` owns one UDP endpoint. For each peer it is told about, a reconnect loop (`peer`) dials one
//! connection and keeps a `link` on it: one queue and one stream for each [`Class`]. What peers dial to us is served by
//! `inbound`, which alone calls the [`Handler`]'s receiving methods. So every pair of nodes has two connections, one
//! for each direction of asking; answers return on the stream that asked.
//!
//! Invariants:
//! - The sender that a handler is told is the node named in the peer's certificate, never a field of a message.
//! - Every queue, window, buffer and count of connections has a bound in [`Config`]; a length is checked before memory
//!   is set aside for it.
//! - What a stranger can make this node do is bounded: one handshake, one join request of 64 KiB, at a limited rate.
//!
//! Deliberately absent: knowledge of what payloads mean, retries of frames or calls (the layers above know what is safe
//! to repeat), routing, session resumption and early data. quinn's types never leave this crate.

mod config;
mod endpoint;
mod error;
mod frame;
mod handler;
mod inbound;
mod join;
mod link;
mod meter;
mod peer;
mod pending;
mod strangers;
mod transport;
mod writer;

pub use config::{Config, ConfigError};
pub use error::{CallError, MaybeExecuted, NotSent, PeerError, SendError, TransportError};
pub use handler::{BoxFuture, Breaker, Class, Handler, PeerState, PeerStatus};
pub use join::{JOIN_ANSWER_BYTES_MAX, JOIN_REQUEST_BYTES_MAX, join_call};
pub use transport::{DATAGRAM_BYTES_MAX, Transport};

#[doc = include_str!("../README.md")]
#[cfg(doctest)]
struct Readme;
