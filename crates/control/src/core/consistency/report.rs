//! The comparisons of one node, as nodes tell each other.

use std::collections::BTreeMap;

use bytes::Bytes;
use flotilla_types::{LogIndex, ShardId};
use flotilla_wire::{WireError, decode, encode, peer};

use super::{Comparison, ShardConsistency};

/// Shards that a node lists, at most: those that are not equal first.
pub const COMPARISONS_LISTED_MAX: usize = 4_096;
/// Bytes of a reason that are taken from a peer, at most.
const REASON_BYTES_MAX: usize = 512;

/// The last comparisons of the shards that a node leads.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Comparisons {
    /// How many have which verdict.
    pub counts: BTreeMap<ShardConsistency, u64>,
    /// At most [`COMPARISONS_LISTED_MAX`] of them: by verdict, the worst first, and then by shard.
    pub shards: Vec<(ShardId, Comparison)>,
}

/// Verdicts in the order in which shards are listed, which is that of their numbers on the wire.
const LISTED: [ShardConsistency; 4] =
    [ShardConsistency::Different, ShardConsistency::Inconclusive, ShardConsistency::Equal, ShardConsistency::Single];

impl ShardConsistency {
    /// The verdict as messages and metrics name it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Equal => "equal",
            Self::Inconclusive => "inconclusive",
            Self::Different => "different",
            Self::Single => "single",
        }
    }
}

impl Comparisons {
    /// Of these shards.
    pub(crate) fn of(all: &BTreeMap<ShardId, Comparison>) -> Self {
        let mut comparisons = Self::default();
        for comparison in all.values() {
            *comparisons.counts.entry(comparison.verdict).or_default() += 1;
        }
        for verdict in LISTED {
            let room = COMPARISONS_LISTED_MAX - comparisons.shards.len();
            let listed = all.iter().filter(|(_, comparison)| comparison.verdict == verdict).take(room);
            comparisons.shards.extend(listed.map(|(shard, comparison)| (*shard, comparison.clone())));
        }
        comparisons
    }

    /// How many have this verdict.
    #[must_use]
    pub fn count(&self, verdict: ShardConsistency) -> u64 {
        self.counts.get(&verdict).copied().unwrap_or_default()
    }

    /// As bytes, for a peer.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let shard = |(shard, comparison): &(ShardId, Comparison)| {
            let Comparison { verdict, index, fold, at_ms, since_ms, is_seen_to, reason } = comparison;
            encode(&peer::Comparison {
                shard: shard.0,
                verdict: LISTED.iter().position(|listed| listed == verdict).unwrap_or(LISTED.len()) as u32,
                index: index.map_or(0, |index| index.0),
                fold: fold.map_or(0, |fold| fold.0),
                at_ms: at_ms.unwrap_or(0),
                since_ms: *since_ms,
                seen_to: *is_seen_to,
                reason: reason.clone(),
            })
        };
        encode(&peer::Comparisons {
            equal: self.count(ShardConsistency::Equal),
            different: self.count(ShardConsistency::Different),
            inconclusive: self.count(ShardConsistency::Inconclusive),
            single: self.count(ShardConsistency::Single),
            shards: self.shards.iter().map(shard).collect(),
        })
    }

    /// The output of [`Comparisons::encode`]. Leaves out what is beyond the bounds, and verdicts that this version
    /// does not know.
    ///
    /// # Errors
    /// The bytes are something else.
    pub fn decode(bytes: Bytes) -> Result<Self, WireError> {
        let answer: peer::Comparisons = decode(bytes)?;
        let counts = [
            (ShardConsistency::Equal, answer.equal),
            (ShardConsistency::Different, answer.different),
            (ShardConsistency::Inconclusive, answer.inconclusive),
            (ShardConsistency::Single, answer.single),
        ];
        let mut shards = Vec::new();
        for bytes in answer.shards.into_iter().take(COMPARISONS_LISTED_MAX) {
            let shard: peer::Comparison = decode(bytes)?;
            let Some(verdict) = LISTED.get(shard.verdict as usize).copied() else { continue };
            let number = |number: u64| (number != 0).then_some(number);
            let comparison = Comparison {
                verdict,
                index: number(shard.index).map(LogIndex),
                fold: number(shard.fold).map(LogIndex),
                at_ms: number(shard.at_ms),
                since_ms: shard.since_ms,
                is_seen_to: shard.seen_to,
                reason: shard.reason.chars().take(REASON_BYTES_MAX).collect(),
            };
            shards.push((ShardId(shard.shard), comparison));
        }
        Ok(Self { counts: counts.into_iter().filter(|(_, count)| *count > 0).collect(), shards })
    }
}

#[cfg(test)]
mod tests {
    use flotilla_hostile::{Proportion, attack, mutated};
    use proptest::prelude::Just;

    use super::*;

    fn comparison(verdict: ShardConsistency) -> Comparison {
        let (index, fold, at_ms) = (Some(LogIndex(7)), None, Some(9));
        Comparison { verdict, index, fold, at_ms, since_ms: 5, is_seen_to: true, reason: "because".to_owned() }
    }

    #[test]
    fn comparisons_survive_the_wire_worst_first_and_garbage_is_an_error() {
        let verdicts = [ShardConsistency::Equal, ShardConsistency::Inconclusive, ShardConsistency::Different];
        let all = (0..30).map(|id| (ShardId(id), comparison(verdicts[id as usize % 3]))).collect();
        let comparisons = Comparisons::of(&all);
        assert_eq!(comparisons.shards[0].1.verdict, ShardConsistency::Different);
        assert_eq!(comparisons.shards[29].1.verdict, ShardConsistency::Equal);
        assert_eq!(comparisons.count(ShardConsistency::Equal), 10);
        assert_eq!(Comparisons::decode(comparisons.encode()), Ok(comparisons.clone()));
        assert!(Comparisons::decode(Bytes::from_static(b"\xff\xff")).is_err());
        attack(1_000, mutated(Just(comparisons.encode().to_vec())), |bytes| {
            let length = bytes.len();
            let _ = Proportion::DEFAULT.of(length, || Comparisons::decode(bytes.into()));
        });
        let many: BTreeMap<_, _> = (0..5_000).map(|id| (ShardId(id), comparison(ShardConsistency::Equal))).collect();
        assert_eq!(Comparisons::of(&many).shards.len(), COMPARISONS_LISTED_MAX);
    }
}
