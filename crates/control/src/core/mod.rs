//! Every decision of control, as plain values: no clock, lock, transport, thread or randomness.
//!
//! [`ClusterView`] caches what a node knows about the cluster. Each [`Reconciler`] compares a [`View`] with
//! the desired state and returns [`Action`]s. [`RequestRetry`] finds a shard's leader, [`FeedFollower`]
//! follows the metadata, [`PeerRequest`] is what nodes send each other. The async loops of this crate, or the
//! simulator, observe, perform and report back; they decide nothing.
//!
//! Deliberately absent: failure detection (`flotilla_membership`) and placement (`flotilla_placement`).

mod announce;
mod capacity;
mod cluster_view;
mod consistency;
mod contact;
mod cpu;
mod feed;
mod fingerprints;
mod journal;
mod last_look;
mod leader_changes;
mod leaders;
mod lifecycle;
mod load;
mod merges;
mod operations;
#[cfg(test)]
mod passes_tests;
mod peers;
mod placement;
mod placement_report;
mod reconciler;
mod request;
mod retry;
mod routing;
mod scrub;
mod shards_led;
mod size_merges;
mod size_splits;
mod step;
#[cfg(test)]
mod testing;
mod upgrade;
mod value_traffic;

pub use announce::AnnounceNode;
pub use capacity::{CAPACITY_SHARDS_MAX, Capacity};
pub use cluster_view::{ClusterView, Members};
pub use consistency::{
    COMPARISONS_LISTED_MAX, Comparison, Comparisons, Consistency, Finding, INCONCLUSIVE_MS_MAX, ShardConsistency,
};
pub(crate) use contact::{Contact, Report};
pub(crate) use cpu::CpuMeter;
pub use feed::{FeedFollower, FeedStep, decode_snapshot, feed_wait_ms, has_changes_since, serves_feed};
pub use fingerprints::{Evidence, Point, Said, may_order_to_give_up};
pub use journal::{JOURNAL_MAX, JournalEntry, Verdict};
pub(crate) use leader_changes::LeaderChanges;
pub use leaders::{Leaders, TRANSFERS_MAX};
pub use lifecycle::{Lifecycle, Lost};
pub use load::{LOAD_SAMPLE_MS, LOAD_SHARDS_MAX, LoadMeter, NodeLoad, ShardRates};
pub use operations::{Fetched, OPERATIONS_MAX, Operation, Operations};
pub use peers::Peers;
pub use placement::{Placement, liveness};
pub use placement_report::{PlacementQuestion, PlacementReport};
pub use reconciler::{Action, LocalNode, Outcome, PROPOSALS_MAX, PROPOSE_TIMEOUT_MS, Reconciler, View};
pub use request::{MalformedRequest, PeerRequest, ShardRequest, decode_answer, encode_answer};
pub use retry::{Earlier, RequestKind, RequestRetry, RetryDecision, RetryStep, ShardAnswer, ShardError, meta_reply};
pub(crate) use routing::Routing;
pub use scrub::{DAMAGED_LISTED_MAX, DamagedReplica, NodeScrub};
pub use shards_led::ShardsLed;
pub use size_merges::SizeMerges;
pub use size_splits::{SizeSplits, buckets_begun};
pub use step::{ShardStep, next_shard_step};
pub use upgrade::{UpgradeError, next_version};
pub(crate) use value_traffic::{decode_traffic, encode_traffic};
