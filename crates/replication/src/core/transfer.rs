//! Giving leaderships away: to a certain node, or to whoever can take them best.

use flotilla_consensus as consensus;
use flotilla_types::{NodeId, ReplicaDescriptor, ReplicaId, ReplicaRole, ShardId};

use super::Core;

impl<T> Core<T> {
    pub(super) fn transfer(&mut self, shard: ShardId, to: NodeId) {
        let Some(replica) = self.serving.get(&shard) else { return };
        let voter_there = |held: &&ReplicaDescriptor| held.node == to && held.role == ReplicaRole::Voter;
        let group = self.raft.group(*replica);
        if let Some(target) = group.and_then(|group| group.descriptor().replicas.iter().find(voter_there)) {
            let transfer = consensus::Input::Transfer { replica: *replica, to: target.replica };
            self.raft.step(transfer, &mut self.raft_effects);
        }
    }

    /// Transfers each leadership to the active voter with the longest matching log.
    pub(super) fn transfer_leaderships(&mut self) {
        let transfers: Vec<_> = self.raft.led().filter_map(transfer_to_best).collect();
        for transfer in transfers {
            self.raft.step(transfer, &mut self.raft_effects);
        }
    }

    /// The same with the leadership of one replica.
    pub(super) fn transfer_leadership(&mut self, replica: ReplicaId) {
        if let Some(transfer) = self.raft.group(replica).and_then(transfer_to_best) {
            self.raft.step(transfer, &mut self.raft_effects);
        }
    }
}

/// The transfer to the active voter with the longest matching log; `None` if there is none, or on a follower.
fn transfer_to_best(group: &consensus::Group) -> Option<consensus::Input> {
    let status = group.status();
    let voters = status.followers.iter().filter(|follower| {
        follower.recently_active && !follower.in_snapshot && status.conf.voters.contains(&follower.replica)
    });
    let target = voters.max_by_key(|follower| follower.matched)?.replica;
    Some(consensus::Input::Transfer { replica: group.replica(), to: target })
}
