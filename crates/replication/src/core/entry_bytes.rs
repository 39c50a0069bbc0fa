//! The bytes of a replica's recent log, so that the tail behind a checkpoint has a bound in bytes.
//!
//! Counted are committed entries, when they are delivered: nothing overwrites them, and a restart delivers
//! those after the checkpoint again. Counted in steps: a position inside a step counts as its end, so a tail
//! may be shorter than its bound, never longer. What was not counted, because an earlier run truncated its
//! log up to there, has no known size and belongs to no tail.

use std::collections::VecDeque;

use flotilla_types::LogIndex;

/// Cumulative bytes of the log at some of its entries.
#[derive(Debug, Clone)]
pub(super) struct EntryBytes {
    /// The last entry of each step and the bytes up to it, ascending. The first one only marks where counting
    /// began.
    steps: VecDeque<(LogIndex, u64)>,
    /// The last entry counted.
    last: LogIndex,
    /// Bytes up to it.
    total: u64,
}

impl EntryBytes {
    /// Counts the entries after this one.
    pub(super) fn after(index: LogIndex) -> Self {
        Self { steps: VecDeque::from([(index, 0)]), last: index, total: 0 }
    }

    /// Counts an entry. One step ends when `step` bytes are in it.
    pub(super) fn add(&mut self, index: LogIndex, bytes: u64, step: u64) {
        if index <= self.last {
            return;
        }
        self.last = index;
        self.total += bytes;
        let begun = self.steps.back().map_or(0, |(_, total)| *total);
        if self.total - begun >= step {
            self.steps.push_back((index, self.total));
        }
    }

    /// The last entry before the longest tail that ends with `index` and has at most so many bytes.
    pub(super) fn tail(&self, index: LogIndex, bytes_max: u64) -> LogIndex {
        let end = self.steps.iter().find(|(last, _)| *last >= index).map_or(self.total, |(_, total)| *total);
        let fits = |(_, total): &&(LogIndex, u64)| end - total.min(&end) <= bytes_max;
        self.steps.iter().find(fits).map_or(index, |(last, _)| (*last).min(index))
    }

    /// Bytes of the entries after `index`; those of its step count.
    pub(super) fn since(&self, index: LogIndex) -> u64 {
        let before = self.steps.iter().rev().find(|(last, _)| *last <= index).map_or(0, |(_, total)| *total);
        self.total - before
    }

    /// Forgets entries up to `index`: they were truncated.
    pub(super) fn forget(&mut self, index: LogIndex) {
        while self.steps.get(1).is_some_and(|(last, _)| *last <= index) {
            self.steps.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    proptest! {
        #[test]
        fn a_tail_is_within_its_bound_and_longer_by_no_more_than_two_steps(
            sizes in vec(0_u64..200, 1..200), step in 1_u64..150, bytes_max in 0_u64..2_000, cut in 0_usize..200,
        ) {
            let mut counted = EntryBytes::after(LogIndex(10));
            for (at, size) in sizes.iter().enumerate() {
                counted.add(LogIndex(11 + at as u64), *size, step);
            }
            let count = sizes.len();
            let bytes = |from: usize, to: usize| sizes[from.min(to)..to].iter().sum::<u64>();
            let at = cut.min(count);
            let from = counted.tail(LogIndex(10 + at as u64), bytes_max);
            prop_assert!((10..=10 + at as u64).contains(&from.0));
            let from = (from.0 - 10) as usize;
            prop_assert!(bytes(from, at) <= bytes_max);
            // A step may end with an entry that is larger than itself.
            prop_assert!(from == 0 || bytes(from, at) + 2 * (step + 200) > bytes_max);
            let since = counted.since(LogIndex(10 + at as u64));
            prop_assert!(since >= bytes(at, count) && since < bytes(at, count) + step + 200);

            counted.forget(LogIndex(10 + from as u64));
            prop_assert_eq!(counted.tail(LogIndex(10 + at as u64), bytes_max).0, 10 + from as u64, "what is kept still counts");
        }
    }

    #[test]
    fn entries_that_are_delivered_again_count_once() {
        let mut counted = EntryBytes::after(LogIndex(5));
        for index in [6, 7, 6, 7, 8] {
            counted.add(LogIndex(index), 100, 1);
        }
        assert_eq!(counted.since(LogIndex(5)), 300);
        assert_eq!(counted.tail(LogIndex(8), 250), LogIndex(6));
    }

    #[test]
    fn the_number_of_steps_follows_from_what_is_kept() {
        let mut counted = EntryBytes::after(LogIndex(0));
        for index in 1..=100_000 {
            counted.add(LogIndex(index), 30, 1_000);
            counted.forget(counted.tail(LogIndex(index), 16_000));
            assert!(counted.steps.len() <= 18);
        }
    }
}
