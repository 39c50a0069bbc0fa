//! Who is believed to lead each shard.
//!
//! Hints are only hints: a wrong one costs a redirect, never correctness. They are kept apart from [`crate::ShardMap`] because
//! they change with every election and need no agreement.

use std::collections::BTreeMap;

use flotilla_types::{NodeId, ShardId, Term};

use crate::ShardMap;

/// The newest known leader of each shard. Merging is commutative, associative and idempotent: the higher term wins.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LeaderHints {
    /// [`NodeId::NONE`] remembers the term of a leader that was cleared, so that older hints do not come back.
    hints: BTreeMap<ShardId, (Term, NodeId)>,
}

impl LeaderHints {
    /// The node believed to lead the shard.
    #[must_use]
    pub fn leader(&self, shard: ShardId) -> Option<NodeId> {
        self.get(shard).map(|(_, node)| node)
    }

    /// The believed leader with its term.
    #[must_use]
    pub fn get(&self, shard: ShardId) -> Option<(Term, NodeId)> {
        self.hints.get(&shard).copied().filter(|(_, node)| *node != NodeId::NONE)
    }

    /// Learns of a leader. Returns whether anything changed. A term has one leader; should two be named all the same,
    /// the higher node id is kept, so that the order of arrival does not matter.
    pub fn observe(&mut self, shard: ShardId, term: Term, node: NodeId) -> bool {
        let known = self.hints.entry(shard).or_insert((Term(0), NodeId::NONE));
        let newer = (term, node) > *known;
        if newer {
            *known = (term, node);
        }
        newer
    }

    /// Learns everything another set of hints knows. Returns whether anything changed.
    pub fn merge(&mut self, other: &Self) -> bool {
        let mut changed = false;
        for (&shard, &(term, node)) in &other.hints {
            changed |= self.observe(shard, term, node);
        }
        changed
    }

    /// Forgets a node that is down or gone as a leader. A hint of the same or a newer term brings it back.
    pub fn clear_node(&mut self, node: NodeId) {
        for (_, leader) in self.hints.values_mut() {
            if *leader == node {
                *leader = NodeId::NONE;
            }
        }
    }

    /// Drops hints on shards the map does not know, which bounds what peers can make this node remember.
    pub fn retain_known(&mut self, map: &ShardMap) {
        self.hints.retain(|shard, _| map.shard(*shard).is_some());
    }

    /// Every shard with a believed leader, in order.
    pub fn iter(&self) -> impl Iterator<Item = (ShardId, Term, NodeId)> + '_ {
        self.hints
            .iter()
            .filter(|(_, (_, node))| *node != NodeId::NONE)
            .map(|(&shard, &(term, node))| (shard, term, node))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SHARD: ShardId = ShardId(3);

    #[test]
    fn an_older_term_never_replaces_a_newer_one() {
        let mut hints = LeaderHints::default();
        assert!(hints.observe(SHARD, Term(5), NodeId(1)));
        assert!(!hints.observe(SHARD, Term(4), NodeId(2)));
        assert_eq!(hints.leader(SHARD), Some(NodeId(1)));
    }

    #[test]
    fn a_cleared_leader_does_not_give_way_to_an_older_one() {
        let mut hints = LeaderHints::default();
        hints.observe(SHARD, Term(5), NodeId(1));
        hints.clear_node(NodeId(1));
        assert_eq!(hints.leader(SHARD), None);
        assert!(!hints.observe(SHARD, Term(4), NodeId(2)));
        assert!(hints.observe(SHARD, Term(5), NodeId(1)));
        assert_eq!(hints.leader(SHARD), Some(NodeId(1)));
    }

    fn any_hints() -> impl Strategy<Value = LeaderHints> {
        proptest::collection::vec((0_u64..4, 0_u64..5, 0_u64..4), 0..12).prop_map(|seen| {
            let mut hints = LeaderHints::default();
            for (shard, term, node) in seen {
                hints.observe(ShardId(shard), Term(term), NodeId(node));
            }
            hints
        })
    }

    fn merged(mut left: LeaderHints, right: &LeaderHints) -> LeaderHints {
        left.merge(right);
        left
    }

    proptest! {
        #[test]
        fn merge_is_a_join(a in any_hints(), b in any_hints(), c in any_hints()) {
            prop_assert_eq!(merged(a.clone(), &b), merged(b.clone(), &a));
            prop_assert_eq!(merged(merged(a.clone(), &b), &c), merged(a.clone(), &merged(b, &c)));
            prop_assert_eq!(merged(a.clone(), &a), a);
        }
    }
}
