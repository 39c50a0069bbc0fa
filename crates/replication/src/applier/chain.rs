//! The chain of a replica: one digest over all that its entries have written and answered, by which replicas are
//! compared without reading records.
//!
//! Each entry with commands moves the digest: BLAKE3, keyed with the digest before, over the entry's index, its
//! write set and its outcomes. Now and then the machine's own state goes in as well. So replicas that ever wrote
//! something else after the same entry have different digests at every later entry. *Samples* are kept at
//! indexes that follow from the log, denser at the end.
//!
//! Invariants: all here is a function of the log, but for `copied`, `maker` and which samples and bases are
//! the replica's own: those of a snapshot say what its maker did, and are dropped.
//!
//! What it does not show: a record that the engine lost or changed later. The bases of folds do.

use std::collections::VecDeque;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use flotilla_storage::{MachineError, WriteSet};
use flotilla_types::{ByteOrder, ClusterVersion, LogIndex, ObjectId, ReplicaId, ShardId};

/// Entries between two samples: near the end, before, and further before.
const SPACINGS: [u64; 3] = [256, 4_096, 65_536];
/// Samples that are kept of each spacing.
const KEPT: u64 = 16;
/// Entries between two times when the machine's own state goes into the digest. It is encoded for that.
pub const SYSTEM_SPACING: u64 = SPACINGS[1];
/// Bases that are kept.
const BASES_MAX: usize = 4;
/// Samples that a replica tells of, at most.
pub const SAMPLES_MAX: usize = SPACINGS.len() * KEPT as usize + BASES_MAX;
/// Entries between two samples. One at another entry is of a fold, and has the machine's own state as of that entry.
pub const SAMPLE_SPACING: u64 = SPACINGS[0];

/// The first bytes of a state that has a chain: the version that has it, then a zero, with which no machine's own
/// state goes on after its first byte. So older binaries stop at it.
const MARK: [u8; 2] = [4, 0];

const MALFORMED: MachineError = MachineError::Corrupt("the chain of the system state does not parse");

/// A digest of a replica's chain.
pub type ChainDigest = [u8; 32];

/// What a replica says of its state, to be compared with others of its shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fingerprints {
    /// The last entry that it has applied.
    pub applied: LogIndex,
    /// The version by which it gives entries their meaning.
    pub meaning: ClusterVersion,
    /// Its chain, if its shard has one: from [`ClusterVersion::CHAINS`] on.
    pub chain: Option<ChainSamples>,
    /// The last bases that it made of folds that the log ordered, by the entries that did, ascending.
    pub bases: Vec<(LogIndex, ObjectId)>,
}

/// The chain of a replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChainSamples {
    /// The entry with which the chain begins.
    pub begun: LogIndex,
    /// The entry up to which it took its state from another replica; `None` if it has applied all entries of its
    /// shard itself.
    pub copied: Option<LogIndex>,
    /// Its own digests after entries, ascending. At most [`SAMPLES_MAX`].
    pub samples: Vec<(LogIndex, ChainDigest)>,
    /// The digest after the last applied entry, with the machine's own state; `None` while it applies entries.
    pub now: Option<ChainDigest>,
}

/// The chain of a replica that has one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chain {
    begun: LogIndex,
    digest: ChainDigest,
    copied: Option<LogIndex>,
    samples: VecDeque<(LogIndex, ChainDigest)>,
    /// Samples at the last entries that ordered folds.
    folds: VecDeque<(LogIndex, ChainDigest)>,
    bases: VecDeque<(LogIndex, ObjectId)>,
}

/// Whether a replica without a chain begins one with this entry: the one that raises the version of its meaning,
/// or, should that have passed, the next one that all replicas agree on.
pub(super) fn begins(index: LogIndex, before: ClusterVersion, after: ClusterVersion) -> bool {
    let is_chained = |version| version >= ClusterVersion::CHAINS;
    is_chained(after) && (!is_chained(before) || index.0.is_multiple_of(SPACINGS[0]))
}

impl Chain {
    /// The chain that begins after this entry.
    pub(super) fn begin(index: LogIndex, copied: Option<LogIndex>) -> Self {
        let digest = *blake3::hash(&index.0.to_be_bytes()).as_bytes();
        Self { begun: index, digest, copied, samples: VecDeque::new(), folds: VecDeque::new(), bases: VecDeque::new() }
    }

    /// The chain of a shard that is split off after this entry, and that begins at `index`: whether the state differed
    /// before can be seen in it, too.
    pub(super) fn split_off(&self, shard: ShardId, index: LogIndex) -> Self {
        let mut digest = blake3::Hasher::new_keyed(&self.digest);
        digest.update(&shard.0.to_be_bytes());
        let copied = self.copied.map(|_| index);
        Self { digest: *digest.finalize().as_bytes(), ..Self::begin(index, copied) }
    }

    /// At this entry a shard was merged into this one, which had this chain, and whose machine had this own state. So
    /// whether its replicas differed can be seen in this chain, too.
    pub(super) fn merge(&mut self, index: LogIndex, theirs: Option<&Self>, system: &[u8]) {
        let mut digest = blake3::Hasher::new_keyed(&self.digest);
        digest.update(&index.0.to_be_bytes());
        digest.update(&theirs.map_or([0; 32], |theirs| theirs.digest));
        digest.update(system);
        self.digest = *digest.finalize().as_bytes();
        if theirs.is_none_or(|theirs| theirs.copied.is_some()) {
            self.copied = Some(index);
        }
    }

    /// An entry has changed the state: in one pass over what it wrote.
    pub(super) fn add(&mut self, index: LogIndex, writes: &WriteSet, outcomes: &[Bytes]) {
        let written = writes.iter().map(|(key, value)| 16 + key.len() + value.as_ref().map_or(0, |value| value.len()));
        let answered = outcomes.iter().map(|outcome| 8 + outcome.len());
        let bytes = 16 + written.sum::<usize>() + answered.sum::<usize>();
        let mut hash = Gathered::new(&self.digest, bytes);
        hash.put(&index.0.to_be_bytes());
        hash.put(&(writes.len() as u64).to_be_bytes());
        for (key, value) in writes {
            hash.put(&(key.len() as u64).to_be_bytes());
            // Plus one, so that none and empty differ; a bit that no length has says that references follow.
            let has_refs = value.as_ref().is_some_and(|value| !value.refs().is_empty());
            let length = value.as_ref().map_or(0, |value| value.len() as u64 + 1);
            hash.put(&(length | u64::from(has_refs) << 63).to_be_bytes());
            hash.put(key);
            hash.put(value.as_deref().unwrap_or_default());
            if let Some(value) = value
                && has_refs
            {
                let mut refs = BytesMut::with_capacity(value.refs().encoded_bytes());
                value.refs().encode(&mut refs, ByteOrder::Big);
                hash.put(&refs);
            }
        }
        for outcome in outcomes {
            hash.put(&(outcome.len() as u64).to_be_bytes());
            hash.put(outcome);
        }
        self.digest = hash.end();
    }

    /// An entry of any kind was applied: takes the sample that is due, if one is. `system` gives the machine's
    /// own state.
    pub(super) fn pass(&mut self, index: LogIndex, orders_fold: bool, system: impl FnOnce() -> Bytes) {
        if orders_fold || index.0.is_multiple_of(SYSTEM_SPACING) {
            self.digest = with_system(&self.digest, &system());
        }
        if index.0.is_multiple_of(SAMPLE_SPACING) {
            self.samples.push_back((index, self.digest));
            self.samples.retain(|(sample, _)| index.0 - sample.0 < KEPT * spacing(*sample));
        } else if orders_fold {
            self.folds.push_back((index, self.digest));
            if self.folds.len() > BASES_MAX {
                self.folds.pop_front();
            }
        }
    }

    /// The replica names this base in its checkpoint.
    pub(super) fn note_base(&mut self, base: Option<(LogIndex, ObjectId)>) {
        let Some((fold, manifest)) = base else { return };
        // One that came with a snapshot is another replica's.
        let is_own = self.copied.is_none_or(|copied| fold > copied);
        if is_own && self.bases.back().is_none_or(|(last, _)| *last < fold) {
            self.bases.push_back((fold, manifest));
            if self.bases.len() > BASES_MAX {
                self.bases.pop_front();
            }
        }
    }

    /// What the replica says of its state. `system` is the machine's own, unless it is changing.
    pub(super) fn samples(&self, system: Option<&[u8]>) -> ChainSamples {
        let (begun, copied) = (self.begun, self.copied);
        let mut samples: Vec<_> = self.samples.iter().chain(&self.folds).copied().collect();
        samples.sort_unstable_by_key(|(index, _)| *index);
        ChainSamples { begun, copied, samples, now: system.map(|system| with_system(&self.digest, system)) }
    }

    pub(super) fn bases(&self) -> Vec<(LogIndex, ObjectId)> {
        self.bases.iter().copied().collect()
    }

    /// Puts the chain of a replica before its machine's own state.
    pub(super) fn encode(chain: Option<&Self>, maker: ReplicaId, into: &mut BytesMut) {
        let Some(Self { begun, digest, copied, samples, folds, bases }) = chain else { return };
        into.put_slice(&MARK);
        for number in [maker.0, begun.0, copied.map_or(0, |copied| copied.0 + 1)] {
            into.put_u64(number);
        }
        into.put_slice(digest);
        let own = |points: &VecDeque<_>| points.iter().copied().collect::<Vec<_>>();
        for points in [own(samples), own(folds), as_points(bases)] {
            into.put_u8(u8::try_from(points.len()).unwrap_or_default());
            for (index, digest) in points {
                into.put_u64(index.0);
                into.put_slice(&digest);
            }
        }
    }

    /// Takes the chain of a replica, if there is one, off a checkpoint's system state; the machine's own state is
    /// left. `index` is the checkpoint's.
    pub(super) fn decode(
        system: &mut Bytes,
        replica: ReplicaId,
        index: LogIndex,
    ) -> Result<Option<Self>, MachineError> {
        if !system.starts_with(&MARK) {
            return Ok(None);
        }
        system.advance(MARK.len());
        let mut number = || system.try_get_u64().map_err(|_| MALFORMED);
        let (maker, begun, copied) =
            (ReplicaId(number()?), LogIndex(number()?), number()?.checked_sub(1).map(LogIndex));
        let digest = take_digest(system)?;
        let samples = take_points(system, SAMPLES_MAX)?;
        let folds = take_points(system, BASES_MAX)?;
        let bases = take_points(system, BASES_MAX)?;
        let chain = Self {
            begun,
            digest,
            copied,
            samples: samples.into(),
            folds: folds.into(),
            bases: bases.into_iter().map(|(fold, id)| (fold, ObjectId(id))).collect(),
        };
        Ok(Some(if maker == replica { chain } else { chain.copied(index) }))
    }

    /// The same chain in another replica, which has taken it with the state of this entry.
    fn copied(self, index: LogIndex) -> Self {
        let (samples, folds, bases) = Default::default();
        Self { copied: Some(index), samples, folds, bases, ..self }
    }
}

/// Bytes that are gathered before they are hashed: BLAKE3 is several times as quick on long inputs.
const GATHERED_BYTES_MAX: usize = 16 << 10;

/// A keyed hash of many small parts.
struct Gathered {
    hasher: blake3::Hasher,
    buffer: Vec<u8>,
}

impl Gathered {
    /// Of so many bytes.
    fn new(key: &ChainDigest, bytes: usize) -> Self {
        let buffer = Vec::with_capacity(bytes.min(GATHERED_BYTES_MAX));
        Self { hasher: blake3::Hasher::new_keyed(key), buffer }
    }

    fn put(&mut self, part: &[u8]) {
        if self.buffer.len() + part.len() > GATHERED_BYTES_MAX {
            self.hasher.update(&self.buffer);
            self.buffer.clear();
            if part.len() >= GATHERED_BYTES_MAX {
                self.hasher.update(part);
                return;
            }
        }
        self.buffer.extend_from_slice(part);
    }

    fn end(mut self) -> ChainDigest {
        *self.hasher.update(&self.buffer).finalize().as_bytes()
    }
}

/// How far apart the samples are that are kept as long as this one.
fn spacing(sample: LogIndex) -> u64 {
    SPACINGS.into_iter().rev().find(|spacing| sample.0.is_multiple_of(*spacing)).unwrap_or(SPACINGS[0])
}

fn with_system(digest: &ChainDigest, system: &[u8]) -> ChainDigest {
    *blake3::keyed_hash(digest, system).as_bytes()
}

fn as_points(bases: &VecDeque<(LogIndex, ObjectId)>) -> Vec<(LogIndex, ChainDigest)> {
    bases.iter().map(|(fold, manifest)| (*fold, manifest.0)).collect()
}

fn take_digest(bytes: &mut Bytes) -> Result<ChainDigest, MachineError> {
    let mut digest = [0; 32];
    bytes.try_copy_to_slice(&mut digest).map_err(|_| MALFORMED)?;
    Ok(digest)
}

fn take_points(bytes: &mut Bytes, max: usize) -> Result<Vec<(LogIndex, ChainDigest)>, MachineError> {
    let count = usize::from(bytes.try_get_u8().map_err(|_| MALFORMED)?);
    if count > max {
        return Err(MALFORMED);
    }
    let mut points = Vec::with_capacity(count);
    for _ in 0..count {
        let index = LogIndex(bytes.try_get_u64().map_err(|_| MALFORMED)?);
        if points.last().is_some_and(|(last, _)| *last >= index) {
            return Err(MALFORMED);
        }
        points.push((index, take_digest(bytes)?));
    }
    Ok(points)
}

#[cfg(test)]
mod tests {
    use flotilla_hostile::{attack, mutated};
    use flotilla_storage::Value;
    use flotilla_types::ObjectRef;
    use proptest::prelude::Just;

    use super::*;

    fn write(key: &'static str, value: Option<&'static str>) -> (Bytes, Option<Value>) {
        (Bytes::from_static(key.as_bytes()), value.map(Value::from))
    }

    fn after(entries: &[(u64, WriteSet, &'static [u8])]) -> ChainDigest {
        let mut chain = Chain::begin(LogIndex(3), None);
        for (index, writes, outcome) in entries {
            chain.add(LogIndex(*index), writes, &[Bytes::from_static(outcome)]);
        }
        chain.digest
    }

    #[test]
    fn whatever_an_entry_wrote_or_answered_changes_every_later_digest() {
        let same = |index, writes| vec![(index, writes, b"done".as_slice()), (9, vec![write("z", Some("1"))], b"done")];
        let one = after(&same(4, vec![write("ab", Some("c")), write("d", None)]));
        assert_eq!(one, after(&same(4, vec![write("ab", Some("c")), write("d", None)])));
        for other in [
            same(5, vec![write("ab", Some("c")), write("d", None)]),
            same(4, vec![write("a", Some("bc")), write("d", None)]),
            same(4, vec![write("ab", Some("c")), write("d", Some(""))]),
            same(4, vec![write("ab", Some("x")), write("d", None)]),
            same(4, vec![write("d", None), write("ab", Some("c"))]),
            same(4, vec![write("ab", Some("c"))]),
            same(4, vec![]),
        ] {
            assert_ne!(after(&other), one, "{other:?}");
        }
        // Larger than what is gathered.
        let long = |last: u8| {
            let mut value = vec![7; GATHERED_BYTES_MAX * 2];
            value.push(last);
            after(&[(4, vec![(Bytes::from_static(b"k"), Some(value.into())), write("z", None)], b"done")])
        };
        assert_eq!(long(1), long(1));
        assert_ne!(long(1), long(2));
        // One object that has two heights, then two objects.
        let refs = |objects: &[(u8, u8)]| {
            let refs =
                objects.iter().map(|(name, height)| ObjectRef { id: ObjectId([*name; 32]), height: *height, bytes: 9 });
            after(&[(4, vec![(Bytes::from_static(b"k"), Some(Value::new("v", refs.collect())))], b"done")])
        };
        let referring = [&[][..], &[(1, 0)], &[(1, 1)], &[(2, 0)], &[(1, 0), (2, 0)]].map(refs);
        assert!(referring.iter().enumerate().all(|(at, one)| !referring[..at].contains(one)));
        let mut answered = same(4, vec![write("ab", Some("c")), write("d", None)]);
        answered[0].2 = b"refused";
        assert_ne!(after(&answered), one);
    }

    fn run(to: u64, system: &'static [u8]) -> Chain {
        let mut chain = Chain::begin(LogIndex(3), None);
        for index in 4..=to {
            chain.add(LogIndex(index), &vec![write("k", Some("v"))], &[]);
            chain.pass(LogIndex(index), false, || Bytes::from_static(system));
        }
        chain
    }

    #[test]
    fn samples_are_bounded_and_two_chains_share_one_though_one_is_far_behind() {
        let ahead = run(300_000, b"");
        assert!(ahead.samples.len() <= SAMPLES_MAX);
        assert!(ahead.samples.iter().is_sorted());
        for behind in [299_999, 299_000, 290_000, 200_000, 70_000] {
            let behind = run(behind, b"");
            assert!(
                behind.samples.iter().any(|sample| ahead.samples.contains(sample)),
                "at {:?}",
                behind.samples.back()
            );
        }
    }

    #[test]
    fn the_machines_own_state_is_in_some_samples_and_in_the_digest_of_now() {
        let (one, other) = (run(SYSTEM_SPACING + 300, b"one"), run(SYSTEM_SPACING + 300, b"other"));
        let differs = |at: u64| {
            let of = |chain: &Chain| chain.samples.iter().find(|(index, _)| index.0 == at).map(|(_, digest)| *digest);
            assert!(of(&one).is_some());
            of(&one) != of(&other)
        };
        assert!(!differs(SYSTEM_SPACING - SPACINGS[0]), "it was not looked at yet");
        assert!(differs(SYSTEM_SPACING) && differs(SYSTEM_SPACING + SPACINGS[0]));
        let quiet = run(10, b"");
        assert_eq!(quiet.samples(Some(b"one")).now, quiet.samples(Some(b"one")).now);
        assert_ne!(quiet.samples(Some(b"one")).now, quiet.samples(Some(b"other")).now);
    }

    #[test]
    fn the_entry_that_orders_a_fold_is_a_sample_with_the_machines_own_state() {
        let folded = |system: &'static [u8]| {
            let mut chain = run(10, b"");
            for index in 11..20 {
                chain.pass(LogIndex(index), index % 2 == 1, || Bytes::from_static(system));
            }
            chain.samples(Some(b"")).samples
        };
        let one = folded(b"one");
        assert_eq!(one.iter().map(|(index, _)| index.0).collect::<Vec<_>>(), [13, 15, 17, 19], "the last ones");
        assert_eq!(folded(b"one"), one);
        assert!(folded(b"other").iter().zip(&one).all(|(other, one)| other != one));
        let mut chain = run(10, b"");
        chain.pass(LogIndex(11), true, Bytes::new);
        assert_eq!(Chain::decode(&mut encoded(&chain, 7), ReplicaId(7), LogIndex(11)).unwrap(), Some(chain));
    }

    fn encoded(chain: &Chain, maker: u64) -> Bytes {
        let mut bytes = BytesMut::new();
        Chain::encode(Some(chain), ReplicaId(maker), &mut bytes);
        bytes.put_slice(b"\x02machine");
        bytes.freeze()
    }

    #[test]
    fn a_replica_finds_its_chain_again_and_another_one_takes_it_without_its_evidence() {
        let mut chain = run(1_000, b"");
        chain.note_base(Some((LogIndex(900), ObjectId([1; 32]))));
        let mut bytes = encoded(&chain, 7);
        assert_eq!(Chain::decode(&mut bytes, ReplicaId(7), LogIndex(1_000)).unwrap(), Some(chain.clone()));
        assert_eq!(bytes, Bytes::from_static(b"\x02machine"));
        let taken = Chain::decode(&mut encoded(&chain, 7), ReplicaId(8), LogIndex(1_000)).unwrap().unwrap();
        assert_eq!((taken.digest, taken.copied), (chain.digest, Some(LogIndex(1_000))));
        assert!(taken.samples.is_empty() && taken.bases.is_empty());
        let mut own = taken;
        own.note_base(Some((LogIndex(900), ObjectId([1; 32]))));
        assert!(own.bases.is_empty(), "it came with the snapshot");
        own.note_base(Some((LogIndex(1_001), ObjectId([2; 32]))));
        assert_eq!(own.bases.len(), 1);
    }

    #[test]
    fn a_state_without_a_chain_is_the_machines_own_and_damage_is_an_error() {
        for bytes in [&b""[..], b"\x01", b"\x02\x08", b"\x04", b"\x04\x08"] {
            let mut system = Bytes::from_static(bytes);
            assert_eq!(Chain::decode(&mut system, ReplicaId(1), LogIndex(9)).unwrap(), None);
            assert_eq!(system, bytes);
        }
        let valid = encoded(&run(20_000, b""), 1).to_vec();
        attack(1_000, mutated(Just(valid)), |bytes| {
            let mut bytes = Bytes::from(bytes);
            if let Ok(Some(chain)) = Chain::decode(&mut bytes, ReplicaId(1), LogIndex(1)) {
                assert!(chain.samples.len() <= SAMPLES_MAX && chain.bases.len() <= BASES_MAX);
            }
        });
    }

    #[test]
    fn a_chain_begins_with_the_entry_that_raises_the_version_or_at_one_that_all_agree_on() {
        let (before, at) = (ClusterVersion(ClusterVersion::CHAINS.0 - 1), ClusterVersion::CHAINS);
        assert!(begins(LogIndex(7), before, at));
        assert!(!begins(LogIndex(7), before, before) && !begins(LogIndex(256), before, before));
        assert!(!begins(LogIndex(7), at, at) && begins(LogIndex(512), at, at));
    }
}
