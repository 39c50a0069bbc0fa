//! The reconcilers of a node: metadata feed, replica lifecycle, moves, placement, leader balance, liveness.
//!
//! All decisions are made by plain values (`core`), which the simulator drives just as a node does; the loops
//! only observe, send requests and perform actions. Reconcilers keep no state that they cannot derive again,
//! so every loop may be restarted at any moment.

mod control;
mod core;
mod events;
mod feed;
mod gossip;
mod hints;
mod loops;
mod placement;
mod rpc;
mod shards;
mod topology;

pub use control::{Control, ControlParts, KeepEvidence, notices};
pub use core::{
    Action, AnnounceNode, CAPACITY_SHARDS_MAX, COMPARISONS_LISTED_MAX, Capacity, ClusterView, Comparison, Comparisons,
    Consistency, DAMAGED_LISTED_MAX, DamagedReplica, Earlier, Evidence, FeedFollower, FeedStep, Fetched, Finding,
    INCONCLUSIVE_MS_MAX, JOURNAL_MAX, JournalEntry, LOAD_SAMPLE_MS, LOAD_SHARDS_MAX, Leaders, Lifecycle, LoadMeter,
    LocalNode, Lost, MalformedRequest, Members, NodeLoad, NodeScrub, OPERATIONS_MAX, Operation, Operations, Outcome,
    PROPOSALS_MAX, PROPOSE_TIMEOUT_MS, PeerRequest, Peers, Placement, PlacementQuestion, PlacementReport, Point,
    Reconciler, RequestKind, RequestRetry, RetryDecision, RetryStep, Said, ShardAnswer, ShardConsistency, ShardError,
    ShardRates, ShardRequest, ShardStep, ShardsLed, SizeMerges, SizeSplits, TRANSFERS_MAX, UpgradeError, Verdict, View,
    buckets_begun, decode_answer, decode_snapshot, encode_answer, feed_wait_ms, has_changes_since, liveness,
    may_order_to_give_up, meta_reply, next_shard_step, next_version, serves_feed,
};
pub use events::Event;
pub use gossip::Gossip;
pub use rpc::{AuthorityService, RpcServer};
pub use shards::{DiskReader, Shards};
pub use topology::Topology;

pub use flotilla_membership::{Config as MembershipConfig, NodeState as MemberState};
pub use flotilla_replication::clock;
pub use flotilla_replication::{FetchError, PinId, PinnedQuery, Workers};

#[doc = include_str!("../README.md")]
#[cfg(doctest)]
struct Readme;
