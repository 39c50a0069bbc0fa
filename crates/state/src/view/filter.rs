//! A Bloom filter that tells which keys a piece certainly does not hold.
//!
//! A blocked Bloom filter (Putze, Sanders, Singler: Cache-, Hash- and Space-Efficient Bloom Filters, 2007,
//! §3): all bits of a key lie in one block of 512 bits, so that a lookup costs one cache miss. With 10 bits
//! per key the false positive rate is about 1 in 80.

const BITS_PER_KEY: usize = 10;
const BLOCK_WORDS: usize = 8;
const BLOCK_BITS: usize = 64 * BLOCK_WORDS;
/// Bits set per key; each takes nine bits of the hash.
const PROBES: u32 = 6;
/// Remixes the hash, so that the bits within a block are independent of the block's number.
const SPREAD: u64 = 0x9E37_79B9_7F4A_7C15;

/// Built from the hashes of all keys. Lookups must use the same hash function.
#[derive(Debug)]
pub(super) struct Filter(Box<[[u64; BLOCK_WORDS]]>);

impl Filter {
    pub(super) fn of(hashes: &[u64]) -> Self {
        let blocks = (hashes.len() * BITS_PER_KEY).div_ceil(BLOCK_BITS).max(1);
        let mut filter = Self(vec![[0; BLOCK_WORDS]; blocks].into());
        for hash in hashes {
            let block = filter.block_of(*hash);
            for bit in bits(*hash) {
                filter.0[block][bit / 64] |= 1 << (bit % 64);
            }
        }
        filter
    }

    /// Returns `false` only if no key has this hash.
    pub(super) fn may_hold(&self, hash: u64) -> bool {
        let block = &self.0[self.block_of(hash)];
        bits(hash).all(|bit| block[bit / 64] & (1 << (bit % 64)) != 0)
    }

    pub(super) fn len_bytes(&self) -> usize {
        size_of_val(&*self.0)
    }

    fn block_of(&self, hash: u64) -> usize {
        // Scales the hash to the number of blocks.
        ((u128::from(hash) * self.0.len() as u128) >> 64) as usize
    }
}

fn bits(hash: u64) -> impl Iterator<Item = usize> {
    let spread = hash.wrapping_mul(SPREAD);
    (0..PROBES).map(move |probe| (spread >> (10 + 9 * probe)) as usize % BLOCK_BITS)
}

#[cfg(test)]
mod tests {
    use std::hash::{BuildHasher, RandomState};

    use super::*;

    #[test]
    fn no_false_negatives_and_few_false_positives() {
        let hasher = RandomState::new();
        let hash = |i: u32| hasher.hash_one(i);
        let filter = Filter::of(&(0..4_000).map(hash).collect::<Vec<_>>());
        assert!((0..4_000).all(|i| filter.may_hold(hash(i))));
        let wrong = (4_000..44_000).filter(|i| filter.may_hold(hash(*i))).count();
        assert!(wrong < 1_200, "{wrong} of 40,000 are false positives");
        assert!(filter.len_bytes() < 6_000);
        assert!(!Filter::of(&[]).may_hold(hash(1)));
    }
}
