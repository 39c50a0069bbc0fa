//! Which of the shards led here a node heartbeat names.
//!
//! A list of all would cost every node time for each shard of the cluster several times a second. What peers
//! do with it are hints, and the newest term wins, so a heartbeat names the leaders that are new since the
//! last round, and up to [`LEADERS_PER_ROUND`] of the others in turn: they repair hints that were lost or
//! cleared.

use std::collections::BTreeSet;

use flotilla_consensus::{Group, MultiRaft, Role};
use flotilla_types::{ReplicaId, ShardId, Term};

/// Leaders that each round repeats. Nodes that lead no more name all of them each time.
pub const LEADERS_PER_ROUND: usize = 1_024;

/// What node heartbeats have named.
#[derive(Debug, Default)]
pub(super) struct Announced {
    /// Replicas that became leaders since the last round.
    pub(super) new: BTreeSet<ReplicaId>,
    /// The last replica that was repeated.
    last: ReplicaId,
}

impl Announced {
    /// The leaders that the heartbeats of the next round name.
    pub(super) fn next_round(&mut self, raft: &MultiRaft) -> Vec<(ShardId, Term)> {
        let mut named = std::mem::take(&mut self.new);
        let last = self.last;
        let others = raft.led_after(last).chain(raft.led().take_while(|group| group.replica() <= last));
        for group in others.take(LEADERS_PER_ROUND) {
            self.last = group.replica();
            named.insert(group.replica());
        }
        named.into_iter().filter_map(|replica| Self::leader_of(raft.group(replica)?)).collect()
    }

    /// The shard and the term in which this group leads it, if it does.
    pub(super) fn leader_of(group: &Group) -> Option<(ShardId, Term)> {
        let (role, term, _) = group.role();
        (role == Role::Leader).then_some((group.shard(), term))
    }
}
