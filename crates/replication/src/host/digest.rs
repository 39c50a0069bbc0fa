//! Digests of a replica's contents: replicas with the same contents have equal digests at the same applied
//! entry.
//!
//! A digest does not hold up writes: a blocking thread reads a snapshot of the records, which is of one applied
//! entry, while later entries are applied.

use std::time::Duration;

use flotilla_storage::{EngineError, StateReader, successor};
use flotilla_types::{KeyRange, LogIndex, ReplicaId};
use tokio::sync::oneshot;

use super::{
    apply::{Apply, Job},
    inline::InlineExecutor,
};
use crate::{Contents, ReplicaContents};

/// Attempts at a replica that applies entries in the pool, which have to end before there can be a snapshot.
const ATTEMPTS_MAX: usize = 20;
/// Pause between two of them.
const PAUSE: Duration = Duration::from_millis(50);
/// Records per scan.
const SCAN_RECORDS_MAX: usize = 1_024;
/// Bytes per scan.
const SCAN_BYTES_MAX: usize = 4 << 20;

/// The digest of a replica's contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Digest {
    /// The last entry that it has applied.
    pub applied: LogIndex,
    /// BLAKE3 over the state machine's own state and all records in key order, each part prefixed by its
    /// length.
    pub hash: [u8; 32],
    /// The number of records of users.
    pub records: u64,
}

/// Why there is no digest. No state has changed; retry later.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DigestError {
    /// The replica is not here, is being loaded, or the node is stopping.
    #[error("the replica does not serve here")]
    NotServing,
    /// The replica applied entries that wait for the disk, at every attempt.
    #[error("the replica is applying writes that wait for the disk; retry when there are fewer")]
    Moving,
    /// Its records cannot be read.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

pub(super) async fn of(
    apply: &InlineExecutor<Apply>,
    replica: ReplicaId,
    range: KeyRange,
) -> Result<Digest, DigestError> {
    let ReplicaContents { applied, range: held, system, records, .. } = contents(apply, replica).await?;
    let range = range.intersection(&held);
    let read = tokio::task::spawn_blocking(move || hash(&system, &*records, &range));
    let (hash, records) = read.await.map_err(|_| DigestError::NotServing)??;
    Ok(Digest { applied, hash, records })
}

/// The contents of a replica after one entry.
pub(super) async fn contents(
    apply: &InlineExecutor<Apply>,
    replica: ReplicaId,
) -> Result<ReplicaContents, DigestError> {
    for _ in 0..ATTEMPTS_MAX {
        match contents_of(apply, replica).await {
            Err(DigestError::Moving) => tokio::time::sleep(PAUSE).await,
            contents => return contents,
        }
    }
    Err(DigestError::Moving)
}

async fn contents_of(apply: &InlineExecutor<Apply>, replica: ReplicaId) -> Result<ReplicaContents, DigestError> {
    let (reply, answer) = oneshot::channel();
    apply.enqueue(Job::Contents(replica, reply));
    match answer.await {
        Ok(Contents::AtRest(contents)) => Ok(contents),
        Ok(Contents::Moving) => Err(DigestError::Moving),
        Ok(Contents::NotServing) | Err(_) => Err(DigestError::NotServing),
    }
}

fn hash(system: &[u8], reader: &dyn StateReader, range: &KeyRange) -> Result<([u8; 32], u64), EngineError> {
    let (mut hasher, mut records) = (blake3::Hasher::new(), 0);
    let mut add = |part: &[u8]| {
        hasher.update(&(part.len() as u64).to_be_bytes());
        hasher.update(part);
    };
    add(system);
    // Those that the machine keeps for itself are hashed too, but are none of the users'.
    for (mut rest, counts) in [(range.intersection(&KeyRange::of_users()), true), (KeyRange::internal(), false)] {
        loop {
            let page = reader.scan(&rest, SCAN_RECORDS_MAX, SCAN_BYTES_MAX)?;
            let Some((last, _)) = page.last() else { break };
            rest.start = successor(last);
            records += if counts { page.len() as u64 } else { 0 };
            page.iter().flat_map(|(key, value)| [key, value]).for_each(|part| add(part));
        }
    }
    Ok((hasher.finalize().into(), records))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use bytes::Bytes;

    use super::*;

    struct Records(BTreeMap<Bytes, Bytes>);

    impl StateReader for Records {
        fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
            Ok(self.0.get(key).cloned())
        }

        fn scan(&self, range: &KeyRange, items_max: usize, _: usize) -> Result<Vec<(Bytes, Bytes)>, EngineError> {
            let inside = self.0.iter().filter(|(key, _)| range.contains(key));
            Ok(inside.take(items_max).map(|(key, value)| (key.clone(), value.clone())).collect())
        }
    }

    fn records(count: usize) -> Records {
        let record = |i| (Bytes::from(format!("k{i:06}")), Bytes::from(format!("v{i}")));
        Records((0..count).map(record).collect())
    }

    #[test]
    fn a_digest_covers_every_record_of_the_range_over_several_scans() {
        let count = SCAN_RECORDS_MAX * 2 + 7;
        let (whole, all) = (hash(b"own", &records(count), &KeyRange::all()).unwrap(), count as u64);
        assert_eq!(whole.1, all);
        assert_eq!(hash(b"own", &records(count), &KeyRange::all()).unwrap(), whole);
        for i in [0, SCAN_RECORDS_MAX, count - 1] {
            let mut other = records(count);
            other.0.insert(format!("k{i:06}").into(), "changed".into());
            assert_ne!(hash(b"own", &other, &KeyRange::all()).unwrap().0, whole.0, "record {i}");
        }
        assert_ne!(hash(b"other", &records(count), &KeyRange::all()).unwrap().0, whole.0, "the machine's own state");
        let part = KeyRange { start: Bytes::new(), end: "k000010".into() };
        assert_eq!(hash(b"own", &records(count), &part).unwrap().1, 10);
        let mut internal = records(count);
        internal.0.insert(KeyRange::internal().start, Bytes::new());
        for range in [KeyRange::all(), part] {
            let (with, without) =
                (hash(b"own", &internal, &range).unwrap(), hash(b"own", &records(count), &range).unwrap());
            assert_ne!(with.0, without.0, "a record that belongs to the shard whatever its range is");
            assert_eq!(with.1, without.1, "none of the users'");
        }
    }

    #[test]
    fn the_boundary_between_key_and_value_changes_the_digest() {
        let one = Records(BTreeMap::from([("ab".into(), "c".into())]));
        let other = Records(BTreeMap::from([("a".into(), "bc".into())]));
        assert_ne!(hash(b"own", &one, &KeyRange::all()).unwrap(), hash(b"own", &other, &KeyRange::all()).unwrap());
    }
}
