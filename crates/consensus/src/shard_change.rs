//! Changes of a shard besides those of its replica set, and their encoding.
//!
//! A change is the context of an entry of kind [`EntryKind::Shard`](flotilla_types::EntryKind): a byte for
//! the format that introduced the change, then one for its kind. A later kind gets a later format, so that a
//! binary which does not know it stops before the entry. No change reads anything but the descriptor, so all
//! replicas decide alike whether it applies.

use std::ops::RangeInclusive;

mod merge;
mod split;

use bytes::Bytes;
use flotilla_types::{ClusterVersion, Epoch, ShardDescriptor};

use crate::ChangeError;
pub use merge::{Freeze, Merge, Thaw};
pub use split::Split;

/// The newest format.
const FORMAT: u8 = 4;
const FORMAT_BUMP: u8 = 1;
const FORMAT_FOLD: u8 = 2;
const FORMAT_SPLIT: u8 = 3;
const FORMAT_MERGE: u8 = 4;
const BUMP: u8 = 1;
const FOLD: u8 = 2;
const SPLIT: u8 = 3;
const FREEZE: u8 = 4;
const MERGE: u8 = 5;
const ABORT: u8 = 6;
const THAW: u8 = 7;

/// One change of a shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ShardChange {
    /// The next range epoch, and the same range: whoever routed by the last one must route again. For tests
    /// of what changes of the range have in common.
    Bump,
    /// The base of each checkpoint from here on has the live records as of this entry, whenever a replica has
    /// made it. Neither range nor epoch changes.
    Fold {
        /// Average size of the pieces of the base, in bytes, within
        /// [`PIECE_BYTES`](Self::PIECE_BYTES): with another size it would be another base.
        piece_bytes: u32,
    },
    /// The upper end of the range becomes a shard of its own.
    Split(Split),
    /// The shard gives its keys up, to be merged into its left neighbour.
    Freeze(Freeze),
    /// The right neighbour, which is frozen, becomes part of the shard.
    Merge(Merge),
    /// The shard merges with nobody that was to be merged into it at this epoch.
    Abort {
        /// The shard's epoch that the merge was planned for. With any other one it does not apply.
        epoch: Epoch,
    },
    /// The shard was not merged: it has its keys again.
    Thaw(Thaw),
}

impl ShardChange {
    /// Sizes that pieces of a base may have, in bytes.
    pub const PIECE_BYTES: RangeInclusive<u32> = 64..=8 << 20;

    /// The cluster version from which on it may be proposed.
    #[must_use]
    pub fn needs(&self) -> ClusterVersion {
        match self {
            Self::Bump => ClusterVersion::SHARD_ENTRIES,
            Self::Fold { .. } => ClusterVersion::LOGGED_FOLDS,
            Self::Split(_) => ClusterVersion::SPLITS,
            Self::Freeze(_) | Self::Merge(_) | Self::Abort { .. } | Self::Thaw(_) => ClusterVersion::MERGES,
        }
    }

    /// Whether each replica makes a checkpoint at this change.
    #[must_use]
    pub fn makes_checkpoint(&self) -> bool {
        matches!(self, Self::Split(_) | Self::Merge(_))
    }

    /// The descriptor after the change, with the same replicas.
    ///
    /// # Errors
    /// The change does not apply to this descriptor.
    pub fn after(&self, before: &ShardDescriptor) -> Result<ShardDescriptor, ChangeError> {
        match self {
            // Whoever decides about a frozen shard knows it by its epoch.
            Self::Bump if before.is_frozen() => Err(ChangeError::NotApplicable),
            Self::Bump => with_next_epoch(before),
            Self::Fold { .. } => Ok(before.clone()),
            Self::Split(split) => split.halves(before).map(|(left, _)| left),
            Self::Freeze(freeze) => freeze.after(before),
            Self::Merge(merge) => merge.after(before),
            Self::Abort { epoch } if *epoch == before.epoch => with_next_epoch(before),
            Self::Abort { .. } => Err(ChangeError::NotApplicable),
            Self::Thaw(thaw) => thaw.after(before),
        }
    }

    /// Encodes the change for the log.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        match self {
            Self::Bump => Bytes::from_static(&[FORMAT_BUMP, BUMP]),
            Self::Fold { piece_bytes } => {
                let [a, b, c, d] = piece_bytes.to_le_bytes();
                Bytes::copy_from_slice(&[FORMAT_FOLD, FOLD, a, b, c, d])
            }
            Self::Split(split) => split.encode(&[FORMAT_SPLIT, SPLIT]),
            Self::Freeze(freeze) => freeze.encode(&[FORMAT_MERGE, FREEZE]),
            Self::Merge(merge) => merge.encode(&[FORMAT_MERGE, MERGE]),
            // It says the same of the left shard as a freeze does of the right one.
            Self::Abort { epoch } => Freeze { epoch: *epoch }.encode(&[FORMAT_MERGE, ABORT]),
            Self::Thaw(thaw) => thaw.encode(&[FORMAT_MERGE, THAW]),
        }
    }

    /// Decodes a change from the log.
    ///
    /// # Errors
    /// The bytes are not a change, or one of a newer format.
    pub fn decode(bytes: &[u8]) -> Result<Self, ChangeError> {
        match bytes {
            [FORMAT_BUMP, BUMP] => Ok(Self::Bump),
            [FORMAT_FOLD, FOLD, a, b, c, d] => {
                let piece_bytes = u32::from_le_bytes([*a, *b, *c, *d]);
                let in_bounds = Self::PIECE_BYTES.contains(&piece_bytes);
                if in_bounds { Ok(Self::Fold { piece_bytes }) } else { Err(ChangeError::Malformed) }
            }
            [FORMAT_SPLIT, SPLIT, rest @ ..] => Split::decode(rest).map(Self::Split),
            [FORMAT_MERGE, FREEZE, rest @ ..] => Freeze::decode(rest).map(Self::Freeze),
            [FORMAT_MERGE, MERGE, rest @ ..] => Merge::decode(rest).map(Self::Merge),
            [FORMAT_MERGE, ABORT, rest @ ..] => Freeze::decode(rest).map(|Freeze { epoch }| Self::Abort { epoch }),
            [FORMAT_MERGE, THAW, rest @ ..] => Thaw::decode(rest).map(Self::Thaw),
            [found, ..] if *found > FORMAT => Err(ChangeError::Version { found: *found, known: FORMAT }),
            _ => Err(ChangeError::Malformed),
        }
    }
}

/// The same shard with the next range epoch. A snapshot of a faulty peer may carry any epoch, and no two descriptors
/// may have the same one.
fn with_next_epoch(before: &ShardDescriptor) -> Result<ShardDescriptor, ChangeError> {
    let mut after = before.clone();
    after.epoch.range = before.epoch.range.checked_add(1).ok_or(ChangeError::NotApplicable)?;
    Ok(after)
}

#[cfg(test)]
mod tests {
    use flotilla_hostile::{Proportion, attack, mutated};
    use flotilla_types::{Epoch, KeyRange, ShardId};
    use proptest::prelude::*;

    use super::*;

    fn descriptor(range: u64) -> ShardDescriptor {
        let epoch = Epoch { range, config: 7 };
        ShardDescriptor { shard: ShardId(1), range: KeyRange::of_prefix(b"k"), epoch, replicas: Vec::new() }
    }

    #[test]
    fn a_bump_changes_the_range_epoch_and_nothing_else() {
        assert_eq!(ShardChange::Bump.after(&descriptor(4)), Ok(descriptor(5)));
        assert_eq!(ShardChange::Bump.after(&descriptor(u64::MAX)), Err(ChangeError::NotApplicable));
    }

    #[test]
    fn a_fold_changes_no_descriptor() {
        assert_eq!(ShardChange::Fold { piece_bytes: 4096 }.after(&descriptor(4)), Ok(descriptor(4)));
    }

    #[test]
    fn pieces_of_a_size_out_of_bounds_are_refused() {
        let of = |piece_bytes| ShardChange::Fold { piece_bytes };
        for (piece_bytes, is_allowed) in [(0, false), (63, false), (64, true), (8 << 20, true), (u32::MAX, false)] {
            let expected = if is_allowed { Ok(of(piece_bytes)) } else { Err(ChangeError::Malformed) };
            assert_eq!(ShardChange::decode(&of(piece_bytes).encode()), expected);
        }
    }

    #[test]
    fn a_change_of_a_newer_format_is_not_taken_for_one_without_effect() {
        for newer in [&[FORMAT + 1][..], &[FORMAT + 1, BUMP], &[u8::MAX, 0, 0]] {
            let error = ChangeError::Version { found: newer[0], known: FORMAT };
            assert_eq!(ShardChange::decode(newer), Err(error));
        }
        for malformed in
            [&[][..], &[0], &[1], &[1, 0], &[1, FOLD], &[1, BUMP, 0], &[2], &[2, BUMP], &[2, FOLD, 0, 1, 0]]
        {
            assert_eq!(ShardChange::decode(malformed), Err(ChangeError::Malformed), "{malformed:?}");
        }
    }

    #[test]
    fn hostile_changes_are_refused_or_round_trip() {
        let fold = ShardChange::PIECE_BYTES.prop_map(|piece_bytes| ShardChange::Fold { piece_bytes });
        let split = split::tests::any_split().prop_map(ShardChange::Split);
        let change = prop_oneof![Just(ShardChange::Bump), fold, split, merge::tests::any_change()];
        attack(1_000, mutated(change.prop_map(|change| change.encode())), |bytes| {
            if let Ok(change) = Proportion::DEFAULT.of(bytes.len(), || ShardChange::decode(&bytes)) {
                assert_eq!(change.encode(), bytes);
            }
        });
    }
}
