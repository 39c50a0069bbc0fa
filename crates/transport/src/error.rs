//! One error type per family of operations. Each says whether the peer may have acted.

use std::io;

use flotilla_identity::IdentityError;

use crate::ConfigError;

/// A transport could not start, or a join request failed.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The configuration contradicts itself. Nothing was started.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The address could not be bound. Nothing was started; free the address and try again.
    #[error("cannot bind the UDP socket")]
    Bind(#[source] io::Error),
    /// The identity cannot be used for TLS. Nothing was started.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The crypto provider lacks QUIC's initial cipher suite. Nothing was started.
    #[error("the crypto provider lacks AES-128-GCM")]
    CipherSuite,
    /// The join request is over [`JOIN_REQUEST_BYTES_MAX`](crate::JOIN_REQUEST_BYTES_MAX). Nothing was sent.
    #[error("the join request is larger than {bytes_max} bytes")]
    JoinTooLarge {
        /// The limit.
        bytes_max: usize,
    },
    /// The node could not be reached, or does not belong to the pinned cluster. The request was not sent; try
    /// another address.
    #[error("cannot connect to join")]
    JoinConnect(#[source] PeerError),
    /// The connection was lost or the deadline passed after the request was sent. It may have been executed:
    /// repeat it unchanged.
    #[error("no answer to the join request")]
    JoinLost(#[source] PeerError),
}

/// Why a peer is not connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// The peer says that this node was removed from the cluster.
    #[error("removed from the cluster")]
    Removed,
    /// Nothing was received within the idle timeout.
    #[error("timed out")]
    TimedOut,
    /// TLS failed on this side: for example, the peer's certificate names another node (alert 42) or was
    /// issued by another authority (48; 51 when that authority claims the same cluster id).
    #[error("the peer's certificate or protocol is not acceptable (TLS alert {alert})")]
    Handshake {
        /// The alert's number (RFC 8446, section 6.2).
        alert: u8,
    },
    /// TLS failed on the peer's side.
    #[error("the peer does not accept this node's certificate or protocol (TLS alert {alert})")]
    HandshakeRefused {
        /// The alert's number.
        alert: u8,
    },
    /// The peer restarted and no longer knows the connection.
    #[error("the peer was restarted")]
    Restarted,
    /// The peer closed the connection with the normal code.
    #[error("closed by the peer")]
    Closed,
    /// A newer connection from this node replaced this one.
    #[error("replaced by a newer connection")]
    Replaced,
    /// The peer accepts no more connections or requests at the moment.
    #[error("the peer is busy")]
    Busy,
    /// One side violated the protocol: wrong version, oversize or malformed frame.
    #[error("protocol violation")]
    Protocol,
    /// The address cannot be dialled from this endpoint.
    #[error("the address cannot be dialled")]
    Address,
    /// The peer's name does not resolve.
    #[error("the name does not resolve")]
    Unresolved,
    /// This side closed the connection: its address changed, or the transport closes.
    #[error("closed by this node")]
    Local,
}

/// Why a frame or datagram was not queued. The peer has not seen it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// No address was ever given for this peer, or it is this node itself.
    #[error("unknown peer")]
    UnknownPeer,
    /// The peer is not connected. A later send may succeed.
    #[error("the peer is not connected")]
    Down,
    /// The queue to the peer is full. A later send may succeed.
    #[error("the queue to the peer is full")]
    Busy,
    /// The payload is over the class's limit.
    #[error("the payload is larger than {bytes_max} bytes")]
    TooLarge {
        /// The limit.
        bytes_max: usize,
    },
    /// One-way frames use the classes `Urgent` and `Bulk`.
    #[error("this class is for calls, not for one-way frames")]
    WrongClass,
}

/// Why a call has no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The peer has not executed the request and never will.
    #[error("not sent: {0}")]
    NotSent(#[from] NotSent),
    /// The request left this node; the peer may or may not have executed it.
    #[error("outcome unknown: {0}")]
    MaybeExecuted(#[from] MaybeExecuted),
}

/// Why a request was not executed. All but `TooLarge` and `WrongClass` may be tried again, here or elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotSent {
    /// No address was ever given for this peer, or it is this node itself.
    #[error("unknown peer")]
    UnknownPeer,
    /// The peer is not connected, or was lost before the request left its queue.
    #[error("the peer is not connected")]
    Down,
    /// Too many calls are in flight to this peer, or the queue is full.
    #[error("too many calls to the peer are in flight")]
    Busy,
    /// The peer is at its limit of concurrent calls and refused the request without executing it.
    #[error("the peer is at its limit and refused the request")]
    Refused,
    /// The deadline passed while the request was still in the queue.
    #[error("the deadline passed while the request was queued")]
    TimedOut,
    /// The request is over the class's limit.
    #[error("the request is larger than {bytes_max} bytes")]
    TooLarge {
        /// The limit.
        bytes_max: usize,
    },
    /// Calls use the classes `Rpc` and `Objects`.
    #[error("this class is for one-way frames, not for calls")]
    WrongClass,
}

/// Why the outcome of a request is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MaybeExecuted {
    /// The deadline passed without an answer.
    #[error("no answer within the deadline")]
    TimedOut,
    /// The connection was lost before the answer came.
    #[error("the connection was lost")]
    Lost,
    /// The request was executed, and its answer is over the class's limit.
    #[error("the answer is over the size limit of its class")]
    AnswerTooLarge,
}
