//! Strong reads by lease: when a leader may answer without a quorum round, and when it renews the lease in
//! advance.
//!
//! The consensus crate says how a lease is earned and why it is safe; here it is compared with a clock. The
//! order matters: [`Core::step`] takes the reads, then the shell reads its clock, then [`Core::flush`] checks
//! the lease by it. A group without reads renews nothing. Deliberately absent: leases for followers.

use flotilla_types::{ReplicaId, ShardId, Term};

use super::{Core, Effects};

/// Number of strong reads since the start, by how leadership was confirmed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReadCounts {
    /// Answered under a lease.
    pub by_lease: u64,
    /// Answered after a quorum round.
    pub by_round: u64,
}

/// How much of a group's lease is left.
pub(super) enum LeaseState {
    /// There is no lease.
    None,
    /// Less than half is left: time to renew it.
    Expiring,
    /// At least half is left.
    Fresh,
}

impl<T> Core<T> {
    /// Serves all waiting reads if the lease is valid by the clock of this flush.
    pub(super) fn read_by_lease(&mut self, id: ReplicaId, effects: &mut Effects<T>) -> LeaseState {
        let Some(length_ms) = self.config.lease_ms() else { return LeaseState::None };
        let Some(lease) = self.raft.group(id).and_then(flotilla_consensus::Group::lease) else {
            return LeaseState::None;
        };
        let remaining_ms = lease.remaining_ms(self.now_ms, length_ms);
        if remaining_ms == 0 {
            return LeaseState::None;
        }
        let Some(replica) = self.replicas.get_mut(&id) else { return LeaseState::None };
        let reads = std::mem::take(&mut replica.reads);
        self.reads.by_lease += reads.len() as u64;
        replica.confirmed.push_back((lease.index(), reads));
        self.serve_confirmed(id, effects);
        if 2 * remaining_ms < length_ms { LeaseState::Expiring } else { LeaseState::Fresh }
    }

    /// Shards whose lease this node would hold if its clock said `now_ms`.
    #[must_use]
    pub fn leases(&self, now_ms: u64) -> Vec<(ShardId, Term)> {
        let Some(length_ms) = self.config.lease_ms() else { return Vec::new() };
        let lasts = |lease: flotilla_consensus::Lease| lease.remaining_ms(now_ms, length_ms) > 0;
        let held = self.raft.groups().filter(|group| group.lease().is_some_and(lasts));
        held.map(|group| (group.shard(), group.term())).collect()
    }

    /// Number of strong reads so far, by how leadership was confirmed.
    #[must_use]
    pub fn read_counts(&self) -> ReadCounts {
        self.reads
    }
}
