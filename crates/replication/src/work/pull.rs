//! The object protocol: a snapshot names objects, and only missing ones are transferred, each verified by its
//! hash.

use bytes::Bytes;
use flotilla_storage::{EngineError, Remedy, StateEngine, remedy};
use flotilla_types::{Checkpoint, ObjectId};
use flotilla_wire::{WireError, decode, encode, peer};

/// Objects per request.
const REQUEST_OBJECTS_MAX: usize = 64;
/// Bytes of objects in one response, unless the first alone is larger.
const RESPONSE_BYTES_MAX: usize = 4 << 20;
/// Failed calls after which a pull is abandoned; the leader will offer another snapshot.
const FAILURES_MAX: u32 = 5;
/// Base of the exponential backoff after a failed call, milliseconds: twice this after the first failure.
const BACKOFF_MS: u64 = 50;

/// Why a response made no progress. No object that does not match its id was stored.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The response does not parse.
    #[error("the peer's response does not parse")]
    Malformed(#[from] WireError),
    /// The offered checkpoint is outdated. Do not retry.
    #[error("the peer does not hold object {0} any more")]
    Gone(ObjectId),
    /// The response has no object and names none as gone.
    #[error("the peer's response contains none of the requested objects")]
    Empty,
    /// An object does not match its id, or could not be stored.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

impl PullError {
    /// Whether the disk failed here, so that the node must end.
    #[must_use]
    pub fn ends_node(&self) -> bool {
        matches!(self, Self::Engine(error) if remedy(error) == Remedy::EndNode)
    }
}

/// A pull of the objects of one snapshot.
#[derive(Debug)]
pub struct Pull {
    checkpoint: Checkpoint,
    /// In reverse order: the next one is the last.
    missing: Vec<ObjectId>,
    failures: u32,
}

impl Pull {
    /// Finds out which objects are missing, and pins the others. Reads the disk.
    #[must_use]
    pub fn start(engine: &dyn StateEngine, checkpoint: Checkpoint) -> Self {
        let mut missing = engine.missing(&checkpoint.objects().collect::<Vec<_>>());
        missing.reverse();
        Self { checkpoint, missing, failures: 0 }
    }

    /// The number of objects that the checkpoint names, and how many of them are still missing.
    #[must_use]
    pub fn progress(&self) -> (usize, usize) {
        (self.checkpoint.objects().count(), self.missing.len())
    }

    /// The snapshot's checkpoint.
    #[must_use]
    pub fn into_checkpoint(self) -> Checkpoint {
        self.checkpoint
    }

    fn requested(&self) -> impl Iterator<Item = ObjectId> + use<'_> {
        self.missing.iter().rev().take(REQUEST_OBJECTS_MAX).copied()
    }

    /// The next request; `None` when no object is missing and [`Pull::finish`] is due.
    #[must_use]
    pub fn request(&self) -> Option<Bytes> {
        let need: Vec<_> = self.requested().map(|id| Bytes::copy_from_slice(id.as_bytes())).collect();
        (!need.is_empty()).then(|| encode(&peer::ObjectsRequest { need }))
    }

    /// Stores the objects of a response after verifying their hashes. Returns their number and bytes. Writes
    /// the disk.
    pub fn on_response(&mut self, engine: &dyn StateEngine, answer: Bytes) -> Result<(usize, usize), PullError> {
        let answer: peer::ObjectsResponse = decode(answer)?;
        if answer.objects.is_empty() {
            let gone = (answer.missing as usize).checked_sub(1).and_then(|at| self.requested().nth(at));
            return Err(gone.map_or(PullError::Empty, PullError::Gone));
        }
        let pairs: Vec<_> = self.requested().zip(answer.objects).collect();
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

    /// Counts a failed call or response. Returns the backoff before the next call in milliseconds; `None`
    /// when the pull must be abandoned.
    pub fn on_failure(&mut self) -> Option<u64> {
        self.failures += 1;
        (self.failures < FAILURES_MAX).then(|| BACKOFF_MS << self.failures)
    }

    /// Makes the pulled objects durable.
    pub fn finish(&self, engine: &dyn StateEngine) -> Result<(), PullError> {
        Ok(engine.sync()?)
    }

    /// Unpins the objects: the snapshot will not be used.
    pub fn abandon(&self, engine: &dyn StateEngine) {
        let here: Vec<_> = self.checkpoint.objects().filter(|id| !self.missing.contains(id)).collect();
        engine.release(&here);
    }
}

/// The answer to a peer's request.
#[derive(Debug)]
pub struct Served {
    /// The answer. Without objects and without one that is named as missing, the peer asks again.
    pub response: Bytes,
    /// Why not all objects that would fit are in it, other than that one is missing or damaged.
    pub failure: Option<EngineError>,
}

/// Answers a peer's request with as many objects as fit. Reads the disk.
#[must_use]
pub fn serve(engine: &dyn StateEngine, request: Bytes) -> Served {
    let mut failure = None;
    let mut response = peer::ObjectsResponse::default();
    if let Ok(request) = decode::<peer::ObjectsRequest>(request) {
        let mut bytes = 0;
        for (at, id) in request.need.iter().take(REQUEST_OBJECTS_MAX).enumerate() {
            match ObjectId::from_slice(id).map(|id| engine.object(id)) {
                Some(Ok(object)) => {
                    bytes += object.len();
                    if bytes > RESPONSE_BYTES_MAX && !response.objects.is_empty() {
                        break;
                    }
                    response.objects.push(object);
                }
                Some(Err(error)) if remedy(&error) != Remedy::AbandonReplica => {
                    failure = Some(error);
                    break;
                }
                _ => {
                    response.missing = at as u32 + 1;
                    break;
                }
            }
        }
    }
    Served { response: encode(&response), failure }
}
