//! Filters leader notices down to the changes that are reported to the operator.

use std::collections::BTreeMap;

use flotilla_types::{ShardId, Term};

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
}
