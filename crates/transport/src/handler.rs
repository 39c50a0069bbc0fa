//! The interface to the layers above: the [`Handler`] that receives traffic, and the status of a peer.

use std::{
    future::Future,
    net::SocketAddr,
    pin::Pin,
    time::{Duration, Instant},
};

use bytes::Bytes;
use flotilla_types::{HostPort, NodeId};

use crate::PeerError;

/// A boxed future, so that [`Handler`] can be a trait object.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The traffic class of a frame. Each class has its own stream and queue, so that none blocks another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// One-way and small: votes, heartbeats. Highest priority.
    Urgent,
    /// One-way and large: log entries.
    Bulk,
    /// Requests and answers.
    Rpc,
    /// Requests whose answers may be tens of megabytes. Lowest priority.
    Objects,
}

impl Class {
    /// All classes, in the order of [`index`](Self::index).
    pub(crate) const ALL: [Self; 4] = [Self::Urgent, Self::Bulk, Self::Rpc, Self::Objects];

    pub(crate) const fn index(self) -> usize {
        self as usize
    }

    /// The tag byte that opens a stream of this class. 0 is the welcome stream.
    pub(crate) const fn tag(self) -> u8 {
        self as u8 + 1
    }

    pub(crate) fn of_tag(tag: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|class| class.tag() == tag)
    }

    /// The stream priority: higher numbers are sent first.
    pub(crate) const fn priority(self) -> i32 {
        match self {
            Self::Urgent => 3,
            Self::Rpc => 2,
            Self::Bulk => 1,
            Self::Objects => 0,
        }
    }

    /// The label in metrics.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Urgent => "urgent",
            Self::Bulk => "bulk",
            Self::Rpc => "rpc",
            Self::Objects => "objects",
        }
    }
}

/// A change of the connection that this node dials to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PeerState {
    /// It is up: frames, datagrams and calls can be sent.
    Connected,
    /// It was up and is lost. Queued frames are dropped; calls have failed.
    Disconnected,
    /// The peer says that this node was removed from the cluster. Reported once; dialling continues with
    /// backoff.
    Refused,
}

/// The state of the circuit breaker to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Breaker {
    /// Connected.
    Closed,
    /// Down: sends fail at once, until the next probe.
    Open,
    /// A probe (a dial) is in progress; sends fail at once.
    HalfOpen,
}

/// The status of a peer, for status pages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerStatus {
    /// The peer.
    pub node: NodeId,
    /// Where the peer is said to be.
    pub address: HostPort,
    /// Where it is connected.
    pub connected: Option<SocketAddr>,
    /// Whether it can be reached.
    pub breaker: Breaker,
    /// The smoothed round-trip time, while connected.
    pub rtt: Option<Duration>,
    /// When it last became reachable ([`Breaker::Closed`]) or unreachable (the other two).
    pub since: Instant,
    /// Why the last connection or dial failed. Kept when a later one succeeds.
    pub last_error: Option<PeerError>,
}

/// Receives the traffic of a node. Methods are called on the runtime's threads and must not block: put work
/// on a bounded queue and drop what does not fit, or return a future.
///
/// `from` is always the node in the peer's certificate. A payload shares no memory with others: a slice of it
/// keeps only that payload alive.
pub trait Handler: Send + Sync + 'static {
    /// A frame of [`Class::Urgent`] or [`Class::Bulk`] arrived. Frames of one class and connection arrive in
    /// order.
    fn on_frame(&self, from: NodeId, class: Class, frame: Bytes);

    /// A datagram arrived. Datagrams may be lost, duplicated or reordered.
    fn on_datagram(&self, from: NodeId, packet: Bytes);

    /// Executes a request of [`Class::Rpc`] or [`Class::Objects`]. Many run concurrently, bounded per peer
    /// and class. An answer over the class's limit reaches the caller as an error. The future runs to
    /// completion even when the caller is gone: put a deadline into the request if that matters.
    fn on_call(&self, from: NodeId, class: Class, request: Bytes) -> BoxFuture<'static, Bytes>;

    /// Executes a join request from a client without a certificate: nothing in it is authenticated. Bounded
    /// in size, number, rate and time ([`Config`](crate::Config)); the future is dropped at its timeout.
    fn on_join(&self, remote: SocketAddr, request: Bytes) -> BoxFuture<'static, Bytes>;

    /// The connection to a peer changed.
    fn on_peer(&self, peer: NodeId, state: PeerState);

    /// Whether this node, whose certificate is valid, still belongs to the cluster. Called once per
    /// connection.
    fn admit(&self, peer: NodeId) -> bool;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_round_trip_and_zero_is_reserved() {
        for class in Class::ALL {
            assert_eq!(Class::of_tag(class.tag()), Some(class));
            assert_eq!(Class::ALL[class.index()], class);
        }
        assert_eq!(Class::of_tag(0), None);
        assert_eq!(Class::of_tag(5), None);
    }
}
