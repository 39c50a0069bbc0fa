//! What a replica holds, as one number: equal replicas have equal digests at the same applied entry.
//!
//! Nothing is held up: records are read on a blocking thread while entries go on to be applied, and the apply thread only says before
//! and after how far it was. A digest counts when it did not move meanwhile.

use std::sync::{Arc, mpsc};

use flotilla_storage::{EngineError, StateReader};
use flotilla_types::{KeyRange, LogIndex, ReplicaId};
use tokio::sync::oneshot;

use super::apply::Job;

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
    /// BLAKE3 over all records in key order, each as length and bytes of key and value.
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

pub(super) async fn of(
    apply: &mpsc::Sender<Job>,
    replica: ReplicaId,
    range: KeyRange,
) -> Result<Digest, DigestError> {
    let (mut applied, mut reader) = look(apply, replica).await?;
    for _ in 0..TRIES_MAX {
        let range = range.clone();
        let read = tokio::task::spawn_blocking(move || hash(&*reader, &range));
        let (hash, records) = read.await.map_err(|_| DigestError::NotServing)??;
        let (now, again) = look(apply, replica).await?;
        if now == applied {
            return Ok(Digest { applied, hash, records });
        }
        (applied, reader) = (now, again);
    }
    Err(DigestError::Moving)
}

async fn look(
    apply: &mpsc::Sender<Job>,
    replica: ReplicaId,
) -> Result<(LogIndex, Arc<dyn StateReader>), DigestError> {
    let (reply, answer) = oneshot::channel();
    let _ = apply.send(Job::Look(replica, reply));
    answer.await.ok().flatten().ok_or(DigestError::NotServing)
}

fn hash(reader: &dyn StateReader, range: &KeyRange) -> Result<([u8; 32], u64), EngineError> {
    let (mut hasher, mut records) = (blake3::Hasher::new(), 0);
    let mut rest = range.clone();
    loop {
        let page = reader.scan(&rest, STEP_RECORDS, STEP_BYTES)?;
        let Some((last, _)) = page.last() else { return Ok((hasher.finalize().into(), records)) };
        // The first key behind the last one.
        let mut next = last.to_vec();
        next.push(0);
        rest.start = next.into();
        records += page.len() as u64;
        for part in page.iter().flat_map(|(key, value)| [key, value]) {
            hasher.update(&(part.len() as u64).to_be_bytes());
            hasher.update(part);
        }
    }
}
