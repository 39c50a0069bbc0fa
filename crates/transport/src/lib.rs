//! QUIC between the nodes of a cluster: frames by class, datagrams, calls, and the join protocol for new
//! nodes.
//!
//! Bird's-eye view: `Transport` owns one UDP endpoint. For each peer that is set, a reconnect loop (`peer`)
//! dials one connection and keeps a `link` on it: one queue and one stream per [`Class`]. `inbound` serves
//! the connections that peers dial to this node, and is the only module that calls the [`Handler`]'s
//! receiving methods. Every pair of nodes therefore has two connections, one per requesting side; answers
//! return on the stream of their request.
//!
//! Invariants:
//! - The sender passed to a handler is the node named in the peer's certificate, never a field of a message.
//! - Every queue, window, buffer and connection count has a bound in [`Config`]; a length is checked before
//!   memory is allocated for it.
//! - The work that an unauthenticated connection can cause is bounded: one handshake and one join request of
//!   64 KiB, at a limited rate.
//!
//! Deliberately absent: knowledge of what payloads mean, retries of frames or calls (the layers above know
//! what is safe to repeat), routing, session resumption and early data. quinn's types never leave this crate.

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
mod targets;
mod transport;
mod unauthenticated;
mod writer;

pub use config::{Config, ConfigError};
pub use error::{CallError, MaybeExecuted, NotSent, PeerError, SendError, TransportError};
pub use handler::{BoxFuture, Breaker, Class, Handler, PeerState, PeerStatus};
pub use join::{JOIN_ANSWER_BYTES_MAX, JOIN_REQUEST_BYTES_MAX, join_call};
pub use targets::resolve;
pub use transport::{BoundSocket, DATAGRAM_BYTES_MAX, Transport};

#[doc = include_str!("../README.md")]
#[cfg(doctest)]
struct Readme;
