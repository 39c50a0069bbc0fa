//! Weighted rendezvous hashing in integers.
//!
//! After Schindelhauer & Schomaker, "Weighted Distributed Hash Tables" (2005): a node's score is its weight
//! divided by −ln(u), u uniform in (0, 1) from the pair of names; the highest score wins, and a node's chance
//! to win is proportional to its weight. Base 2 works as well as e; fixed point keeps the order the same on
//! every machine.

use flotilla_types::{NodeId, ShardId};

/// Fractional bits of a logarithm.
const FRACTION_BITS: u32 = 24;

/// The rendezvous score of a node for a shard. Comparable only within one shard. Higher is better; a weight
/// of zero scores zero.
#[must_use]
pub fn rendezvous_score(shard: ShardId, node: NodeId, weight: u32) -> u64 {
    let mut pair = [0; 16];
    pair[..8].copy_from_slice(&shard.0.to_le_bytes());
    pair[8..].copy_from_slice(&node.0.to_le_bytes());
    let digest = blake3::hash(&pair);
    let mut first = [0; 8];
    first.copy_from_slice(&digest.as_bytes()[..8]);
    // Never zero, so that the logarithm is defined. The bit is below the logarithm's precision.
    let draw = u64::from_le_bytes(first) | 1;
    let penalty = minus_log2(draw).max(1);
    let score = (u128::from(weight) << 64) / u128::from(penalty);
    u64::try_from(score >> 16).unwrap_or(u64::MAX)
}

/// −log2(draw / 2^64) with [`FRACTION_BITS`] fractional bits; `draw` is not zero.
fn minus_log2(draw: u64) -> u64 {
    let whole = 63 - draw.leading_zeros();
    // The mantissa in [1, 2) with 63 fractional bits; each squaring yields one bit of the logarithm.
    let mut mantissa = u128::from(draw << draw.leading_zeros());
    let mut log = u64::from(whole);
    for _ in 0..FRACTION_BITS {
        mantissa = (mantissa * mantissa) >> 63;
        log <<= 1;
        if mantissa >> 64 != 0 {
            mantissa >>= 1;
            log |= 1;
        }
    }
    (64_u64 << FRACTION_BITS) - log
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn minus_log2_matches_floating_point() {
        for draw in [1_u64, 2, 3, 1 << 40, u64::MAX / 3, u64::MAX / 2, u64::MAX] {
            let expected = 64.0 - (draw as f64).log2();
            let found = minus_log2(draw) as f64 / f64::from(1_u32 << FRACTION_BITS);
            assert!((expected - found).abs() < 1e-6, "{draw}: expected {expected}, found {found}");
        }
    }

    #[test]
    fn wins_are_proportional_to_weight() {
        const SHARDS: u64 = 12_000;
        let weights = [1_u32, 2, 3];
        let mut wins = [0_u64; 3];
        for shard in 0..SHARDS {
            let best = (0..3).max_by_key(|&i| rendezvous_score(ShardId(shard), NodeId(i as u64 + 1), weights[i]));
            wins[best.expect("three nodes")] += 1;
        }
        for (won, weight) in wins.iter().zip(weights) {
            let expected = SHARDS * u64::from(weight) / 6;
            assert!(won.abs_diff(expected) < SHARDS / 50, "{wins:?}");
        }
    }

    #[test]
    fn zero_weight_scores_zero() {
        assert_eq!(rendezvous_score(ShardId(1), NodeId(1), 0), 0);
        assert!(rendezvous_score(ShardId(1), NodeId(1), 1) > 0);
        assert!(rendezvous_score(ShardId(1), NodeId(1), u32::MAX) > 0);
    }
}
