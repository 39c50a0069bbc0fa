//! How much disk a node has, and what its replicas take, as nodes tell each other.

use bytes::Bytes;
use flotilla_placement::Disk;
use flotilla_replication::ReplicaStatus;
use flotilla_types::ShardId;
use flotilla_wire::{WireError, decode, encode, peer};

/// Shards that a report names, at most.
pub const CAPACITY_SHARDS_MAX: usize = 1 << 17;

/// The capacity of one node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Capacity {
    /// The disk of its data folder; `None` if it cannot tell.
    pub disk: Option<Disk>,
    /// Bytes of the records of each replica here, by shard. Large values are not among them: replicas share them.
    pub shards: Vec<(ShardId, u64)>,
}

impl Capacity {
    /// With what these replicas take.
    #[must_use]
    pub fn new<'a>(disk: Option<Disk>, replicas: impl IntoIterator<Item = &'a ReplicaStatus>) -> Self {
        let shards = replicas.into_iter().map(|replica| (replica.shard, replica.usage.bytes()));
        Self { disk, shards: shards.take(CAPACITY_SHARDS_MAX).collect() }
    }

    /// As bytes, for a peer.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let disk = self.disk.unwrap_or_default();
        let (shards, shard_bytes) = self.shards.iter().map(|(shard, bytes)| (shard.0, *bytes)).unzip();
        encode(&peer::Capacity { disk_bytes: disk.bytes, disk_free_bytes: disk.free_bytes, shards, shard_bytes })
    }

    /// The output of [`Capacity::encode`]. Leaves out what is beyond its bound.
    ///
    /// # Errors
    /// The bytes are something else.
    pub fn decode(bytes: Bytes) -> Result<Self, WireError> {
        let peer::Capacity { disk_bytes, disk_free_bytes, shards, shard_bytes } = decode(bytes)?;
        let disk = Disk { bytes: disk_bytes, free_bytes: disk_free_bytes.min(disk_bytes) };
        let shards = shards.into_iter().map(ShardId).zip(shard_bytes).take(CAPACITY_SHARDS_MAX);
        Ok(Self { disk: (disk_bytes > 0).then_some(disk), shards: shards.collect() })
    }
}

#[cfg(test)]
mod tests {
    use flotilla_hostile::{Proportion, attack, mutated};
    use flotilla_storage::Usage;
    use proptest::prelude::Just;

    use super::*;
    use crate::core::testing::leads;

    #[test]
    fn a_report_survives_the_wire_and_garbage_is_an_error() {
        let mut replicas = [leads(1, &[(1, 2)], &[]), leads(7, &[(1, 4)], &[])];
        replicas[1].usage = Usage { active_bytes: 1, frozen_bytes: 10, checkpoint_bytes: 100 };
        for disk in [None, Some(Disk { bytes: 90, free_bytes: 80 })] {
            let report = Capacity::new(disk, &replicas);
            assert_eq!(report.shards, [(ShardId(1), 0), (ShardId(7), 111)]);
            assert_eq!(Capacity::decode(report.encode()), Ok(report));
        }
        assert!(Capacity::decode(Bytes::from_static(b"\xff\xff")).is_err());
        let valid = Capacity::new(Some(Disk { bytes: 90, free_bytes: 80 }), &replicas).encode().to_vec();
        attack(1_000, mutated(Just(valid)), |bytes| {
            let length = bytes.len();
            if let Ok(report) = Proportion::DEFAULT.of(length, || Capacity::decode(bytes.into())) {
                assert!(report.disk.is_none_or(|disk| disk.free_bytes <= disk.bytes));
            }
        });
        let many = Capacity { disk: None, shards: vec![(ShardId(1), 1); CAPACITY_SHARDS_MAX + 1] };
        assert_eq!(Capacity::decode(many.encode()).map(|read| read.shards.len()), Ok(CAPACITY_SHARDS_MAX));
    }
}
