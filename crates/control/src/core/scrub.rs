//! How the scrub of a node stands, as nodes tell each other.

use bytes::Bytes;
use flotilla_replication::{ReplicaStatus, ScrubStatus};
use flotilla_types::{ReplicaId, ReplicaRole, ShardId};
use flotilla_wire::{WireError, decode, encode, peer};

/// Damaged replicas that a node names, at most.
pub const DAMAGED_LISTED_MAX: usize = 256;

/// The scrub of one node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeScrub {
    /// How it stands.
    pub status: ScrubStatus,
    /// Replicas that need damaged objects, at most [`DAMAGED_LISTED_MAX`].
    pub damaged: Vec<DamagedReplica>,
}

/// A replica that needs damaged objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DamagedReplica {
    /// The shard.
    pub shard: ShardId,
    /// The replica.
    pub replica: ReplicaId,
    /// Whether another voter of the shard may have what it lacks.
    pub repairable: bool,
}

impl NodeScrub {
    /// With the damaged ones among a node's replicas.
    #[must_use]
    pub fn new<'a>(status: ScrubStatus, replicas: impl IntoIterator<Item = &'a ReplicaStatus>) -> Self {
        let damaged = replicas.into_iter().filter(|replica| replica.damaged).take(DAMAGED_LISTED_MAX);
        Self { status, damaged: damaged.map(DamagedReplica::of).collect() }
    }

    /// As bytes, for a peer.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let ScrubStatus {
            running,
            bytes_per_second,
            bytes,
            bytes_total,
            objects_total,
            bytes_read_total,
            damaged_total,
            unreadable_total,
            passes_total,
            began_ms,
            ended_ms,
            next_ms,
        } = self.status;
        let damaged = self.damaged.iter().map(|damaged| peer::DamagedReplica {
            shard: damaged.shard.0,
            replica: damaged.replica.0,
            repairable: damaged.repairable,
        });
        encode(&peer::ScrubStatus {
            running,
            bytes_per_second,
            bytes,
            bytes_total,
            objects: objects_total,
            bytes_read: bytes_read_total,
            objects_damaged: damaged_total,
            objects_unreadable: unreadable_total,
            passes: passes_total,
            began_ms: began_ms.unwrap_or(0),
            ended_ms: ended_ms.unwrap_or(0),
            next_ms: next_ms.unwrap_or(0),
            damaged: damaged.collect(),
        })
    }

    /// The output of [`NodeScrub::encode`]. Leaves out what is beyond its bound.
    ///
    /// # Errors
    /// The bytes are something else.
    pub fn decode(bytes: Bytes) -> Result<Self, WireError> {
        let answer: peer::ScrubStatus = decode(bytes)?;
        let time = |ms: u64| (ms != 0).then_some(ms);
        let damaged = answer.damaged.into_iter().take(DAMAGED_LISTED_MAX).map(|damaged| DamagedReplica {
            shard: ShardId(damaged.shard),
            replica: ReplicaId(damaged.replica),
            repairable: damaged.repairable,
        });
        Ok(Self {
            status: ScrubStatus {
                running: answer.running,
                bytes_per_second: answer.bytes_per_second,
                bytes: answer.bytes,
                bytes_total: answer.bytes_total,
                objects_total: answer.objects,
                bytes_read_total: answer.bytes_read,
                damaged_total: answer.objects_damaged,
                unreadable_total: answer.objects_unreadable,
                passes_total: answer.passes,
                began_ms: time(answer.began_ms),
                ended_ms: time(answer.ended_ms),
                next_ms: time(answer.next_ms),
            },
            damaged: damaged.collect(),
        })
    }
}

impl DamagedReplica {
    /// Describes a damaged replica.
    #[must_use]
    pub fn of(replica: &ReplicaStatus) -> Self {
        let mut others = replica.descriptor.replicas.iter().filter(|held| held.replica != replica.replica);
        let repairable = others.any(|held| held.role == ReplicaRole::Voter);
        Self { shard: replica.shard, replica: replica.replica, repairable }
    }
}

#[cfg(test)]
mod tests {
    use flotilla_hostile::{Proportion, attack, mutated};
    use proptest::prelude::Just;

    use super::*;
    use crate::core::testing::leads;

    #[test]
    fn a_report_survives_the_wire_and_garbage_is_an_error() {
        let mut replicas = [leads(1, &[(1, 2), (2, 3)], &[]), leads(2, &[(1, 4)], &[]), leads(3, &[(1, 5)], &[])];
        replicas[..2].iter_mut().for_each(|replica| replica.damaged = true);
        let status = ScrubStatus { running: true, bytes: 5, passes_total: 7, ended_ms: Some(9), ..Default::default() };
        let report = NodeScrub::new(status, &replicas);
        let of = |shard, replica, repairable| DamagedReplica {
            shard: ShardId(shard),
            replica: ReplicaId(replica),
            repairable,
        };
        assert_eq!(report.damaged, [of(1, 2, true), of(2, 4, false)], "the second has no peer, the third no damage");
        assert_eq!(NodeScrub::decode(report.encode()), Ok(report.clone()));
        assert!(NodeScrub::decode(Bytes::from_static(b"\xff\xff")).is_err());
        attack(1_000, mutated(Just(report.encode().to_vec())), |bytes| {
            let length = bytes.len();
            if let Ok(report) = Proportion::DEFAULT.of(length, || NodeScrub::decode(bytes.into())) {
                assert!(report.damaged.len() <= DAMAGED_LISTED_MAX);
            }
        });
        let many = NodeScrub { damaged: vec![of(1, 2, true); 9_999], ..report };
        assert_eq!(NodeScrub::decode(many.encode()).map(|read| read.damaged.len()), Ok(DAMAGED_LISTED_MAX));
    }
}
