//! Hints about the leader of each shard.
//!
//! A wrong hint costs a redirect, never correctness. Hints are separate from [`crate::ShardMap`] because they
//! change with every election and need no agreement.

use std::{cmp::Ordering, collections::BTreeMap};

use flotilla_types::{NodeId, ShardId, Term};

use crate::ShardMap;

/// Hints that may be kept beyond two for each shard, before dropped shards are looked for: more than a cluster
/// has shards, because a node that has just joined hears of leaders before it has the map.
const SPARE_HINTS: usize = 32_768;

/// The newest current leader of each shard. Merging is commutative, associative and idempotent: the higher
/// term wins.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LeaderHints {
    hints: BTreeMap<ShardId, Hint>,
    /// How often nodes were cleared.
    clears: u64,
    /// At which of them each node was cleared last. Older hints that name it are void, but keep their terms,
    /// so that older ones cannot replace them.
    cleared: BTreeMap<NodeId, u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Hint {
    term: Term,
    node: NodeId,
    /// [`LeaderHints::clears`] when it was last observed.
    clears: u64,
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
        self.hints.get(&shard).filter(|hint| self.is_valid(hint)).map(|hint| (hint.term, hint.node))
    }

    /// Whether the shard had a leader at any time that is known here.
    #[must_use]
    pub fn was_led(&self, shard: ShardId) -> bool {
        self.hints.contains_key(&shard)
    }

    /// Records a leader. Returns whether the hint changed. A term has one leader; if two are reported
    /// nevertheless, the higher node id is kept, so that the order of arrival does not matter.
    pub fn observe(&mut self, shard: ShardId, term: Term, node: NodeId) -> bool {
        let newer = self.hints.get(&shard).is_none_or(|known| match (term, node).cmp(&(known.term, known.node)) {
            Ordering::Less => false,
            Ordering::Equal => !self.is_valid(known),
            Ordering::Greater => true,
        });
        if newer {
            self.hints.insert(shard, Hint { term, node, clears: self.clears });
        }
        newer
    }

    /// Merges another set of hints. Returns whether anything changed.
    pub fn merge(&mut self, other: &Self) -> bool {
        let mut changed = false;
        for (shard, term, node) in other.iter() {
            changed |= self.observe(shard, term, node);
        }
        changed
    }

    /// Clears the hints that name a node that is down or gone. A hint of the same or a newer term restores
    /// it.
    pub fn clear_node(&mut self, node: NodeId) {
        self.clears += 1;
        self.cleared.insert(node, self.clears);
    }

    /// Drops hints for shards that the map does not have, once they may be more than those that it has: which
    /// bounds the memory that peers can occupy here.
    pub fn forget_dropped(&mut self, map: &ShardMap) {
        if self.hints.len() > 2 * map.shard_count() + SPARE_HINTS {
            self.hints.retain(|shard, _| map.shard(*shard).is_some());
        }
    }

    /// Every hint, ordered by shard.
    pub fn iter(&self) -> impl Iterator<Item = (ShardId, Term, NodeId)> + '_ {
        let valid = self.hints.iter().filter(|(_, hint)| self.is_valid(hint));
        valid.map(|(shard, hint)| (*shard, hint.term, hint.node))
    }

    fn is_valid(&self, hint: &Hint) -> bool {
        self.cleared.get(&hint.node).is_none_or(|at| hint.clears >= *at)
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

    #[test]
    fn clearing_one_node_leaves_the_others_and_what_is_observed_later() {
        let mut hints = LeaderHints::default();
        for (shard, node) in [(1, 1), (2, 2), (3, 1)] {
            hints.observe(ShardId(shard), Term(5), NodeId(node));
        }
        hints.clear_node(NodeId(1));
        hints.observe(ShardId(3), Term(6), NodeId(1));
        assert_eq!([1, 2, 3].map(|shard| hints.leader(ShardId(shard))), [None, Some(NodeId(2)), Some(NodeId(1))]);
        hints.clear_node(NodeId(2));
        assert_eq!(hints.iter().collect::<Vec<_>>(), [(ShardId(3), Term(6), NodeId(1))]);
    }

    #[test]
    fn hints_for_unknown_shards_do_not_accumulate() {
        let mut hints = LeaderHints::default();
        for shard in 0..100_000 {
            hints.observe(ShardId(shard), Term(1), NodeId(1));
            hints.forget_dropped(&ShardMap::default());
            assert!(hints.hints.len() <= SPARE_HINTS);
        }
    }

    #[test]
    fn leaders_that_are_heard_of_before_the_map_are_kept() {
        let mut hints = LeaderHints::default();
        for shard in 0..20_000 {
            hints.observe(ShardId(shard), Term(1), NodeId(1));
            hints.forget_dropped(&ShardMap::default());
        }
        assert_eq!(hints.leader(ShardId(0)), Some(NodeId(1)));
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
