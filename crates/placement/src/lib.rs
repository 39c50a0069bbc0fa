//! Pure placement: which bucket and shard a key belongs to, which nodes hold a shard, who should lead it.
//!
//! Invariants: everything here is a function of its arguments. The same input gives the same answer on every
//! machine (integer arithmetic, ordered iteration), so two nodes with the same metadata make the same
//! decisions.
//!
//! Deliberately absent: liveness detection, proposing, waiting. A [`Plan`] is advice; the metadata group
//! decides.

mod bucket;
mod explain;
#[cfg(test)]
mod explain_tests;
mod hints;
mod leaders;
mod map;
mod moves;
mod plan;
#[cfg(test)]
mod plan_tests;
mod planner;
mod planning;
mod preflight;
#[cfg(test)]
mod preflight_tests;
mod reasons;
mod score;

pub use bucket::{bucket_of, hash_tag};
pub use explain::{Explanation, Fate, ReplicaExplanation, ReplicaPhase};
pub use hints::LeaderHints;
pub use leaders::preferred_leaders;
pub use map::{Collection, Shard, ShardMap, Sharding};
pub use plan::{
    Change, NodeStatus, PLAN_CHANGES_MAX, Plan, PlanInput, PlanNode, PlanReplica, PlanShard, brings_closer, place, plan,
};
pub use planner::replicas_possible;
pub use planning::Planning;
pub use preflight::{Blocker, Disk, Disks, FREE_MILLI_MIN, Obstacle, Preflight, preflight};
pub use reasons::{Decision, Hold, Limits, NonDecision, Reason, Rejected, Rejection, SHARDS_NAMED_MAX, Shards};
pub use score::rendezvous_score;

#[doc = include_str!("../README.md")]
#[cfg(doctest)]
struct Readme;
