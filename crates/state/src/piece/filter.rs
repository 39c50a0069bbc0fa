//! A Bloom filter that tells which keys a piece certainly does not hold.
//!
//! A blocked Bloom filter (Putze, Sanders, Singler: Cache-, Hash- and Space-Efficient Bloom Filters, 2007,
//! §3): all bits of a key lie in one block of 512 bits, so that a lookup costs one cache miss. With 10 bits
//! per key the false positive rate is about 1 in 80.
//!
//! Footers hold filters, so everything here is part of the format of pieces, the hash too: who chooses keys
//! can make the filter useless for them, but for no others.

const BITS_PER_KEY: u64 = 10;
const BLOCK_WORDS: usize = 8;
const BLOCK_BITS: usize = 64 * BLOCK_WORDS;
const WORD_BYTES: usize = size_of::<u64>();
/// Bits set per key; each takes nine bits of the hash.
const PROBES: u32 = 6;
/// Remixes the hash, so that the bits within a block are independent of the block's number.
const SPREAD: u64 = 0x9E37_79B9_7F4A_7C15;

/// The hash of a key, equal in all processes: for filters, and for cuts of the base.
pub(crate) fn key_hash(key: &[u8]) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = *blake3::hash(key).as_bytes();
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}

/// Built from the [hashes](key_hash) of all keys.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Filter(Box<[[u64; BLOCK_WORDS]]>);

impl Filter {
    pub(super) fn of(hashes: &[u64]) -> Self {
        let mut filter = Self(vec![[0; BLOCK_WORDS]; blocks_for(hashes.len() as u64) as usize].into());
        for hash in hashes {
            let block = filter.block_of(*hash);
            for bit in bits(*hash) {
                filter.0[block][bit / 64] |= 1 << (bit % 64);
            }
        }
        filter
    }

    /// Decodes the filter of so many keys; `None` when it would have another size.
    pub(super) fn decode(bytes: &[u8], keys: u32) -> Option<Self> {
        let (words, []) = bytes.as_chunks::<WORD_BYTES>() else { return None };
        let (blocks, []) = words.as_chunks::<BLOCK_WORDS>() else { return None };
        let is_sized = blocks.len() as u64 == blocks_for(keys.into());
        is_sized.then(|| Self(blocks.iter().map(|block| block.map(u64::from_le_bytes)).collect()))
    }

    /// The words of the encoding.
    pub(super) fn words(&self) -> impl Iterator<Item = u64> {
        self.0.as_flattened().iter().copied()
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

fn blocks_for(keys: u64) -> u64 {
    (keys * BITS_PER_KEY).div_ceil(BLOCK_BITS as u64).max(1)
}

fn bits(hash: u64) -> impl Iterator<Item = usize> {
    let spread = hash.wrapping_mul(SPREAD);
    (0..PROBES).map(move |probe| (spread >> (10 + 9 * probe)) as usize % BLOCK_BITS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_false_negatives_and_few_false_positives() {
        let hash = |i: u32| key_hash(format!("key{i:05}").as_bytes());
        let filter = Filter::of(&(0..4_000).map(hash).collect::<Vec<_>>());
        assert!((0..4_000).all(|i| filter.may_hold(hash(i))));
        let wrong = (4_000..44_000).filter(|i| filter.may_hold(hash(*i))).count();
        assert!(wrong < 1_200, "{wrong} of 40,000 are false positives");
        assert!(filter.len_bytes() < 6_000);
        assert!(!Filter::of(&[]).may_hold(hash(1)));
    }

    #[test]
    fn a_filter_is_decoded_only_for_its_number_of_keys() {
        for keys in [0_u32, 51, 52, 103] {
            let filter = Filter::of(&(0..keys).map(|i| key_hash(&i.to_le_bytes())).collect::<Vec<_>>());
            let bytes: Vec<u8> = filter.words().flat_map(u64::to_le_bytes).collect();
            assert_eq!(Filter::decode(&bytes, keys).as_ref(), Some(&filter));
            assert_eq!(Filter::decode(&bytes, keys + 52), None);
            assert_eq!(Filter::decode(&bytes[1..], keys), None);
            assert_eq!(Filter::decode(&[], keys), None);
            assert_eq!(Filter::decode(&bytes, u32::MAX), None);
        }
    }
}
