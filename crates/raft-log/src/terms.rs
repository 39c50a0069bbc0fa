//! A cache of the terms of recent entries, so that Raft rarely reads the disk for them.
//!
//! Terms change rarely, so the cache holds runs of equal terms: one for each change since the log was opened,
//! up to a bound. Terms of entries before the first run must be read from the log.

use std::collections::VecDeque;

use flotilla_types::{Entry, LogIndex, Term};

/// Runs in the cache; the oldest is evicted first.
const RUNS_MAX: usize = 16;

/// Runs of equal terms, from the first cached entry to the end of the log.
#[derive(Debug, Clone, Default)]
pub(crate) struct Terms {
    runs: VecDeque<(LogIndex, Term)>,
}

impl Terms {
    /// Records appended entries, which replace all entries from the first one's index on.
    pub(crate) fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        while self.runs.back().is_some_and(|(start, _)| *start >= first.index) {
            self.runs.pop_back();
        }
        for entry in entries {
            if self.runs.back().is_none_or(|(_, term)| *term != entry.term) {
                self.runs.push_back((entry.index, entry.term));
            }
        }
        while self.runs.len() > RUNS_MAX {
            self.runs.pop_front();
        }
    }

    /// Forgets all terms, because the log was cleared.
    pub(crate) fn clear(&mut self) {
        self.runs.clear();
    }

    /// The term of an entry in the log, if it is cached.
    pub(crate) fn get(&self, index: LogIndex) -> Option<Term> {
        self.runs.iter().rev().find(|(start, _)| *start <= index).map(|(_, term)| *term)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use flotilla_types::EntryKind;

    use super::*;

    fn entries(terms: impl IntoIterator<Item = (u64, u64)>) -> Vec<Entry> {
        let entry = |(index, term)| Entry {
            index: LogIndex(index),
            term: Term(term),
            kind: EntryKind::Normal,
            data: Bytes::new(),
            context: Bytes::new(),
        };
        terms.into_iter().map(entry).collect()
    }

    #[test]
    fn replaced_entries_lose_their_terms() {
        let mut terms = Terms::default();
        assert_eq!(terms.get(LogIndex(1)), None);
        terms.append(&entries([(5, 1), (6, 1), (7, 2), (8, 3)]));
        let known = |terms: &Terms| [4, 5, 6, 7, 8].map(|index| terms.get(LogIndex(index)).map(Term::get));
        assert_eq!(known(&terms), [None, Some(1), Some(1), Some(2), Some(3)]);
        terms.append(&entries([(6, 4), (7, 4)]));
        assert_eq!(known(&terms)[..4], [None, Some(1), Some(4), Some(4)]);
        terms.append(&entries([(4, 5)]));
        assert_eq!(terms.get(LogIndex(4)), Some(Term(5)));
        assert_eq!(terms.get(LogIndex(3)), None);
    }

    #[test]
    fn old_runs_are_forgotten() {
        let mut terms = Terms::default();
        terms.append(&entries((1..=100).map(|index| (index, index))));
        assert_eq!(terms.runs.len(), RUNS_MAX);
        assert_eq!((terms.get(LogIndex(84)), terms.get(LogIndex(85))), (None, Some(Term(85))));
    }
}
