//! The reconcilers of a node: metadata feed, replica lifecycle, moves, placement, leader balance, liveness.
//!
//! The decisions are pure functions (`reconcile`); the loops only look, ask and do. Nothing is remembered that cannot be
//! found again by looking, so every loop may be restarted at any moment.

mod control;
mod events;
mod feed;
mod gossip;
mod loops;
mod reconcile;
mod rpc;
mod shards;
mod topology;

pub use control::{Control, ControlParts, Lost, Me, notices};
pub use events::Event;
pub use gossip::Gossip;
pub use reconcile::{Lifecycle, Next, lifecycle, liveness, next_step};
pub use rpc::{RpcServer, TakeAuthority};
pub use shards::{Ask, ShardError, Shards};
pub use topology::Topology;

pub use flotilla_membership::{Config as MembershipConfig, NodeState as MemberState};

#[doc = include_str!("../README.md")]
#[cfg(doctest)]
struct Readme;
