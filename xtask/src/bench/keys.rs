//! Key distributions of the load: uniform or zipfian.
//!
//! Everything here is a function of its seed. Popular keys are scattered over the key space, so that they do
//! not fall into one shard.

use clap::ValueEnum;
use serde::Serialize;

/// Skew of the zipfian distribution, as in YCSB.
const THETA: f64 = 0.99;
/// Bytes of a key.
pub(super) const KEY_BYTES: usize = 14;
/// Number of keys that names of this length can distinguish.
pub(super) const KEYS_MAX: u64 = 100_000_000;

/// How keys are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Popularity {
    /// All keys are equally likely.
    Uniform,
    /// A few keys are very popular (theta 0.99).
    Zipfian,
}

impl Popularity {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Uniform => "uniform",
            Self::Zipfian => "zipfian",
        }
    }
}

/// The distribution of keys of a load.
#[derive(Debug, Clone)]
pub(super) enum Keys {
    /// Uniform over the numbers below this.
    Uniform(u64),
    /// Zipfian over the numbers below a limit.
    Zipfian(Zipf),
    /// Uniform over these keys. Never empty.
    Among(Vec<u64>),
}

impl Keys {
    pub(super) fn new(count: u64, popularity: Popularity) -> Self {
        match popularity {
            Popularity::Uniform => Self::Uniform(count.max(1)),
            Popularity::Zipfian => Self::Zipfian(Zipf::new(count)),
        }
    }

    pub(super) fn pick(&self, random: &mut Random) -> u64 {
        match self {
            Self::Uniform(count) => random.below(*count),
            Self::Zipfian(zipf) => scatter(zipf.rank(random.fraction())) % zipf.count,
            Self::Among(keys) => keys.get(random.below(keys.len() as u64) as usize).copied().unwrap_or(0),
        }
    }
}

/// Zipfian ranks by the algorithm of Gray et al., "Quickly generating billion-record synthetic databases"
/// (1994).
#[derive(Debug, Clone)]
pub(super) struct Zipf {
    count: u64,
    alpha: f64,
    zeta: f64,
    eta: f64,
}

impl Zipf {
    fn new(count: u64) -> Self {
        let count = count.max(2);
        let zeta = |count: u64| (1..=count).map(|rank| (rank as f64).powf(-THETA)).sum::<f64>();
        let total = zeta(count);
        let eta = (1.0 - (2.0 / count as f64).powf(1.0 - THETA)) / (1.0 - zeta(2) / total);
        Self { count, alpha: 1.0 / (1.0 - THETA), zeta: total, eta }
    }

    /// The rank (0 is the most popular) for a fraction in [0, 1).
    fn rank(&self, fraction: f64) -> u64 {
        let scaled = fraction * self.zeta;
        if scaled < 1.0 {
            return 0;
        }
        if scaled < 1.0 + 0.5_f64.powf(THETA) {
            return 1;
        }
        let rank = self.count as f64 * (self.eta * fraction - self.eta + 1.0).powf(self.alpha);
        (rank as u64).min(self.count - 1)
    }
}

/// The name of a key, without allocating.
pub(super) fn name(number: u64) -> [u8; KEY_BYTES] {
    let mut name = *b"bench-00000000";
    let mut rest = number;
    for digit in name[6..].iter_mut().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    name
}

/// The finaliser of splitmix64, a bijection.
fn scatter(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// splitmix64 (Steele et al., 2014): cheap, and good enough to pick keys.
#[derive(Debug, Clone)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(scatter(seed))
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        scatter(self.0)
    }

    /// A number below `end`, which is not 0.
    pub(super) fn below(&mut self, end: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(end)) >> 64) as u64
    }

    /// A number in [0, 1).
    pub(super) fn fraction(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    const PICKS: u32 = 200_000;

    fn counts(keys: &Keys) -> Vec<u32> {
        let (mut random, mut counts) = (Random::new(7), HashMap::new());
        for _ in 0..PICKS {
            *counts.entry(keys.pick(&mut random)).or_insert(0) += 1;
        }
        let mut counts: Vec<u32> = counts.into_values().collect();
        counts.sort_unstable_by(|a, b| b.cmp(a));
        counts
    }

    #[test]
    fn zipfian_frequencies_follow_the_law() {
        let keys = 1_000;
        let counts = counts(&Keys::new(keys, Popularity::Zipfian));
        let zeta: f64 = (1..=keys).map(|rank| (rank as f64).powf(-THETA)).sum();
        for (rank, tolerance) in [(1, 0.05), (2, 0.05), (10, 0.25), (100, 0.35)] {
            let expected = f64::from(PICKS) * (rank as f64).powf(-THETA) / zeta;
            let found = f64::from(counts[rank - 1]);
            assert!((found / expected - 1.0).abs() < tolerance, "rank {rank}: {found} picks, {expected:.0} by the law");
        }
    }

    #[test]
    fn uniform_keys_are_equally_frequent() {
        let counts = counts(&Keys::new(100, Popularity::Uniform));
        assert_eq!(counts.len(), 100);
        assert!(counts[0] < 2 * counts[99], "{} against {}", counts[0], counts[99]);
    }

    #[test]
    fn popular_keys_are_scattered() {
        assert!(scatter(0).abs_diff(scatter(1)) > 1_000_000 && scatter(1).abs_diff(scatter(2)) > 1_000_000);
    }

    #[test]
    fn all_names_have_the_same_length() {
        assert_eq!(&name(0), b"bench-00000000");
        assert_eq!(&name(12_345_678), b"bench-12345678");
        assert_eq!(&name(KEYS_MAX - 1), b"bench-99999999");
    }
}
