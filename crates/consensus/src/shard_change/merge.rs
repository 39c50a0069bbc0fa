//! The merge of two neighbours: the right one is frozen, and the left one takes its keys over.
//!
//! ```text
//! right: Freeze ─► (merged: gone)        or Thaw
//! left:            Merge                 or Abort
//! ```
//!
//! A merge is planned for one epoch of the left shard and one of the right. In the left shard's log `Merge` and `Abort`
//! name that epoch, and both end it, so the first one that is committed decides, whoever proposed what. Anything else
//! that changes the left shard's epoch aborts the merge, too.
//!
//! Invariants: a frozen shard has no keys, so nothing behind the entry is read or written by a key, and its replica set
//! does not change; it has them again only by a `Thaw`, which may be proposed only once the left shard's epoch is over
//! without the keys; `Merge` may be proposed only once each replica of the right shard has its checkpoint behind the
//! freeze.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use flotilla_types::{Epoch, KeyRange, ReplicaId, ReplicaRole, ShardDescriptor, ShardId};

use super::{Split, with_next_epoch};
use crate::ChangeError;

/// The right shard of a merge gives its keys up until it is known what becomes of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Freeze {
    /// The shard's epoch that the merge is planned for.
    pub epoch: Epoch,
}

/// The left shard of a merge takes over the keys of the right one, which is frozen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Merge {
    /// The left shard's epoch that the merge is planned for.
    pub epoch: Epoch,
    /// The right shard.
    pub source: ShardId,
    /// Its epoch while it is frozen.
    pub source_epoch: Epoch,
    /// Its keys before the freeze.
    pub source_range: KeyRange,
    /// Each replica of the left shard, all of them voters, with the replica of the right one on its node. Ascending.
    pub replicas: Vec<(ReplicaId, ReplicaId)>,
}

/// The right shard of a merge that is aborted has its keys again, or is not frozen any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Thaw {
    /// The shard's epoch that the merge was planned for: the one before the freeze.
    pub epoch: Epoch,
    /// Its keys before the freeze.
    pub range: KeyRange,
}

fn has_voters_only(descriptor: &ShardDescriptor) -> bool {
    let held = &descriptor.replicas;
    (1..=Split::REPLICAS_MAX).contains(&held.len()) && held.iter().all(|held| held.role == ReplicaRole::Voter)
}

impl Freeze {
    /// The epoch of a shard that was frozen for a merge planned for this one.
    #[must_use]
    pub fn epoch_after(epoch: Epoch) -> Epoch {
        Epoch { range: epoch.range.saturating_add(1), ..epoch }
    }

    pub(super) fn after(&self, before: &ShardDescriptor) -> Result<ShardDescriptor, ChangeError> {
        // Without a first key, no range is empty.
        let may_freeze = before.epoch == self.epoch && !before.is_frozen() && !before.range.start.is_empty();
        if !may_freeze || !has_voters_only(before) {
            return Err(ChangeError::NotApplicable);
        }
        let mut after = with_next_epoch(before)?;
        after.range.end = after.range.start.clone();
        Ok(after)
    }

    pub(super) fn encode(&self, head: &[u8]) -> Bytes {
        let mut bytes = BytesMut::with_capacity(head.len() + 16);
        bytes.put_slice(head);
        put_epoch(&mut bytes, self.epoch);
        bytes.freeze()
    }

    pub(super) fn decode(mut bytes: &[u8]) -> Result<Self, ChangeError> {
        let epoch = epoch_of(&mut bytes)?;
        if bytes.is_empty() { Ok(Self { epoch }) } else { Err(ChangeError::Malformed) }
    }
}

impl Merge {
    pub(super) fn after(&self, before: &ShardDescriptor) -> Result<ShardDescriptor, ChangeError> {
        let is_for_these = before.epoch == self.epoch
            && has_voters_only(before)
            && before.replicas.iter().map(|held| held.replica).eq(self.replicas.iter().map(|(left, _)| *left));
        let is_neighbour = !before.range.end.is_empty() && before.range.end == self.source_range.start;
        if !is_for_these || !is_neighbour || before.is_frozen() || self.source == before.shard {
            return Err(ChangeError::NotApplicable);
        }
        let mut after = before.clone();
        // Later than whatever was known of either shard.
        let newest = before.epoch.range.max(self.source_epoch.range);
        after.epoch.range = newest.checked_add(1).ok_or(ChangeError::NotApplicable)?;
        after.range.end = self.source_range.end.clone();
        Ok(after)
    }

    /// The replica of the right shard that stands beside one of the left shard's.
    #[must_use]
    pub fn source_of(&self, replica: ReplicaId) -> Option<ReplicaId> {
        self.replicas.iter().find(|(left, _)| *left == replica).map(|(_, source)| *source)
    }

    pub(super) fn encode(&self, head: &[u8]) -> Bytes {
        let KeyRange { start, end } = &self.source_range;
        let capacity = head.len() + 44 + start.len() + end.len() + 16 * self.replicas.len();
        let mut bytes = BytesMut::with_capacity(capacity);
        bytes.put_slice(head);
        put_epoch(&mut bytes, self.epoch);
        bytes.put_u64(self.source.0);
        put_epoch(&mut bytes, self.source_epoch);
        put_range(&mut bytes, &self.source_range);
        for (left, source) in &self.replicas {
            bytes.put_u64(left.0);
            bytes.put_u64(source.0);
        }
        bytes.freeze()
    }

    pub(super) fn decode(mut bytes: &[u8]) -> Result<Self, ChangeError> {
        let epoch = epoch_of(&mut bytes)?;
        let source = ShardId(bytes.try_get_u64().map_err(|_| ChangeError::Malformed)?);
        let source_epoch = epoch_of(&mut bytes)?;
        let source_range = range_of(&mut bytes)?;
        let count = bytes.len() / 16;
        if !bytes.len().is_multiple_of(16) || !(1..=Split::REPLICAS_MAX).contains(&count) {
            return Err(ChangeError::Malformed);
        }
        let mut replicas = Vec::with_capacity(count);
        while bytes.has_remaining() {
            replicas.push((ReplicaId(bytes.get_u64()), ReplicaId(bytes.get_u64())));
        }
        let mut sources: Vec<_> = replicas.iter().map(|(_, source)| *source).collect();
        sources.sort_unstable();
        let is_valid = replicas.windows(2).all(|pair| pair[0].0 < pair[1].0)
            && sources.windows(2).all(|pair| pair[0] < pair[1])
            && sources[0] != ReplicaId::NONE;
        let merge = Self { epoch, source, source_epoch, source_range, replicas };
        if is_valid { Ok(merge) } else { Err(ChangeError::Malformed) }
    }
}

impl Thaw {
    pub(super) fn after(&self, before: &ShardDescriptor) -> Result<ShardDescriptor, ChangeError> {
        let mut after = with_next_epoch(before)?;
        if before.is_frozen() {
            let is_ours = before.epoch == Freeze::epoch_after(self.epoch) && before.range.start == self.range.start;
            after.range = self.range.clone();
            if is_ours { Ok(after) } else { Err(ChangeError::NotApplicable) }
        } else if before.epoch == self.epoch {
            // A freeze that is committed later does not apply any more.
            Ok(after)
        } else {
            Err(ChangeError::NotApplicable)
        }
    }

    pub(super) fn encode(&self, head: &[u8]) -> Bytes {
        let KeyRange { start, end } = &self.range;
        let mut bytes = BytesMut::with_capacity(head.len() + 20 + start.len() + end.len());
        bytes.put_slice(head);
        put_epoch(&mut bytes, self.epoch);
        put_range(&mut bytes, &self.range);
        bytes.freeze()
    }

    pub(super) fn decode(mut bytes: &[u8]) -> Result<Self, ChangeError> {
        let epoch = epoch_of(&mut bytes)?;
        let range = range_of(&mut bytes)?;
        if bytes.is_empty() { Ok(Self { epoch, range }) } else { Err(ChangeError::Malformed) }
    }
}

fn put_epoch(bytes: &mut BytesMut, epoch: Epoch) {
    bytes.put_u64(epoch.range);
    bytes.put_u64(epoch.config);
}

fn epoch_of(bytes: &mut &[u8]) -> Result<Epoch, ChangeError> {
    let range = bytes.try_get_u64().map_err(|_| ChangeError::Malformed)?;
    let config = bytes.try_get_u64().map_err(|_| ChangeError::Malformed)?;
    Ok(Epoch { range, config })
}

fn put_range(bytes: &mut BytesMut, range: &KeyRange) {
    for key in [&range.start, &range.end] {
        bytes.put_u16(u16::try_from(key.len()).unwrap_or(u16::MAX));
        bytes.put_slice(key);
    }
}

/// A range with keys and a first one.
fn range_of(bytes: &mut &[u8]) -> Result<KeyRange, ChangeError> {
    let mut key = || {
        let len = usize::from(bytes.try_get_u16().map_err(|_| ChangeError::Malformed)?);
        let is_valid = len <= Split::AT_BYTES_MAX && len <= bytes.len();
        if is_valid { Ok(bytes.copy_to_bytes(len)) } else { Err(ChangeError::Malformed) }
    };
    let range = KeyRange { start: key()?, end: key()? };
    if range.start.is_empty() || range.is_empty() { Err(ChangeError::Malformed) } else { Ok(range) }
}

#[cfg(test)]
pub(super) mod tests {
    use flotilla_types::{NodeId, ReplicaDescriptor};
    use proptest::prelude::*;

    use super::{super::ShardChange, *};

    pub(in super::super) fn any_change() -> impl Strategy<Value = ShardChange> {
        let epoch = || (any::<u64>(), any::<u64>()).prop_map(|(range, config)| Epoch { range, config });
        let key = || proptest::collection::vec(any::<u8>(), 1..40);
        let range = (key(), key()).prop_filter_map("empty", |(start, end)| {
            let range = KeyRange { start: start.into(), end: end.into() };
            (!range.is_empty()).then_some(range)
        });
        (epoch(), epoch(), range, any::<u64>(), 1..5_u64, 0..4_u8).prop_map(
            |(epoch, source_epoch, range, source, count, kind)| match kind {
                0 => ShardChange::Freeze(Freeze { epoch }),
                1 => ShardChange::Abort { epoch },
                2 => ShardChange::Thaw(Thaw { epoch, range }),
                _ => ShardChange::Merge(Merge {
                    epoch,
                    source: ShardId(source),
                    source_epoch,
                    source_range: range,
                    replicas: (0..count).map(|n| (ReplicaId(1 + n), ReplicaId(5_000 - n))).collect(),
                }),
            },
        )
    }

    fn shard(id: u64, (start, end): (&'static str, &'static str), epoch: Epoch) -> ShardDescriptor {
        let replicas = [1, 2, 3].map(|node| ReplicaDescriptor {
            replica: ReplicaId(10 * id + node),
            node: NodeId(node),
            role: ReplicaRole::Voter,
        });
        let range = KeyRange { start: start.into(), end: end.into() };
        ShardDescriptor { shard: ShardId(id), range, epoch, replicas: replicas.into() }
    }

    fn left() -> ShardDescriptor {
        shard(1, ("b", "m"), Epoch { range: 4, config: 7 })
    }

    fn right() -> ShardDescriptor {
        shard(2, ("m", "y"), Epoch { range: 9, config: 3 })
    }

    fn frozen() -> ShardDescriptor {
        Freeze { epoch: right().epoch }.after(&right()).expect("it freezes")
    }

    fn merge() -> Merge {
        Merge {
            epoch: left().epoch,
            source: right().shard,
            source_epoch: frozen().epoch,
            source_range: right().range,
            replicas: (1..=3).map(|node| (ReplicaId(10 + node), ReplicaId(20 + node))).collect(),
        }
    }

    fn thaw() -> Thaw {
        Thaw { epoch: right().epoch, range: right().range }
    }

    #[test]
    fn a_frozen_shard_has_no_keys_and_a_later_epoch() {
        assert!(frozen().is_frozen() && !right().is_frozen());
        assert_eq!((frozen().range.start, frozen().range.end), ("m".into(), "m".into()));
        assert_eq!(frozen().epoch, Epoch { range: 10, config: 3 });
        assert_eq!(frozen().epoch, Freeze::epoch_after(right().epoch));
        let refused = |freeze: Freeze, shard: &ShardDescriptor| {
            assert_eq!(freeze.after(shard), Err(ChangeError::NotApplicable));
        };
        refused(Freeze { epoch: Epoch { config: 4, ..right().epoch } }, &right());
        refused(Freeze { epoch: right().epoch }, &frozen());
        refused(Freeze { epoch: frozen().epoch }, &frozen());
        let mut with_learner = right();
        with_learner.replicas[2].role = ReplicaRole::Learner;
        refused(Freeze { epoch: right().epoch }, &with_learner);
        let first = shard(2, ("", "y"), right().epoch);
        refused(Freeze { epoch: right().epoch }, &first);
    }

    #[test]
    fn the_left_shard_takes_over_the_keys_with_an_epoch_later_than_both() {
        let after = merge().after(&left()).expect("applies");
        assert_eq!((&after.range.start[..], &after.range.end[..]), (&b"b"[..], &b"y"[..]));
        assert_eq!(after.epoch, Epoch { range: 11, config: 7 });
        assert_eq!((after.shard, after.replicas), (left().shard, left().replicas));
        let refused = |merge: Merge| assert_eq!(merge.after(&left()), Err(ChangeError::NotApplicable));
        refused(Merge { epoch: Epoch { config: 8, ..left().epoch }, ..merge() });
        refused(Merge { epoch: Epoch { range: 3, ..left().epoch }, ..merge() });
        refused(Merge { source: left().shard, ..merge() });
        refused(Merge { replicas: merge().replicas[..2].to_vec(), ..merge() });
        refused(Merge { source_range: KeyRange { start: "n".into(), end: "y".into() }, ..merge() });
        let last = shard(1, ("b", ""), left().epoch);
        assert_eq!(merge().after(&last), Err(ChangeError::NotApplicable));
    }

    #[test]
    fn the_first_decision_in_the_log_of_the_left_shard_is_the_only_one() {
        let (merge, abort) = (ShardChange::Merge(merge()), ShardChange::Abort { epoch: left().epoch });
        for first in [&merge, &abort] {
            let decided = first.after(&left()).expect("the first one applies");
            for second in [&merge, &abort] {
                assert_eq!(second.after(&decided), Err(ChangeError::NotApplicable));
            }
        }
        let aborted = abort.after(&left()).expect("applies");
        assert_eq!((aborted.range, aborted.epoch.range), (left().range, 5));
    }

    #[test]
    fn a_thaw_gives_the_keys_back_or_keeps_the_freeze_from_applying() {
        let thawed = thaw().after(&frozen()).expect("applies");
        assert_eq!((&thawed.range, thawed.epoch.range), (&right().range, 11));
        assert_eq!(thaw().after(&thawed), Err(ChangeError::NotApplicable));
        let bumped = thaw().after(&right()).expect("applies");
        assert_eq!((&bumped.range, bumped.epoch.range), (&right().range, 10));
        for over in [&thawed, &bumped] {
            assert_eq!(Freeze { epoch: right().epoch }.after(over), Err(ChangeError::NotApplicable));
        }
        // Frozen again, for another merge.
        let again = Freeze { epoch: bumped.epoch }.after(&bumped).expect("applies");
        assert_eq!(thaw().after(&again), Err(ChangeError::NotApplicable));
        let elsewhere = Thaw { range: KeyRange { start: "n".into(), end: "y".into() }, ..thaw() };
        assert_eq!(elsewhere.after(&frozen()), Err(ChangeError::NotApplicable));
    }

    #[test]
    fn a_frozen_shard_is_not_split_and_merges_with_nobody() {
        let into_frozen = Merge { epoch: frozen().epoch, ..merge() };
        assert_eq!(into_frozen.after(&frozen()), Err(ChangeError::NotApplicable));
        let replicas = frozen().replicas.iter().map(|held| (held.replica, ReplicaId(held.replica.0 + 100))).collect();
        let split = Split { at: "n".into(), child: ShardId(9), epoch: frozen().epoch, replicas, heir: ReplicaId(121) };
        assert_eq!(split.halves(&frozen()), Err(ChangeError::NotApplicable));
        assert_eq!(ShardChange::Bump.after(&frozen()), Err(ChangeError::NotApplicable));
    }
}
