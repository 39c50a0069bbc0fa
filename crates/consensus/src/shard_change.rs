//! Changes of a shard besides those of its replica set, and their encoding.
//!
//! A change is the context of an entry of kind [`EntryKind::Shard`](flotilla_types::EntryKind): a byte for
//! the format that introduced the change, then one for its kind. A later kind gets a later format, so that a
//! binary which does not know it stops before the entry. No change reads anything but the descriptor, so all
//! replicas decide alike whether it applies.

use bytes::Bytes;
use flotilla_types::ShardDescriptor;

use crate::ChangeError;

const FORMAT: u8 = 1;
const BUMP: u8 = 1;

/// One change of a shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ShardChange {
    /// The next range epoch, and the same range: whoever routed by the last one must route again. For tests
    /// of what changes of the range have in common.
    Bump,
}

impl ShardChange {
    /// The descriptor after the change: another range epoch, and the same replicas.
    ///
    /// # Errors
    /// The change does not apply to this descriptor.
    pub fn after(&self, before: &ShardDescriptor) -> Result<ShardDescriptor, ChangeError> {
        let mut after = before.clone();
        match self {
            Self::Bump => {
                // A snapshot of a faulty peer may carry any epoch. No two descriptors may have the same one.
                after.epoch.range = before.epoch.range.checked_add(1).ok_or(ChangeError::NotApplicable)?;
            }
        }
        Ok(after)
    }

    /// Encodes the change for the log.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        match self {
            Self::Bump => Bytes::from_static(&[FORMAT, BUMP]),
        }
    }

    /// Decodes a change from the log.
    ///
    /// # Errors
    /// The bytes are not a change, or one of a newer format.
    pub fn decode(bytes: &[u8]) -> Result<Self, ChangeError> {
        match bytes {
            [FORMAT, BUMP] => Ok(Self::Bump),
            [found, ..] if *found > FORMAT => Err(ChangeError::Version { found: *found, known: FORMAT }),
            _ => Err(ChangeError::Malformed),
        }
    }
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
    fn a_change_of_a_newer_format_is_not_taken_for_one_without_effect() {
        for newer in [&[FORMAT + 1][..], &[FORMAT + 1, BUMP], &[u8::MAX, 0, 0]] {
            let error = ChangeError::Version { found: newer[0], known: FORMAT };
            assert_eq!(ShardChange::decode(newer), Err(error));
        }
        for malformed in [&[][..], &[0], &[FORMAT], &[FORMAT, 0], &[FORMAT, BUMP + 1], &[FORMAT, BUMP, 0]] {
            assert_eq!(ShardChange::decode(malformed), Err(ChangeError::Malformed), "{malformed:?}");
        }
    }

    #[test]
    fn hostile_changes_are_refused_or_round_trip() {
        attack(1_000, mutated(Just(ShardChange::Bump.encode())), |bytes| {
            if let Ok(change) = Proportion::DEFAULT.of(bytes.len(), || ShardChange::decode(&bytes)) {
                assert_eq!(change.encode(), bytes);
            }
        });
    }
}
