//! Hints about the leader of each shard.
//!
//! A wrong hint costs a redirect, never correctness. Hints are separate from [`crate::ShardMap`] because they
//! change with every election and need no agreement.

use std::collections::BTreeMap;

use flotilla_types::{NodeId, ShardId, Term};

use crate::ShardMap;

/// The newest current leader of each shard. Merging is commutative, associative and idempotent: the higher
/// term wins.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LeaderHints {
    /// [`NodeId::NONE`] keeps the term of a cleared leader, so that older hints cannot replace it.
    hints: BTreeMap<ShardId, (Term, NodeId)>,
}

impl LeaderHints {
    /// The hinted leader of a shard.
    #[must_use]
    pub fn leader(&self, shard: ShardId) -> Option<NodeId> {
        self.get(shard).map(|(_, node)| node)
    }

    /// The hinted leader with its term.
    #[must_use]
    pub fn get(&self, shard: ShardId) -> Option<(Term, NodeId)> {
        self.hints.get(&shard).copied().filter(|(_, node)| *node != NodeId::NONE)
    }

    /// Whether the shard had a leader at any time that is known here.
    #[must_use]
    pub fn was_led(&self, shard: ShardId) -> bool {
        self.hints.contains_key(&shard)
    }

    /// Records a leader. Returns whether the hint changed. A term has one leader; if two are reported
    /// nevertheless, the higher node id is kept, so that the order of arrival does not matter.
    pub fn observe(&mut self, shard: ShardId, term: Term, node: NodeId) -> bool {
        let current = self.hints.entry(shard).or_insert((Term(0), NodeId::NONE));
        let newer = (term, node) > *current;
        if newer {
            *current = (term, node);
        }
        newer
    }

    /// Merges another set of hints. Returns whether anything changed.
    pub fn merge(&mut self, other: &Self) -> bool {
        let mut changed = false;
        for (&shard, &(term, node)) in &other.hints {
            changed |= self.observe(shard, term, node);
        }
        changed
    }

    /// Clears the hints that name a node that is down or gone. A hint of the same or a newer term restores
    /// it.
    pub fn clear_node(&mut self, node: NodeId) {
        for (_, leader) in self.hints.values_mut() {
            if *leader == node {
                *leader = NodeId::NONE;
            }
        }
    }

    /// Drops hints for shards that are not in the map, which bounds the memory that peers can occupy here.
    pub fn retain_known(&mut self, map: &ShardMap) {
        self.hints.retain(|shard, _| map.shard(*shard).is_some());
    }

    /// Every hint, ordered by shard.
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
    fn older_term_never_replaces_a_newer_one() {
        let mut hints = LeaderHints::default();
        assert!(hints.observe(SHARD, Term(5), NodeId(1)));
        assert!(!hints.observe(SHARD, Term(4), NodeId(2)));
        assert_eq!(hints.leader(SHARD), Some(NodeId(1)));
    }

    #[test]
    fn a_shard_that_lost_its_leader_was_led() {
        let mut hints = LeaderHints::default();
        assert!(!hints.was_led(SHARD));
        hints.observe(SHARD, Term(5), NodeId(1));
        hints.clear_node(NodeId(1));
        assert_eq!((hints.leader(SHARD), hints.was_led(SHARD)), (None, true));
    }

    #[test]
    fn cleared_leader_is_not_replaced_by_an_older_one() {
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
        fn merge_is_commutative_associative_and_idempotent(a in any_hints(), b in any_hints(), c in any_hints()) {
            prop_assert_eq!(merged(a.clone(), &b), merged(b.clone(), &a));
            prop_assert_eq!(merged(merged(a.clone(), &b), &c), merged(a.clone(), &merged(b, &c)));
            prop_assert_eq!(merged(a.clone(), &a), a);
        }
    }
}
