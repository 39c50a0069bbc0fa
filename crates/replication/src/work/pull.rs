//! The object protocol: a snapshot names objects; only those that are missing travel, each verified by its hash.

use bytes::Bytes;
use flotilla_storage::{EngineError, StateEngine};
use flotilla_types::{Checkpoint, ObjectId};
use flotilla_wire::{WireError, decode, encode, peer};

/// Objects asked for at a time.
const NEED_MAX: usize = 64;
/// Bytes of objects in one answer, unless the first alone is larger.
const ANSWER_BYTES_MAX: usize = 4 << 20;
/// Calls that fail before a pull is given up; the leader offers another snapshot.
const FAILURES_MAX: u32 = 5;
/// Pause after the first failed call, milliseconds; it doubles with each further one.
const FAILURE_PAUSE_MS: u64 = 50;

/// Why an answer did not help. Nothing that does not match its id was stored.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The answer is not one.
    #[error("the peer's answer does not parse")]
    Malformed(#[from] WireError),
    /// The checkpoint that was offered is outdated. Asking again is of no use.
    #[error("the peer does not hold object {0} any more")]
    Gone(ObjectId),
    /// The peer answered, and nothing that helps.
    #[error("the peer answered nothing that was asked for")]
    Empty,
    /// An object is not what was asked for, or could not be stored.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// The objects of one snapshot that are still to come.
#[derive(Debug)]
pub struct Pull {
    objects: Vec<ObjectId>,
    /// The next one last.
    missing: Vec<ObjectId>,
    failures: u32,
}

impl Pull {
    /// Finds out what is missing, and pins what is here. Reads the disk.
    #[must_use]
    pub fn start(engine: &dyn StateEngine, checkpoint: &Checkpoint) -> Self {
        let objects: Vec<_> = checkpoint.objects().collect();
        let mut missing = engine.missing(&objects);
        missing.reverse();
        Self { objects, missing, failures: 0 }
    }

    /// How many objects the checkpoint names, and how many of them are to come.
    #[must_use]
    pub fn progress(&self) -> (usize, usize) {
        (self.objects.len(), self.missing.len())
    }

    fn asked(&self) -> impl Iterator<Item = ObjectId> + use<'_> {
        self.missing.iter().rev().take(NEED_MAX).copied()
    }

    /// What to ask the peer next; `None` when everything is here and [`Pull::finish`] is due.
    #[must_use]
    pub fn request(&self) -> Option<Bytes> {
        let need: Vec<_> = self.asked().map(|id| Bytes::copy_from_slice(id.as_bytes())).collect();
        (!need.is_empty()).then(|| encode(&peer::ObjectsRequest { need }))
    }

    /// Stores what came, each object after verifying its hash. Returns objects and bytes taken. Writes the disk.
    pub fn answered(&mut self, engine: &dyn StateEngine, answer: Bytes) -> Result<(usize, usize), PullError> {
        let answer: peer::ObjectsResponse = decode(answer)?;
        if answer.objects.is_empty() {
            let gone = (answer.missing as usize).checked_sub(1).and_then(|at| self.asked().nth(at));
            return Err(gone.map_or(PullError::Empty, PullError::Gone));
        }
        let pairs: Vec<_> = self.asked().zip(answer.objects).collect();
        let (mut taken, mut bytes) = (0, 0);
        for (id, object) in pairs {
            let size = object.len();
            engine.import(id, object)?;
            self.missing.pop();
            taken += 1;
            bytes += size;
        }
        Ok((taken, bytes))
    }

    /// A call failed, or its answer did. Returns how long to wait before the next, in milliseconds; `None` gives the pull up.
    pub fn failed(&mut self) -> Option<u64> {
        self.failures += 1;
        (self.failures < FAILURES_MAX).then(|| FAILURE_PAUSE_MS << self.failures)
    }

    /// Everything is here: makes it durable.
    pub fn finish(&self, engine: &dyn StateEngine) -> Result<(), EngineError> {
        engine.sync()
    }

    /// Lets go of what was pinned; nothing will use it.
    pub fn abandon(&self, engine: &dyn StateEngine) {
        engine.release(&self.objects);
    }
}

/// Answers a peer's need with as many objects as fit. Reads the disk.
#[must_use]
pub fn serve(engine: &dyn StateEngine, request: Bytes) -> Bytes {
    let mut response = peer::ObjectsResponse::default();
    if let Ok(request) = decode::<peer::ObjectsRequest>(request) {
        let mut bytes = 0;
        for (at, id) in request.need.iter().take(NEED_MAX).enumerate() {
            match ObjectId::from_slice(id).map(|id| engine.object(id)) {
                Some(Ok(object)) => {
                    bytes += object.len();
                    if bytes > ANSWER_BYTES_MAX && !response.objects.is_empty() {
                        break;
                    }
                    response.objects.push(object);
                }
                _ => {
                    response.missing = at as u32 + 1;
                    break;
                }
            }
        }
    }
    encode(&response)
}
