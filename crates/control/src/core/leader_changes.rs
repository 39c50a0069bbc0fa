//! Filters leader notices down to the changes that are reported to the operator.

use std::collections::BTreeMap;

use flotilla_placement::ShardMap;
use flotilla_types::{ShardId, Term};

/// Terms that may be kept beyond two for each shard, before dropped shards are looked for.
const SPARE_TERMS: usize = 64;

/// The last reported term of each shard. Separate from the leader hints, which are cleared when a leader is
/// unreachable.
#[derive(Debug, Default)]
pub(crate) struct LeaderChanges {
    terms: BTreeMap<ShardId, Term>,
}

impl LeaderChanges {
    /// Records a leader's term. Returns whether it is newer than every term reported for the shard.
    pub(crate) fn observe(&mut self, shard: ShardId, term: Term) -> bool {
        let reported = self.terms.entry(shard).or_default();
        let newer = term > *reported;
        if newer {
            *reported = term;
        }
        newer
    }

    /// Forgets shards that the map does not have, once they may be more than those that it has.
    pub(crate) fn forget_dropped(&mut self, map: &ShardMap) {
        if self.terms.len() > 2 * map.shard_count() + SPARE_TERMS {
            self.terms.retain(|shard, _| map.shard(*shard).is_some());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_term_is_reported_once() {
        let mut changes = LeaderChanges::default();
        let reported = [2, 2, 3, 2].map(|term| changes.observe(ShardId(1), Term(term)));
        assert_eq!(reported, [true, false, true, false]);
    }

    #[test]
    fn dropped_shards_do_not_accumulate() {
        let mut changes = LeaderChanges::default();
        for shard in 0..10_000 {
            changes.observe(ShardId(shard), Term(1));
            changes.forget_dropped(&ShardMap::default());
            assert!(changes.terms.len() <= SPARE_TERMS);
        }
    }
}
