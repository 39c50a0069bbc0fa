//! The reconcilers of a node: metadata feed, replica lifecycle, moves, placement, leader balance, liveness.
//!
//! Everything that is decided is decided by plain values (`core`), which a simulator drives as well as a node does; the loops
//! only look, ask and do. Nothing is remembered that cannot be found again by looking, so every loop may be restarted at any
//! moment.

mod control;
mod core;
mod events;
mod feed;
mod gossip;
mod loops;
mod rpc;
mod shards;
mod topology;

pub use control::{Control, ControlParts, notices};
pub use core::{
    Action, Ask, AskStep, Asking, FeedFollower, FeedStep, Known, Leaders, Lifecycle, Lost, MalformedRequest, Me,
    Members, Next, Outcome, PROPOSALS_MAX, PROPOSE_TIMEOUT_MS, PeerRequest, Peers, Placement, Present, Reconciler,
    ShardError, ShardsLed, Verdict, View, answer_of, feed_wait_ms, has_news, liveness, next_step, response_of,
    serves_feed, snapshot_of,
};
pub use events::Event;
pub use gossip::Gossip;
pub use rpc::{RpcServer, TakeAuthority};
pub use shards::Shards;
pub use topology::Topology;

pub use flotilla_membership::{Config as MembershipConfig, NodeState as MemberState};

#[doc = include_str!("../README.md")]
#[cfg(doctest)]
struct Readme;
