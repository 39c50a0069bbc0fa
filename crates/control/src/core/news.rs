//! Which leaders are worth telling an operator of.

use std::collections::BTreeMap;

use flotilla_types::{ShardId, Term};

/// Tells new leaders from those that were reported before. Apart from the hints, which forget a leader that falls silent.
#[derive(Debug, Default)]
pub(crate) struct LeaderNews {
    terms: BTreeMap<ShardId, Term>,
}

impl LeaderNews {
    /// Whether a shard was not yet known to have a leader of this term.
    pub(crate) fn is_news(&mut self, shard: ShardId, term: Term) -> bool {
        let known = self.terms.entry(shard).or_default();
        let newer = term > *known;
        if newer {
            *known = term;
        }
        newer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_term_is_news_once() {
        let mut news = LeaderNews::default();
        let told: Vec<_> = [2, 2, 3, 2].map(|term| news.is_news(ShardId(1), Term(term))).to_vec();
        assert_eq!(told, [true, false, true, false]);
    }
}
