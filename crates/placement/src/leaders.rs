//! Chooses which node should lead each shard, so that leaders are balanced.
//!
//! Invariants: only voters on usable nodes are chosen; no node leads two shards more for its weight than another
//! that could take one of them, directly or through a chain of transfers. A node of weight zero leads only what no
//! other one can. Each shard starts with its best rendezvous score, so that a node that joins or leaves moves few
//! leaders.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, VecDeque},
};

use flotilla_types::{NodeId, ReplicaRole, ShardDescriptor, ShardId};

use crate::rendezvous_score;

/// The preferred leader of every shard that has a voter on a usable node; `usable` has the weight of each.
///
/// Leaders are balanced as well as the replica sets allow (±1 when every node of equal weight could lead every
/// shard): first each shard takes the node with its best rendezvous score, then chains of transfers relieve the most
/// loaded nodes until no such chain is left (optimal semi-matching: Harvey et al., 2006).
#[must_use]
pub fn preferred_leaders<'a>(
    shards: impl IntoIterator<Item = &'a ShardDescriptor>,
    usable: &BTreeMap<NodeId, u32>,
) -> BTreeMap<ShardId, NodeId> {
    let weight = |node: NodeId| usable.get(&node).copied().unwrap_or(0);
    let mut assignment = Assignment { weights: usable.clone(), ..Assignment::default() };
    for descriptor in shards {
        let mut nodes: Vec<NodeId> = descriptor
            .replicas
            .iter()
            .filter(|replica| replica.role == ReplicaRole::Voter && usable.contains_key(&replica.node))
            .map(|replica| replica.node)
            .collect();
        if nodes.iter().any(|&node| weight(node) > 0) {
            nodes.retain(|&node| weight(node) > 0);
        }
        nodes.sort_by_key(|&node| (Reverse(rendezvous_score(descriptor.shard, node, weight(node).max(1))), node));
        nodes.dedup();
        if let Some(&first) = nodes.first() {
            for &node in &nodes {
                assignment.led.entry(node).or_default();
            }
            assignment.candidates.insert(descriptor.shard, nodes);
            assignment.assign(descriptor.shard, first);
        }
    }
    assignment.balance();
    assignment.leaders
}

#[derive(Default)]
struct Assignment {
    weights: BTreeMap<NodeId, u32>,
    /// The nodes that may lead each shard, best first.
    candidates: BTreeMap<ShardId, Vec<NodeId>>,
    leaders: BTreeMap<ShardId, NodeId>,
    led: BTreeMap<NodeId, BTreeSet<ShardId>>,
    /// The shards that a node leads and another may lead, so that a search for a chain visits nodes only.
    transferable: BTreeMap<NodeId, BTreeMap<NodeId, BTreeSet<ShardId>>>,
}

impl Assignment {
    fn assign(&mut self, shard: ShardId, node: NodeId) {
        let candidates = self.candidates.get(&shard).map_or(&[][..], Vec::as_slice);
        if let Some(before) = self.leaders.insert(shard, node) {
            self.led.entry(before).or_default().remove(&shard);
            let transferable = self.transferable.entry(before).or_default();
            for other in candidates.iter().filter(|other| **other != before) {
                transferable.entry(*other).or_default().remove(&shard);
            }
        }
        self.led.entry(node).or_default().insert(shard);
        let transferable = self.transferable.entry(node).or_default();
        for other in candidates.iter().filter(|other| **other != node) {
            transferable.entry(*other).or_default().insert(shard);
        }
    }

    fn load(&self, node: NodeId) -> usize {
        self.led.get(&node).map_or(0, BTreeSet::len)
    }

    /// At least one: nodes of weight zero are candidates only beside each other.
    fn weight(&self, node: NodeId) -> u64 {
        self.weights.get(&node).map_or(1, |weight| u64::from(*weight).max(1))
    }

    /// How many leaders a node has for its weight, in thousandths.
    fn relative_load(&self, node: NodeId) -> u64 {
        self.load(node) as u64 * 1_000 / self.weight(node)
    }

    /// Whether one more leader on a node, and one less on the other, lowers the sum of squared loads, each divided by
    /// its weight. With equal weights: whether the node has two less.
    fn relieves(&self, node: NodeId, donor: NodeId) -> bool {
        let twice = |node| 2 * self.load(node) as u64;
        (twice(node) + 1) * self.weight(donor) < twice(donor).saturating_sub(1) * self.weight(node)
    }

    /// Terminates because each chain of transfers lowers the sum of squared loads, each divided by its weight.
    fn balance(&mut self) {
        loop {
            let mut donors: Vec<NodeId> = self.led.keys().copied().collect();
            donors.sort_by_key(|&node| (Reverse(self.relative_load(node)), node));
            let Some(chain) = donors.into_iter().find_map(|donor| self.transfer_chain(donor)) else { return };
            for (shard, node) in chain {
                self.assign(shard, node);
            }
        }
    }

    /// The shortest chain of transfers from this node to one that leads at least two shards fewer for its weight
    /// (breadth-first search).
    fn transfer_chain(&self, donor: NodeId) -> Option<Vec<(ShardId, NodeId)>> {
        let mut reached: BTreeMap<NodeId, Option<(ShardId, NodeId)>> = BTreeMap::from([(donor, None)]);
        let mut queue = VecDeque::from([donor]);
        while let Some(node) = queue.pop_front() {
            if self.relieves(node, donor) {
                let mut chain = Vec::new();
                let mut at = node;
                while let Some(Some((shard, from))) = reached.get(&at).copied() {
                    chain.push((shard, at));
                    at = from;
                }
                return Some(chain);
            }
            for (shard, next) in self.transfers_from(node) {
                reached.entry(next).or_insert_with(|| {
                    queue.push_back(next);
                    Some((shard, node))
                });
            }
        }
        None
    }

    /// For each node that could take a shard from this one, the first such shard; in the order of the shards,
    /// and of preference among the nodes that could take the same one.
    fn transfers_from(&self, node: NodeId) -> Vec<(ShardId, NodeId)> {
        let position = |shard, node| self.candidates.get(&shard)?.iter().position(|other| *other == node);
        let transferable = self.transferable.get(&node).into_iter().flatten();
        let mut transfers: Vec<_> = transferable.filter_map(|(next, shards)| Some((*shards.first()?, *next))).collect();
        transfers.sort_by_key(|&(shard, next)| (shard, position(shard, next)));
        transfers
    }
}

#[cfg(test)]
mod tests {
    use flotilla_types::{Epoch, KeyRange, ReplicaDescriptor, ReplicaId};
    use proptest::prelude::*;

    use super::*;

    fn shard(id: u64, nodes: &[u64]) -> ShardDescriptor {
        let replicas = nodes
            .iter()
            .map(|&node| ReplicaDescriptor { replica: ReplicaId(node), node: NodeId(node), role: ReplicaRole::Voter })
            .collect();
        ShardDescriptor { shard: ShardId(id), range: KeyRange::all(), epoch: Epoch::default(), replicas }
    }

    fn usable(nodes: impl IntoIterator<Item = u64>) -> BTreeMap<NodeId, u32> {
        nodes.into_iter().map(|node| (NodeId(node), 1)).collect()
    }

    fn loads(leaders: &BTreeMap<ShardId, NodeId>, nodes: &BTreeMap<NodeId, u32>) -> Vec<usize> {
        nodes.keys().map(|node| leaders.values().filter(|leader| *leader == node).count()).collect()
    }

    #[test]
    fn learners_and_unusable_nodes_never_lead() {
        let mut only = shard(1, &[1, 2, 3]);
        only.replicas[1].role = ReplicaRole::Learner;
        let leaders = preferred_leaders([&only], &usable([2, 3]));
        assert_eq!(leaders, BTreeMap::from([(ShardId(1), NodeId(3))]));
        assert!(preferred_leaders([&only], &usable([2])).is_empty());
    }

    #[test]
    fn chains_of_transfers_reach_balance() {
        // Node 3 can only take shard 4, so node 2 must first transfer it and then take one from node 1.
        let shards = [shard(1, &[1]), shard(2, &[1, 2]), shard(3, &[1, 2]), shard(4, &[2, 3]), shard(5, &[1, 2])];
        let leaders = preferred_leaders(&shards, &usable([1, 2, 3]));
        assert_eq!(leaders[&ShardId(4)], NodeId(3));
        assert_eq!(loads(&leaders, &usable([1, 2, 3])), [2, 2, 1]);
    }

    #[test]
    fn losing_one_node_of_five_moves_few_of_the_other_leaders() {
        let shards: Vec<_> = (0..100).map(|id| shard(id, &[1, 2, 3, 4, 5])).collect();
        let before = preferred_leaders(&shards, &usable(1..=5));
        let after = preferred_leaders(&shards, &usable(1..=4));
        let moved = shards
            .iter()
            .filter(|shard| before[&shard.shard] != NodeId(5) && before[&shard.shard] != after[&shard.shard])
            .count();
        assert!(moved <= 25, "{moved} of 80 leaders moved unnecessarily");
    }

    #[test]
    fn a_node_of_weight_zero_leads_only_what_no_other_one_can() {
        let shards = [shard(1, &[1, 2]), shard(2, &[1, 2]), shard(3, &[1])];
        let weights = BTreeMap::from([(NodeId(1), 0), (NodeId(2), 1)]);
        let leaders = preferred_leaders(&shards, &weights);
        assert_eq!(loads(&leaders, &weights), [1, 2]);
    }

    /// The transfers of [`Assignment::transfers_from`], found by a walk over all shards of a node.
    fn transfers_by_walk(assignment: &Assignment, node: NodeId) -> Vec<(ShardId, NodeId)> {
        let mut transfers: Vec<(ShardId, NodeId)> = Vec::new();
        for shard in &assignment.led[&node] {
            for next in assignment.candidates[shard].iter().filter(|next| **next != node) {
                if !transfers.iter().any(|(_, found)| found == next) {
                    transfers.push((*shard, *next));
                }
            }
        }
        transfers
    }

    proptest! {
        #[test]
        fn the_index_of_transfers_agrees_with_the_leaders(
            moves in proptest::collection::vec((0_u64..8, 0_usize..3), 1..40),
        ) {
            let mut assignment = Assignment::default();
            for shard in 0..8 {
                let nodes: Vec<_> = (0..3).map(|at| NodeId(1 + (shard * 3 + at * (1 + shard % 2)) % 5)).collect();
                assignment.candidates.insert(ShardId(shard), nodes);
            }
            for (shard, at) in moves {
                let node = assignment.candidates[&ShardId(shard)][at];
                assignment.assign(ShardId(shard), node);
                for node in assignment.led.keys() {
                    prop_assert_eq!(assignment.transfers_from(*node), transfers_by_walk(&assignment, *node));
                }
            }
        }

        #[test]
        fn leaders_are_proportional_to_weights_when_all_nodes_hold_all_shards(
            shards in 0_u64..60,
            weights in proptest::collection::vec(1_u32..6, 1..6),
        ) {
            let usable: BTreeMap<_, _> = (1..).map(NodeId).zip(weights).collect();
            let all: Vec<u64> = usable.keys().map(|node| node.0).collect();
            let shards_held: Vec<_> = (0..shards).map(|id| shard(id, &all)).collect();
            let leaders = preferred_leaders(&shards_held, &usable);
            let total: u32 = usable.values().sum();
            for (load, weight) in loads(&leaders, &usable).into_iter().zip(usable.values()) {
                let share = shards * u64::from(*weight) / u64::from(total);
                prop_assert!((load as u64).abs_diff(share) <= 2, "{load} instead of {share}");
            }
        }

        #[test]
        fn leaders_differ_by_at_most_one_when_all_nodes_hold_all_shards(shards in 0_u64..60, nodes in 1_u64..6) {
            let all: Vec<u64> = (1..=nodes).collect();
            let shards: Vec<_> = (0..shards).map(|id| shard(id, &all)).collect();
            let usable = usable(all);
            let leaders = preferred_leaders(&shards, &usable);
            prop_assert_eq!(leaders.len(), shards.len());
            let loads = loads(&leaders, &usable);
            prop_assert!(loads.iter().max().unwrap_or(&0) - loads.iter().min().unwrap_or(&0) <= 1, "{:?}", loads);
        }
    }
}
