//! Strong reads by lease: when a leader answers without asking, and when it asks in time for the next ones not to wait.
//!
//! What makes a lease, and why it is enough, stands in the consensus crate; here it meets a clock. The order is what
//! matters: reads are taken in by [`Core::step`], then the shell reads its clock, then [`Core::flush`] judges the lease by it.
//! A group without reads asks nobody. Deliberately absent: leases for followers.

use flotilla_types::{ReplicaId, ShardId, Term};

use super::{Core, Effects};

/// Strong reads since this life began, by what they rested on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReadCounts {
    /// Answered by a leader that a quorum had confirmed shortly before.
    pub by_lease: u64,
    /// Answered after a quorum had confirmed the leader for them.
    pub by_round: u64,
}

/// How a group stands with its lease.
pub(super) enum Standing {
    /// It has none.
    None,
    /// It has one, and less than half of it is left: time to ask for the next.
    Fading,
    /// It has one.
    Fresh,
}

impl<T> Core<T> {
    /// Serves all reads that wait if there is a lease by the clock of this flush.
    pub(super) fn read_by_lease(&mut self, id: ReplicaId, effects: &mut Effects<T>) -> Standing {
        let Some(length_ms) = self.config.lease_ms() else { return Standing::None };
        let Some(lease) = self.raft.group(id).and_then(flotilla_consensus::Group::lease) else { return Standing::None };
        let left_ms = lease.left_ms(self.now_ms, length_ms);
        if left_ms == 0 {
            return Standing::None;
        }
        let Some(replica) = self.replicas.get_mut(&id) else { return Standing::None };
        let reads = std::mem::take(&mut replica.reads);
        self.reads.by_lease += reads.len() as u64;
        replica.confirmed.push_back((lease.index(), reads));
        self.serve_confirmed(id, effects);
        if 2 * left_ms < length_ms { Standing::Fading } else { Standing::Fresh }
    }

    /// Shards of which this node would answer strong reads without asking anybody, if its clock said `now_ms`.
    #[must_use]
    pub fn leases(&self, now_ms: u64) -> Vec<(ShardId, Term)> {
        let Some(length_ms) = self.config.lease_ms() else { return Vec::new() };
        let lasts = |lease: flotilla_consensus::Lease| lease.left_ms(now_ms, length_ms) > 0;
        let held = self.raft.groups().filter(|group| group.lease().is_some_and(lasts));
        held.map(|group| (group.shard(), group.term())).collect()
    }

    /// Strong reads so far, by what they rested on.
    #[must_use]
    pub fn read_counts(&self) -> ReadCounts {
        self.reads
    }
}
