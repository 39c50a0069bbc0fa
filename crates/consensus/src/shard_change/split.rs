//! The split of a shard: what it says, when it applies, and the two descriptors that follow.
//!
//! Invariants: both halves follow from the entry and from the descriptor before it, on every replica alike; the new
//! shard has the replicas of the old one, under ids of their own, on the same nodes.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use flotilla_types::{ConfState, Epoch, ReplicaDescriptor, ReplicaId, ReplicaRole, ShardDescriptor, ShardId};

use super::with_next_epoch;
use crate::ChangeError;

/// The upper end of a shard's range becomes a shard of its own, with replicas on the same nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Split {
    /// The first key of the new shard: inside the range, and not its first key.
    pub at: Bytes,
    /// The new shard.
    pub child: ShardId,
    /// The shard's epoch that the split is for. With any other one it does not apply: `replicas` would not be those of
    /// the shard, or whoever planned it would expect another epoch of the new one.
    pub epoch: Epoch,
    /// Each replica of the shard, all of them voters, with the replica of the new shard on its node. Ascending.
    pub replicas: Vec<(ReplicaId, ReplicaId)>,
    /// The replica of the new shard that leads it first, without an election.
    pub heir: ReplicaId,
}

impl Split {
    /// Bytes of the key, at most.
    pub const AT_BYTES_MAX: usize = 8 << 10;
    /// Replicas, at most.
    pub const REPLICAS_MAX: usize = 16;

    /// The shard and the new one after the split of a shard with this descriptor.
    ///
    /// # Errors
    /// The split does not apply to it.
    pub fn halves(&self, before: &ShardDescriptor) -> Result<(ShardDescriptor, ShardDescriptor), ChangeError> {
        let is_inside = self.at > before.range.start && before.range.contains(&self.at);
        let is_for_these = before.epoch == self.epoch
            && before.replicas.len() == self.replicas.len()
            && before
                .replicas
                .iter()
                .zip(&self.replicas)
                .all(|(held, (parent, _))| held.replica == *parent && held.role == ReplicaRole::Voter);
        if !is_inside || !is_for_these || self.child == before.shard {
            return Err(ChangeError::NotApplicable);
        }
        let mut left = with_next_epoch(before)?;
        left.range.end = self.at.clone();
        let mut right = before.clone();
        right.shard = self.child;
        right.range.start = self.at.clone();
        right.epoch = Epoch { range: left.epoch.range, config: 1 };
        right.replicas = before
            .replicas
            .iter()
            .zip(&self.replicas)
            .map(|(held, (_, child))| ReplicaDescriptor { replica: *child, ..*held })
            .collect();
        right.replicas.sort_unstable_by_key(|held| held.replica);
        Ok((left, right))
    }

    /// The replica of the new shard that stands beside one of the shard's.
    #[must_use]
    pub fn child_of(&self, replica: ReplicaId) -> Option<ReplicaId> {
        self.replicas.iter().find(|(parent, _)| *parent == replica).map(|(_, child)| *child)
    }

    /// The first configuration of the new shard.
    #[must_use]
    pub fn conf(&self) -> ConfState {
        ConfState::of_voters(self.replicas.iter().map(|(_, child)| *child))
    }

    pub(super) fn encode(&self, head: &[u8]) -> Bytes {
        let mut bytes = BytesMut::with_capacity(head.len() + 34 + self.at.len() + 16 * self.replicas.len());
        bytes.put_slice(head);
        bytes.put_u16(u16::try_from(self.at.len()).unwrap_or(u16::MAX));
        bytes.put_slice(&self.at);
        bytes.put_u64(self.child.0);
        bytes.put_u64(self.epoch.range);
        bytes.put_u64(self.epoch.config);
        bytes.put_u64(self.heir.0);
        for (parent, child) in &self.replicas {
            bytes.put_u64(parent.0);
            bytes.put_u64(child.0);
        }
        bytes.freeze()
    }

    pub(super) fn decode(mut bytes: &[u8]) -> Result<Self, ChangeError> {
        let malformed = |_| ChangeError::Malformed;
        let at_bytes = usize::from(bytes.try_get_u16().map_err(malformed)?);
        if at_bytes > Self::AT_BYTES_MAX || at_bytes > bytes.len() {
            return Err(ChangeError::Malformed);
        }
        let at = bytes.copy_to_bytes(at_bytes);
        let child = ShardId(bytes.try_get_u64().map_err(malformed)?);
        let range = bytes.try_get_u64().map_err(malformed)?;
        let epoch = Epoch { range, config: bytes.try_get_u64().map_err(malformed)? };
        let heir = ReplicaId(bytes.try_get_u64().map_err(malformed)?);
        let count = bytes.len() / 16;
        if !bytes.len().is_multiple_of(16) || !(1..=Self::REPLICAS_MAX).contains(&count) {
            return Err(ChangeError::Malformed);
        }
        let mut replicas = Vec::with_capacity(count);
        while bytes.has_remaining() {
            replicas.push((ReplicaId(bytes.get_u64()), ReplicaId(bytes.get_u64())));
        }
        let mut children: Vec<_> = replicas.iter().map(|(_, child)| *child).collect();
        children.sort_unstable();
        let is_valid = replicas.windows(2).all(|pair| pair[0].0 < pair[1].0)
            && children.windows(2).all(|pair| pair[0] < pair[1])
            && children[0] != ReplicaId::NONE
            && children.contains(&heir)
            && !at.is_empty();
        let split = Self { at, child, epoch, replicas, heir };
        if is_valid { Ok(split) } else { Err(ChangeError::Malformed) }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use flotilla_types::{KeyRange, NodeId};
    use proptest::prelude::*;

    use super::*;

    pub(in super::super) fn any_split() -> impl Strategy<Value = Split> {
        let at = proptest::collection::vec(any::<u8>(), 1..40);
        let epoch = (any::<u64>(), any::<u64>()).prop_map(|(range, config)| Epoch { range, config });
        (at, any::<u64>(), epoch, 1..5_u64, 1..1_000_u64).prop_map(|(at, child, epoch, count, first)| Split {
            at: at.into(),
            child: ShardId(child),
            epoch,
            replicas: (0..count).map(|n| (ReplicaId(first + n), ReplicaId(5_000 - n))).collect(),
            heir: ReplicaId(5_000),
        })
    }

    fn before() -> ShardDescriptor {
        let replicas = [1, 2, 3].map(|id| ReplicaDescriptor {
            replica: ReplicaId(id),
            node: NodeId(id),
            role: ReplicaRole::Voter,
        });
        let range = KeyRange { start: Bytes::from_static(b"b"), end: Bytes::from_static(b"y") };
        let epoch = Epoch { range: 4, config: 7 };
        ShardDescriptor { shard: ShardId(1), range, epoch, replicas: replicas.into() }
    }

    fn split() -> Split {
        let replicas = [(1, 13), (2, 12), (3, 11)].map(|(parent, child)| (ReplicaId(parent), ReplicaId(child)));
        let at = Bytes::from_static(b"m");
        Split { at, child: ShardId(9), epoch: before().epoch, replicas: replicas.into(), heir: ReplicaId(12) }
    }

    #[test]
    fn both_halves_have_the_whole_range_and_a_later_epoch() {
        let (left, right) = split().halves(&before()).expect("applies");
        assert_eq!((&left.range.start[..], &left.range.end[..]), (&b"b"[..], &b"m"[..]));
        assert_eq!((&right.range.start[..], &right.range.end[..]), (&b"m"[..], &b"y"[..]));
        assert_eq!((left.epoch, right.epoch), (Epoch { range: 5, config: 7 }, Epoch { range: 5, config: 1 }));
        assert_eq!((left.shard, right.shard, left.replicas), (ShardId(1), ShardId(9), before().replicas));
        let held: Vec<_> = right.replicas.iter().map(|held| (held.replica.0, held.node.0)).collect();
        assert_eq!(held, [(11, 3), (12, 2), (13, 1)]);
        assert_eq!(split().child_of(ReplicaId(2)), Some(ReplicaId(12)));
    }

    #[test]
    fn it_applies_only_inside_the_range_and_to_the_replicas_that_it_names() {
        let refused = |split: Split| assert_eq!(split.halves(&before()), Err(ChangeError::NotApplicable));
        for at in ["b", "a", "y", "z"] {
            refused(Split { at: at.into(), ..split() });
        }
        refused(Split { epoch: Epoch { range: 4, config: 8 }, ..split() });
        refused(Split { epoch: Epoch { range: 3, config: 7 }, ..split() });
        refused(Split { replicas: split().replicas[..2].to_vec(), ..split() });
        refused(Split { child: ShardId(1), ..split() });
        let mut learner = before();
        learner.replicas[1].role = ReplicaRole::Learner;
        assert_eq!(split().halves(&learner), Err(ChangeError::NotApplicable));
        let mut last = before();
        last.epoch.range = u64::MAX;
        assert_eq!(Split { epoch: last.epoch, ..split() }.halves(&last), Err(ChangeError::NotApplicable));
    }

    #[test]
    fn splits_that_contradict_themselves_are_malformed() {
        let decode = |split: &Split| Split::decode(&split.encode(&[]));
        assert_eq!(decode(&split()), Ok(split()));
        let wrong = [
            Split { heir: ReplicaId(1), ..split() },
            Split { at: Bytes::new(), ..split() },
            Split { replicas: Vec::new(), ..split() },
            Split { replicas: vec![(ReplicaId(1), ReplicaId(12)), (ReplicaId(2), ReplicaId(12))], ..split() },
            Split { replicas: split().replicas.into_iter().rev().collect(), ..split() },
            Split { at: vec![7; Split::AT_BYTES_MAX + 1].into(), ..split() },
        ];
        for split in wrong {
            assert_eq!(decode(&split), Err(ChangeError::Malformed), "{split:?}");
        }
    }
}
