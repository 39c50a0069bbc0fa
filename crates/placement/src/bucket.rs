//! Maps a user's key to its bucket.
//!
//! Invariant: the bucket of a key is fixed for the lifetime of its collection, so this algorithm must never
//! change: a test pins known answers. Keys that share a `{tag}` share a bucket.

use flotilla_types::Bucket;

/// The bucket of a key in a hash collection with this many buckets (zero counts as one).
///
/// Jump consistent hash (Lamping & Veach, 2014) of the first eight bytes, little-endian, of the BLAKE3 hash
/// of the key's [`hash_tag`].
#[must_use]
pub fn bucket_of(key: &[u8], buckets: u16) -> Bucket {
    let digest = blake3::hash(hash_tag(key));
    let mut first = [0; 8];
    first.copy_from_slice(&digest.as_bytes()[..8]);
    Bucket(jump(u64::from_le_bytes(first), buckets.max(1)))
}

/// The part of a key that is hashed, by the rule of Redis Cluster: the bytes between the first `{` and the
/// next `}` if there are any, otherwise the whole key.
#[must_use]
pub fn hash_tag(key: &[u8]) -> &[u8] {
    let Some(open) = key.iter().position(|&byte| byte == b'{') else { return key };
    let inside = &key[open + 1..];
    match inside.iter().position(|&byte| byte == b'}') {
        Some(length) if length > 0 => &inside[..length],
        _ => key,
    }
}

/// Jump consistent hash as published. Its floating-point steps are one division and one product of exactly
/// representable numbers, which IEEE 754 rounds the same everywhere.
fn jump(mut key: u64, buckets: u16) -> u16 {
    let mut bucket = 0_u16;
    let mut candidate = 0_i64;
    while candidate < i64::from(buckets) {
        // `candidate` is below `buckets` here, so it fits.
        bucket = candidate as u16;
        key = key.wrapping_mul(2_862_933_555_777_941_757).wrapping_add(1);
        let draw = ((key >> 33) + 1) as f64;
        candidate = ((candidate + 1) as f64 * ((1_u64 << 31) as f64 / draw)) as i64;
    }
    bucket
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn tags_follow_the_redis_cluster_rule() {
        let cases: [(&[u8], &[u8]); 8] = [
            (b"user1000", b"user1000"),
            (b"{user1000}.following", b"user1000"),
            (b"foo{}{bar}", b"foo{}{bar}"),
            (b"foo{{bar}}zap", b"{bar"),
            (b"foo{bar}{zap}", b"bar"),
            (b"foo{bar", b"foo{bar"),
            (b"foo}bar{x", b"foo}bar{x"),
            (b"", b""),
        ];
        for (key, tag) in cases {
            assert_eq!(hash_tag(key), tag, "{}", String::from_utf8_lossy(key));
        }
    }

    #[test]
    fn jump_matches_the_published_answers() {
        // From the paper's reference implementation.
        for (key, buckets, expected) in
            [(1, 1, 0), (42, 57, 43), (0xDEAD_10CC, 1, 0), (0xDEAD_10CC, 666, 361), (256, 1024, 520)]
        {
            assert_eq!(jump(key, buckets), expected, "jump({key}, {buckets})");
        }
    }

    #[test]
    fn buckets_of_known_keys_never_change() {
        let buckets: Vec<u16> =
            [&b"a"[..], b"b", b"{a}b", b"key:000000000042", b""].iter().map(|key| bucket_of(key, 16).0).collect();
        assert_eq!(buckets, [12, 2, 12, 0, 9]);
        assert_eq!(bucket_of(b"{a}b", 16), bucket_of(b"a", 16));
    }

    #[test]
    fn sixteen_buckets_fill_evenly() {
        const KEYS: usize = 64_000;
        let mut counts = [0_usize; 16];
        for i in 0..KEYS {
            counts[usize::from(bucket_of(format!("user:{i}").as_bytes(), 16).0)] += 1;
        }
        // Chi-squared with 15 degrees of freedom: 37.7 is exceeded by chance once in a thousand.
        let expected = (KEYS / 16) as f64;
        let chi_squared: f64 = counts.iter().map(|&count| (count as f64 - expected).powi(2) / expected).sum();
        assert!(chi_squared < 37.7, "chi squared {chi_squared:.1}, counts {counts:?}");
    }

    proptest! {
        #[test]
        fn adding_a_bucket_moves_keys_only_to_it(key: u64, buckets in 1_u16..1024) {
            let (before, after) = (jump(key, buckets), jump(key, buckets + 1));
            prop_assert!(before < buckets);
            prop_assert!(after == before || after == buckets);
        }

        #[test]
        fn any_bytes_have_a_bucket(key: Vec<u8>, buckets: u16) {
            prop_assert!(bucket_of(&key, buckets).0 < buckets.max(1));
        }
    }
}
