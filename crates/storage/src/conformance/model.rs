//! A model of one replica's records, and a small pseudo-random generator for random walks.
//!
//! The same seed gives the same walk on every machine.

use std::collections::BTreeMap;

use bytes::Bytes;
use flotilla_types::KeyRange;

use crate::WriteSet;

/// The expected records of a replica.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Model(BTreeMap<Bytes, Bytes>);

impl Model {
    pub(super) fn write(&mut self, records: &WriteSet) {
        for (key, value) in records {
            match value {
                Some(value) => self.0.insert(key.clone(), value.bytes().clone()),
                None => self.0.remove(key),
            };
        }
    }

    pub(super) fn get(&self, key: &[u8]) -> Option<Bytes> {
        self.0.get(key).cloned()
    }

    pub(super) fn range(&self, range: &KeyRange) -> Vec<(Bytes, Bytes)> {
        self.0.iter().filter(|(key, _)| range.contains(key)).map(|(key, value)| (key.clone(), value.clone())).collect()
    }
}

/// A pseudo-random generator (Marsaglia, "Xorshift RNGs", 2003).
pub(super) struct Choices(u64);

impl Choices {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    /// A number below `bound`.
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}
