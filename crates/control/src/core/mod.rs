//! Everything that control decides, as plain values: no clock, lock, transport, thread or randomness.
//!
//! [`Known`] is what a node knows of the cluster. Each [`Reconciler`] compares a [`View`] with what should be and answers
//! with [`Action`]s. [`Asking`] finds a shard's leader, [`FeedFollower`] follows the metadata, [`PeerRequest`] is what
//! nodes ask of each other. The loops beside this module, or a simulator, look, perform and report back; they decide
//! nothing.
//!
//! Deliberately absent: detecting failures (`flotilla_membership`), choosing places (`flotilla_placement`).

mod asking;
mod feed;
mod known;
mod leaders;
mod lifecycle;
mod news;
mod peers;
mod placement;
mod present;
mod reconciler;
mod request;
mod shards_led;
mod step;
#[cfg(test)]
mod testing;

pub use asking::{Ask, AskStep, Asking, ShardError, Verdict};
pub use feed::{FeedFollower, FeedStep, feed_wait_ms, has_news, serves_feed, snapshot_of};
pub use known::{Known, Members};
pub use leaders::Leaders;
pub use lifecycle::{Lifecycle, Lost};
pub(crate) use news::LeaderNews;
pub use peers::Peers;
pub use placement::{Placement, liveness};
pub use present::Present;
pub use reconciler::{Action, Me, Outcome, PROPOSALS_MAX, PROPOSE_TIMEOUT_MS, Reconciler, View};
pub use request::{MalformedRequest, PeerRequest, answer_of, response_of};
pub use shards_led::ShardsLed;
pub use step::{Next, next_step};
