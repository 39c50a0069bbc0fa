//! The seam to the layers above: what arrives, and what they may see of a peer.

use std::{
    future::Future,
    net::SocketAddr,
    pin::Pin,
    time::{Duration, Instant},
};

use bytes::Bytes;
use flotilla_types::NodeId;

use crate::PeerError;

/// A boxed future, so that [`Handler`] can be a trait object.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What a frame is for. Each class has its own stream and queue, so that none waits behind another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// One-way and small: votes, heartbeats. Sent before everything else.
    Urgent,
    /// One-way and large: log entries.
    Bulk,
    /// Requests and answers.
    Rpc,
    /// Requests whose answers may be tens of megabytes. Sent after everything else.
    Objects,
}

impl Class {
    /// The order in which per-class things are kept.
    pub(crate) const ALL: [Self; 4] = [Self::Urgent, Self::Bulk, Self::Rpc, Self::Objects];

    pub(crate) const fn index(self) -> usize {
        self as usize
    }

    /// The byte that opens a stream of this class. 0 is the welcome.
    pub(crate) const fn tag(self) -> u8 {
        self as u8 + 1
    }

    pub(crate) fn of_tag(tag: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|class| class.tag() == tag)
    }

    /// Streams with a higher number are sent first.
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

/// What happened to the connection that this node dialled to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PeerState {
    /// It is up: frames, datagrams and calls can be sent.
    Connected,
    /// It was up and is lost. Frames in its queues are gone; calls have failed.
    Disconnected,
    /// The peer says that this node was removed from the cluster. Told once; dialling goes on slowly.
    Refused,
}

/// The state of the circuit to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Breaker {
    /// Connected.
    Closed,
    /// Down: sends fail at once, until the next probe.
    Open,
    /// A probe (a dial) is under way; sends fail at once.
    HalfOpen,
}

/// What is known of a peer, for status pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerStatus {
    /// The peer.
    pub node: NodeId,
    /// Where it is dialled.
    pub address: SocketAddr,
    /// Whether it can be reached.
    pub breaker: Breaker,
    /// The smoothed round-trip time, while connected.
    pub rtt: Option<Duration>,
    /// Since when it has been reachable ([`Breaker::Closed`]) or not (the other two).
    pub since: Instant,
    /// Why the last connection or dial failed. It stays when a later one succeeds.
    pub last_error: Option<PeerError>,
}

/// What a node does with what arrives. Methods are called on the runtime's threads and must not block; put work on a
/// bounded queue and drop what does not fit, or return a future.
///
/// `from` is always the node in the peer's certificate. A payload shares no memory with others: keeping a slice of it
/// keeps that payload alive, and nothing else.
pub trait Handler: Send + Sync + 'static {
    /// A frame of [`Class::Urgent`] or [`Class::Bulk`], in the order in which it was sent within its class and connection.
    fn on_frame(&self, from: NodeId, class: Class, frame: Bytes);

    /// A datagram. It may be lost, repeated or late.
    fn on_datagram(&self, from: NodeId, packet: Bytes);

    /// A request of [`Class::Rpc`] or [`Class::Objects`]. Many run at once, bounded per peer and class. An answer above the
    /// class's limit reaches the caller as an error. The future runs to its end even when the caller is gone: put a
    /// deadline into the request when that matters.
    fn on_call(&self, from: NodeId, class: Class, request: Bytes) -> BoxFuture<'static, Bytes>;

    /// A request from someone without a certificate: whatever is in it is unproven. Bounded in size, number, rate and time
    /// ([`Config`](crate::Config)); the future is dropped when its time is up.
    fn on_join(&self, remote: SocketAddr, request: Bytes) -> BoxFuture<'static, Bytes>;

    /// The connection to a peer changed.
    fn on_peer(&self, peer: NodeId, state: PeerState);

    /// Whether this node, whose certificate is genuine, still belongs to the cluster. Asked once for each connection.
    fn admit(&self, peer: NodeId) -> bool;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_name_classes_and_leave_zero_free() {
        for class in Class::ALL {
            assert_eq!(Class::of_tag(class.tag()), Some(class));
            assert_eq!(Class::ALL[class.index()], class);
        }
        assert_eq!(Class::of_tag(0), None);
        assert_eq!(Class::of_tag(5), None);
    }
}
