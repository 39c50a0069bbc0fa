//! What replicas say of their state, as nodes tell each other, and the order to give one up.

use bytes::Bytes;
use flotilla_replication::{ChainDigest, ChainSamples, Fingerprints, ReplicaStatus, SAMPLES_MAX};
use flotilla_types::{ClusterVersion, LogIndex, NodeId, ObjectId, ShardId, VersionRange};
use flotilla_wire::{WireError, decode, encode, peer};

/// Bytes of an index and a digest.
const POINT_BYTES: usize = 40;

/// What a replica says of its state, and the highest cluster version that its binary supports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// What it says.
    pub fingerprints: Fingerprints,
    /// The version.
    pub supported: ClusterVersion,
}

/// Where replicas of a shard can be compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Point {
    /// After an entry, by a sample of the chain.
    Sample(LogIndex),
    /// After an entry, by the chain and the machine's own state.
    Now(LogIndex),
    /// By the base of the fold that this entry ordered.
    Base(LogIndex),
}

/// Why a replica is to be given up: what a majority of its shard has where it has something else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Evidence {
    /// Where.
    pub point: Point,
    /// What the majority has.
    pub digest: ChainDigest,
}

impl Point {
    /// The entry.
    #[must_use]
    pub fn index(self) -> LogIndex {
        let (Self::Sample(index) | Self::Now(index) | Self::Base(index)) = self;
        index
    }
}

impl Said {
    /// What a replica of this node says.
    #[must_use]
    pub fn here(fingerprints: Fingerprints) -> Self {
        Self { fingerprints, supported: VersionRange::supported().max }
    }

    /// Every point at which it can be compared, with what it has there. Only what it has made itself.
    pub fn points(&self) -> impl Iterator<Item = (Point, ChainDigest)> + '_ {
        let Fingerprints { applied, chain, bases, .. } = &self.fingerprints;
        let samples = chain.iter().flat_map(|chain| &chain.samples).map(|(at, digest)| (Point::Sample(*at), *digest));
        let now = chain.iter().filter_map(|chain| Some((Point::Now(*applied), chain.now?)));
        samples.chain(now).chain(bases.iter().map(|(fold, manifest)| (Point::Base(*fold), manifest.0)))
    }

    /// What it has at a point.
    #[must_use]
    pub fn at(&self, point: Point) -> Option<ChainDigest> {
        self.points().find_map(|(at, digest)| (at == point).then_some(digest))
    }

    /// Whether this replica has something else than the evidence names.
    #[must_use]
    pub fn is_refuted_by(&self, evidence: &Evidence) -> bool {
        self.at(evidence.point).is_some_and(|digest| digest != evidence.digest)
    }

    /// As bytes, for a peer.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let Fingerprints { applied, meaning, chain, bases } = &self.fingerprints;
        let mut message = peer::Fingerprints {
            applied: applied.0,
            meaning: meaning.0,
            supported: self.supported.0,
            bases: join(bases.iter().map(|(fold, manifest)| (*fold, manifest.0))),
            ..peer::Fingerprints::default()
        };
        if let Some(ChainSamples { begun, copied, samples, now }) = chain {
            message.chained = true;
            message.begun = begun.0;
            message.copied_plus_one = copied.map_or(0, |copied| copied.0.saturating_add(1));
            message.samples = join(samples.iter().copied());
            message.now = now.map_or_else(Bytes::new, |now| Bytes::copy_from_slice(&now));
        }
        encode(&message)
    }

    /// The output of [`Said::encode`].
    ///
    /// # Errors
    /// The bytes are something else.
    pub fn decode(bytes: Bytes) -> Result<Self, WireError> {
        let message: peer::Fingerprints = decode(bytes)?;
        let chain = if message.chained {
            Some(ChainSamples {
                begun: LogIndex(message.begun),
                copied: message.copied_plus_one.checked_sub(1).map(LogIndex),
                samples: split(&message.samples)?,
                now: match message.now[..] {
                    [] => None,
                    ref now => Some(now.try_into().map_err(|_| WireError::OutOfRange("points"))?),
                },
            })
        } else {
            None
        };
        let bases = split(&message.bases)?.into_iter().map(|(fold, id)| (fold, ObjectId(id))).collect();
        let (applied, meaning) = (LogIndex(message.applied), ClusterVersion(message.meaning));
        let fingerprints = Fingerprints { applied, meaning, chain, bases };
        Ok(Self { fingerprints, supported: ClusterVersion(message.supported) })
    }
}

/// Whether a node may order that a replica be given up: the one that leads its shard, as the replica knows.
#[must_use]
pub fn may_order_to_give_up(replica: &ReplicaStatus, shard: ShardId, from: NodeId) -> bool {
    let leader = replica.group.as_ref().and_then(|group| replica.descriptor.node_of(group.leader));
    replica.shard == shard && leader == Some(from)
}

impl Evidence {
    pub(crate) fn to_wire(self) -> (u32, u64, Bytes) {
        let kind = match self.point {
            Point::Sample(_) => 0,
            Point::Now(_) => 1,
            Point::Base(_) => 2,
        };
        (kind, self.point.index().0, Bytes::copy_from_slice(&self.digest))
    }

    pub(crate) fn from_wire(kind: u32, index: u64, digest: &[u8]) -> Option<Self> {
        let point = match kind {
            0 => Point::Sample,
            1 => Point::Now,
            2 => Point::Base,
            _ => return None,
        };
        Some(Self { point: point(LogIndex(index)), digest: digest.try_into().ok()? })
    }
}

fn join(points: impl Iterator<Item = (LogIndex, ChainDigest)>) -> Bytes {
    points.flat_map(|(index, digest)| index.0.to_be_bytes().into_iter().chain(digest)).collect()
}

fn split(bytes: &[u8]) -> Result<Vec<(LogIndex, ChainDigest)>, WireError> {
    let (points, rest) = bytes.as_chunks::<POINT_BYTES>();
    if !rest.is_empty() || points.len() > SAMPLES_MAX {
        return Err(WireError::OutOfRange("points"));
    }
    let point = |point: &[u8; POINT_BYTES]| {
        let (index, digest) = point.split_first_chunk::<8>()?;
        Some((LogIndex(u64::from_be_bytes(*index)), digest.try_into().ok()?))
    };
    points.iter().map(|bytes| point(bytes).ok_or(WireError::OutOfRange("points"))).collect()
}

#[cfg(test)]
mod tests {
    use flotilla_hostile::{Proportion, attack, mutated};
    use proptest::prelude::Just;

    use flotilla_types::ReplicaId;

    use super::*;
    use crate::core::testing::leads;

    #[test]
    fn what_a_replica_says_survives_the_wire_and_garbage_is_an_error() {
        let chain = ChainSamples {
            begun: LogIndex(3),
            copied: Some(LogIndex(0)),
            samples: (1..=SAMPLES_MAX as u64).map(|at| (LogIndex(256 * at), [at as u8; 32])).collect(),
            now: Some([9; 32]),
        };
        let bases = vec![(LogIndex(5), ObjectId([7; 32]))];
        let fingerprints =
            Fingerprints { applied: LogIndex(77), meaning: ClusterVersion(4), chain: Some(chain), bases };
        let said = Said::here(fingerprints);
        assert_eq!(Said::decode(said.encode()), Ok(said.clone()));
        let bare = Fingerprints { chain: None, bases: Vec::new(), ..said.fingerprints.clone() };
        let bare = Said { fingerprints: bare, ..said.clone() };
        assert_eq!(Said::decode(bare.encode()), Ok(bare));
        assert!(Said::decode(Bytes::from_static(b"\xff\xff")).is_err());
        attack(1_000, mutated(Just(said.encode().to_vec())), |bytes| {
            let length = bytes.len();
            let _ = Proportion::DEFAULT.of(length, || Said::decode(bytes.into()));
        });
        let mut long = said;
        long.fingerprints.bases = vec![(LogIndex(5), ObjectId([7; 32])); SAMPLES_MAX + 1];
        assert!(Said::decode(long.encode()).is_err());
    }

    #[test]
    fn only_the_leader_of_a_shard_may_order_to_give_up_a_replica_of_it() {
        let mut replica = leads(1, &[(1, 2), (2, 3), (3, 4)], &[]);
        let may = |replica: &ReplicaStatus, shard, from| may_order_to_give_up(replica, ShardId(shard), NodeId(from));
        assert!(may(&replica, 1, 1), "itself");
        assert!(!may(&replica, 1, 2) && !may(&replica, 2, 1));
        replica.group.as_mut().expect("a group").leader = ReplicaId(4);
        assert!(may(&replica, 1, 3) && !may(&replica, 1, 1));
        replica.group.as_mut().expect("a group").leader = ReplicaId::NONE;
        assert!((0..5).all(|from| !may(&replica, 1, from)));
        replica.group = None;
        assert!((0..5).all(|from| !may(&replica, 1, from)));
    }

    #[test]
    fn evidence_refutes_only_a_replica_that_has_something_else_there() {
        let bases = vec![(LogIndex(5), ObjectId([7; 32]))];
        let fingerprints = Fingerprints { applied: LogIndex(77), meaning: ClusterVersion(4), chain: None, bases };
        let said = Said::here(fingerprints);
        let evidence = |point, digest| Evidence { point, digest: [digest; 32] };
        assert!(said.is_refuted_by(&evidence(Point::Base(LogIndex(5)), 8)));
        assert!(!said.is_refuted_by(&evidence(Point::Base(LogIndex(5)), 7)));
        assert!(!said.is_refuted_by(&evidence(Point::Base(LogIndex(6)), 8)), "it has nothing there");
        assert!(!said.is_refuted_by(&evidence(Point::Sample(LogIndex(5)), 8)));
        for point in [Point::Sample(LogIndex(1)), Point::Now(LogIndex(2)), Point::Base(LogIndex(3))] {
            let (kind, index, digest) = evidence(point, 1).to_wire();
            assert_eq!(Evidence::from_wire(kind, index, &digest), Some(evidence(point, 1)));
        }
        assert_eq!(Evidence::from_wire(3, 1, &[0; 32]), None);
        assert_eq!(Evidence::from_wire(0, 1, &[0; 31]), None);
    }
}
