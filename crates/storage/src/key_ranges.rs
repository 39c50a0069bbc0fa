//! The keys that splits of its shard have left to a replica.

use bytes::Bytes;
use flotilla_types::KeyRange;

/// Keys as ascending ranges, none of which is empty or overlaps another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRanges(Vec<KeyRange>);

impl KeyRanges {
    /// Every key.
    #[must_use]
    pub fn all() -> Self {
        Self(vec![KeyRange::all()])
    }

    /// Whether these are all keys.
    #[must_use]
    pub fn is_all(&self) -> bool {
        self.0 == [KeyRange::all()]
    }

    /// Whether the key is one of them.
    #[must_use]
    pub fn contains(&self, key: &[u8]) -> bool {
        self.0.iter().any(|range| range.contains(key))
    }

    /// Those that also lie in a range.
    pub fn within<'a>(&'a self, range: &'a KeyRange) -> impl Iterator<Item = KeyRange> + 'a {
        self.0.iter().map(|own| own.intersection(range)).filter(|both| !both.is_empty())
    }

    /// The keys of both replicas after a split: of the one that gives up the users' keys from `at` on, and of the new
    /// one. Both have [`KeyRange::internal`].
    #[must_use]
    pub fn split_at(&self, at: &Bytes) -> (Self, Self) {
        let internal = KeyRange::internal();
        let at = at.clone().min(internal.start.clone());
        let right = KeyRange { start: at.clone(), end: Bytes::new() };
        let left = if at == internal.start {
            vec![KeyRange::all()]
        } else if at.is_empty() {
            // As an end, it would be no bound.
            vec![internal]
        } else {
            vec![KeyRange { start: Bytes::new(), end: at }, internal]
        };
        (Self(left.iter().flat_map(|range| self.within(range)).collect()), Self(self.within(&right).collect()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_split_leaves_each_key_of_users_to_one_replica(
            splits in vec(vec(250_u8.., 0..6), 1..4),
            keys in vec(vec(250_u8.., 0..6), 1..40),
        ) {
            let internal = KeyRange::internal();
            let mut ranges = KeyRanges::all();
            for at in splits.into_iter().map(Bytes::from) {
                let (left, right) = ranges.split_at(&at);
                for key in &keys {
                    let both = (left.contains(key), right.contains(key));
                    let expected = match (ranges.contains(key), internal.contains(key)) {
                        (false, _) => (false, false),
                        (true, true) => (true, true),
                        (true, false) => (key[..] < at[..], key[..] >= at[..]),
                    };
                    prop_assert_eq!(both, expected);
                    let holding = |ranges: &KeyRanges| ranges.0.iter().filter(|range| range.contains(key)).count();
                    prop_assert!(holding(&left) <= 1 && holding(&right) <= 1, "a key is in one range at most");
                }
                prop_assert_eq!(left.split_at(&at).0, left.clone(), "cutting twice changes nothing");
                ranges = left;
            }
        }
    }
}
