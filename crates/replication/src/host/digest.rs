//! What a replica holds, as one number: equal replicas have equal digests at the same applied entry.
//!
//! Nothing is held up: records are read on a blocking thread while entries go on to be applied, and the apply thread only says before
//! and after how far it was. A digest counts when it did not move meanwhile.

use flotilla_storage::{EngineError, StateReader};
use flotilla_types::{KeyRange, LogIndex, ReplicaId};
use tokio::sync::oneshot;

use super::{
    apply::{Apply, Job},
    desk::Desk,
};
use crate::Held;

/// Tries for a replica that moves while it is read.
const TRIES_MAX: usize = 3;
/// Records and bytes of one step.
const STEP_RECORDS: usize = 1_024;
const STEP_BYTES: usize = 4 << 20;

/// What a replica holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Digest {
    /// The last entry that it has applied.
    pub applied: LogIndex,
    /// BLAKE3 over the state machine's own state and all records in key order, everything as length and bytes.
    pub hash: [u8; 32],
    /// How many records that are.
    pub records: u64,
}

/// Why there is no digest. Nothing has changed; ask again.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DigestError {
    /// It is not here, is being loaded, or the node stops.
    #[error("the replica does not serve here")]
    NotServing,
    /// It applied entries while it was read, each time.
    #[error("the replica takes writes; ask again when it is quieter")]
    Moving,
    /// Its records cannot be read.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

pub(super) async fn of(apply: &Desk<Apply>, replica: ReplicaId, range: KeyRange) -> Result<Digest, DigestError> {
    let mut held = look(apply, replica).await?;
    for _ in 0..TRIES_MAX {
        let range = range.clone();
        let Held { applied, system, records } = held;
        let read = tokio::task::spawn_blocking(move || hash(&system, &*records, &range));
        let (hash, records) = read.await.map_err(|_| DigestError::NotServing)??;
        held = look(apply, replica).await?;
        if held.applied == applied {
            return Ok(Digest { applied, hash, records });
        }
    }
    Err(DigestError::Moving)
}

async fn look(apply: &Desk<Apply>, replica: ReplicaId) -> Result<Held, DigestError> {
    let (reply, answer) = oneshot::channel();
    apply.leave(Job::Look(replica, reply));
    answer.await.ok().flatten().ok_or(DigestError::NotServing)
}

fn hash(system: &[u8], reader: &dyn StateReader, range: &KeyRange) -> Result<([u8; 32], u64), EngineError> {
    let (mut hasher, mut records) = (blake3::Hasher::new(), 0);
    let mut add = |part: &[u8]| {
        hasher.update(&(part.len() as u64).to_be_bytes());
        hasher.update(part);
    };
    add(system);
    let mut rest = range.clone();
    loop {
        let page = reader.scan(&rest, STEP_RECORDS, STEP_BYTES)?;
        let Some((last, _)) = page.last() else { return Ok((hasher.finalize().into(), records)) };
        // The first key behind the last one.
        let mut next = last.to_vec();
        next.push(0);
        rest.start = next.into();
        records += page.len() as u64;
        page.iter().flat_map(|(key, value)| [key, value]).for_each(|part| add(part));
    }
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
    fn a_digest_covers_every_record_of_the_range_over_several_steps() {
        let count = STEP_RECORDS * 2 + 7;
        let (whole, all) = (hash(b"own", &records(count), &KeyRange::all()).unwrap(), count as u64);
        assert_eq!(whole.1, all);
        assert_eq!(hash(b"own", &records(count), &KeyRange::all()).unwrap(), whole);
        for i in [0, STEP_RECORDS, count - 1] {
            let mut other = records(count);
            other.0.insert(format!("k{i:06}").into(), "changed".into());
            assert_ne!(hash(b"own", &other, &KeyRange::all()).unwrap().0, whole.0, "record {i}");
        }
        assert_ne!(hash(b"other", &records(count), &KeyRange::all()).unwrap().0, whole.0, "the machine's own state");
        let part = KeyRange { start: Bytes::new(), end: "k000010".into() };
        assert_eq!(hash(b"own", &records(count), &part).unwrap().1, 10);
    }

    #[test]
    fn the_border_between_key_and_value_counts() {
        let one = Records(BTreeMap::from([("ab".into(), "c".into())]));
        let other = Records(BTreeMap::from([("a".into(), "bc".into())]));
        assert_ne!(hash(b"own", &one, &KeyRange::all()).unwrap(), hash(b"own", &other, &KeyRange::all()).unwrap());
    }
}
