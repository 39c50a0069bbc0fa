//! The memoized configurations of a search: the set of operations in the order, and the state they led to.
//!
//! A configuration is stored as a fingerprint of 128 bits. A collision (for n configurations with a
//! probability of about n² / 2¹²⁹) makes the search skip a configuration: it may then miss an order, but
//! never report a wrong one. So a collision can only cause a false alarm.
//!
//! Operations of unknown outcome are not part of the fingerprint but stored as numbers used per class: a
//! configuration also counts as seen when one with the same known operations and the same state has used
//! *fewer* of them. Whatever can follow the new one can follow the earlier one, because the additional
//! operations may as well never happen.

use std::{
    collections::{HashMap, hash_map::Entry},
    hash::{BuildHasherDefault, Hash, Hasher},
    rc::Rc,
};

/// For each class of equal operations of unknown outcome: how many are in the order.
pub(crate) type Used = Rc<[u32]>;

/// A 128-bit hash.
pub(crate) type Fingerprint = u128;

/// The set of memoized configurations.
#[derive(Default)]
pub(crate) struct Seen {
    /// Per fingerprint, only minimal entries: none uses at most as much as another in every class.
    by_print: HashMap<Fingerprint, Vec<Used>, BuildHasherDefault<Truncate>>,
    len: usize,
}

impl Seen {
    /// Stores a configuration; `false` when an earlier one covers it.
    pub(crate) fn insert(&mut self, print: Fingerprint, used: &Used) -> bool {
        match self.by_print.entry(print) {
            Entry::Vacant(entry) => {
                entry.insert(vec![Rc::clone(used)]);
            }
            Entry::Occupied(mut entry) => {
                let all = entry.get_mut();
                if all.iter().any(|known| no_more(known, used)) {
                    return false;
                }
                let before = all.len();
                all.retain(|known| !no_more(used, known));
                self.len -= before - all.len();
                all.push(Rc::clone(used));
            }
        }
        self.len += 1;
        true
    }

    /// Number of configurations stored.
    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

fn no_more(one: &Used, other: &Used) -> bool {
    Rc::ptr_eq(one, other) || one.iter().zip(other.iter()).all(|(one, other)| one <= other)
}

/// The fingerprint of a value.
pub(crate) fn fingerprint(value: &impl Hash) -> Fingerprint {
    let mut lanes = Lanes { low: 0x243f_6a88_85a3_08d3, high: 0x1319_8a2e_0370_7344 };
    value.hash(&mut lanes);
    u128::from(lanes.low) | u128::from(lanes.high) << 64
}

/// The fingerprint of the number of an operation. Fingerprints of a set are combined by exclusive or, so that
/// removing an operation is as cheap as adding one.
pub(crate) fn fingerprint_of_number(number: u64) -> Fingerprint {
    u128::from(mix(number.wrapping_add(0x9e37_79b9_7f4a_7c15)))
        | u128::from(mix(number ^ 0xd1b5_4a32_d192_ed03).wrapping_mul(0xff51_afd7_ed55_8ccd)) << 64
}

/// Two hashes side by side, each of 64 bits.
struct Lanes {
    low: u64,
    high: u64,
}

impl Hasher for Lanes {
    fn finish(&self) -> u64 {
        self.low
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
        self.write_u64(bytes.len() as u64);
    }

    fn write_u64(&mut self, word: u64) {
        self.low = mix(self.low ^ word);
        self.high = mix(self.high.rotate_left(29).wrapping_add(word).wrapping_mul(0x9fb2_1c65_1e98_df25));
    }

    fn write_u32(&mut self, word: u32) {
        self.write_u64(u64::from(word));
    }

    fn write_usize(&mut self, word: usize) {
        self.write_u64(word as u64);
    }
}

/// The finaliser of SplitMix64 (Steele, Lea and Flood 2014), a bijection.
fn mix(mut word: u64) -> u64 {
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// For keys that are hashes already.
#[derive(Default)]
struct Truncate(u64);

impl Hasher for Truncate {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("only fingerprints are hashed");
    }

    fn write_u128(&mut self, print: u128) {
        self.0 = print as u64;
    }
}
