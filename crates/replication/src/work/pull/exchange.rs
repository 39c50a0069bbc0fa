//! Requests for objects, and the answers to them.

use std::collections::HashSet;

use bytes::Bytes;
use flotilla_failpoints::{Place, number};
use flotilla_storage::{EngineError, ListRefs, Remedy, StateEngine, remedy};
use flotilla_types::{NodeId, ObjectId, ReplicaId};
use flotilla_wire::{decode, encode, peer};

use super::{
    ASKED_MAX, PullBounds, PullError, packed,
    wanted::{self, NotAsSaid, Reuse, Wanted},
};

/// A request of a pull.
#[derive(Debug, Clone)]
pub struct PullRequest {
    /// Which of the pull's requests it is.
    pub(super) number: u64,
    pub(super) source: NodeId,
    /// The source's position among those of the pull.
    pub(super) at: usize,
    /// Asks which of the objects the source holds, instead of fetching them.
    pub(super) asks: bool,
    pub(super) objects: Vec<ObjectId>,
    /// What they are; of a question nothing.
    pub(super) wanted: Vec<Wanted>,
    pub(super) bytes_expected: u64,
    pub(super) timeout_ms: u64,
    pub(super) lists: ListRefs,
    pub(super) replica: ReplicaId,
}

/// What an answer brought.
#[derive(Debug)]
pub struct Stored {
    /// Objects stored, the first ones of the request.
    pub objects: usize,
    /// What these need and is not here.
    pub(crate) needed: Vec<Wanted>,
    /// How many of the objects that these need are here already.
    pub reused: usize,
    /// Those of them that entries and records refer to.
    pub reuse: Reuse,
    /// Their bytes.
    pub bytes: usize,
    /// The objects that the source holds, if it was asked.
    pub held: Vec<ObjectId>,
    /// Why there were no more.
    pub end: End,
}

/// Why an answer has no more objects.
#[derive(Debug)]
pub enum End {
    /// It has what was requested, or as much as fits.
    Served,
    /// The source does not hold the next object.
    Gone,
    /// The bytes of the next object do not match its id, or it is not what it must be. Nothing of it was stored.
    Bad,
    /// The source serves no more than it may, and is to be asked again after so many milliseconds.
    Busy {
        /// As the source says.
        retry_ms: u64,
    },
    /// The answer is of no use, or the next object could not be stored.
    Failed(PullError),
}

impl PullRequest {
    /// Whether it is for what entries and commands refer to, or for a reader: not for a snapshot.
    #[must_use]
    pub(crate) fn is_for_values(&self) -> bool {
        self.replica == ReplicaId::NONE
    }

    /// The node to send it to.
    #[must_use]
    pub fn source(&self) -> NodeId {
        self.source
    }

    /// The objects to be fetched; none if it only asks what the source holds.
    #[must_use]
    pub fn fetches(&self) -> &[ObjectId] {
        if self.asks { &[] } else { &self.objects }
    }

    /// Bytes that are expected in the answer, as far as that is known.
    #[must_use]
    pub fn bytes_expected(&self) -> u64 {
        self.bytes_expected
    }

    /// Milliseconds after which the call has failed.
    #[must_use]
    pub fn timeout_ms(&self) -> u64 {
        self.timeout_ms
    }

    /// The request as bytes.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let ids = self.objects.iter().map(|id| Bytes::copy_from_slice(id.as_bytes())).collect();
        let (need, ask) = if self.asks { (Vec::new(), ids) } else { (ids, Vec::new()) };
        encode(&peer::ObjectsRequest { need, replica: self.replica.0, ask, reads_packed: true })
    }

    /// Stores the objects of an answer after verifying their hashes, up to the first one that fails. Writes the
    /// disk.
    #[must_use]
    pub fn store(&self, engine: &dyn StateEngine, answer: Bytes) -> Stored {
        let mut stored = Stored {
            objects: 0,
            needed: Vec::new(),
            reused: 0,
            reuse: Reuse::default(),
            bytes: 0,
            held: Vec::new(),
            end: End::Served,
        };
        let mut answer: peer::ObjectsResponse = match decode(answer) {
            Ok(answer) => answer,
            Err(error) => {
                stored.end = End::Failed(error.into());
                return stored;
            }
        };
        if self.asks {
            stored.held = held(&self.objects, &answer.held);
            return stored;
        }
        if !answer.packed.is_empty() {
            let Some(objects) = packed::unpack(&answer.packed, &answer.packed_lengths) else {
                stored.end = End::Failed(PullError::Packed);
                return stored;
            };
            answer.objects = objects;
        }
        let mut needed = Vec::new();
        stored.end = self.end(&answer);
        for (wanted, object) in self.wanted.iter().zip(answer.objects) {
            let bytes = object.len();
            // Only the bytes that match the id say what it needs.
            let needs = wanted.needs(engine, self.lists, &object);
            let children = needs.as_ref().map(|needs| wanted::ids_of(needs)).unwrap_or_default();
            let is_bad = needs == Err(NotAsSaid);
            let imported =
                if is_bad { Err(EngineError::Mismatch(wanted.id)) } else { wanted.import(engine, object, &children) };
            if let Err(error) = imported {
                let is_bad = matches!(error, EngineError::Mismatch(_));
                stored.end = if is_bad { End::Bad } else { End::Failed(error.into()) };
                break;
            }
            stored.bytes += bytes;
            stored.objects += 1;
            needed.extend(needs.unwrap_or_default());
        }
        match wanted::find(engine, self.lists, needed) {
            Ok(found) => {
                (stored.reused, stored.reuse) = (found.here, found.reuse);
                stored.needed = found.missing;
            }
            Err(error) => stored.end = End::Failed(error.into()),
        }
        stored
    }

    /// Why an answer ends where it does, if all its objects are stored.
    fn end(&self, answer: &peer::ObjectsResponse) -> End {
        let next = answer.objects.len() + 1;
        if answer.missing as usize == next && next <= self.objects.len() {
            End::Gone
        } else if !answer.objects.is_empty() {
            End::Served
        } else if answer.retry_ms > 0 {
            End::Busy { retry_ms: answer.retry_ms.into() }
        } else {
            End::Failed(PullError::Empty)
        }
    }
}

/// The objects of which the bit is set.
fn held(objects: &[ObjectId], bits: &[u8]) -> Vec<ObjectId> {
    let is_set = |at: usize| bits.get(at / 8).is_some_and(|byte| byte & (1 << (at % 8)) != 0);
    objects.iter().enumerate().filter(|(at, _)| is_set(*at)).map(|(_, id)| *id).collect()
}

/// A request that asks for no objects: it tells the leader that the replica still waits for its turn.
#[must_use]
pub fn waiting_request(replica: ReplicaId) -> Bytes {
    encode(&peer::ObjectsRequest { need: Vec::new(), replica: replica.0, ask: Vec::new(), reads_packed: true })
}

/// The answer to a peer's request.
#[derive(Debug)]
pub struct Served {
    /// The answer. Without objects and without one that is named as missing, the peer asks again.
    pub response: Bytes,
    /// The peer's replica, if it says so.
    pub replica: Option<ReplicaId>,
    /// How many objects are in it.
    pub objects: usize,
    /// Their bytes.
    pub bytes: usize,
    /// Whether none of the objects is missing or damaged here.
    pub complete: bool,
    /// Why not all objects that would fit are in it, other than that one is missing or damaged.
    pub failure: Option<EngineError>,
}

/// Answers a peer's request with as many objects as fit, or with which objects are here. Reads the disk.
#[must_use]
pub fn serve(engine: &dyn StateEngine, request: Bytes, bounds: PullBounds) -> Served {
    let mut failure = None;
    let request = decode::<peer::ObjectsRequest>(request).unwrap_or_default();
    let held = held_here(engine, &request.ask);
    let mut response = peer::ObjectsResponse { held, ..peer::ObjectsResponse::default() };
    let mut bytes = 0;
    for (at, id) in request.need.iter().take(bounds.objects_max).enumerate() {
        match ObjectId::from_slice(id).map(|id| engine.object(id)) {
            Some(Ok(object)) => {
                let object = flawed(object);
                if bytes + object.len() > bounds.response_bytes_max && !response.objects.is_empty() {
                    break;
                }
                bytes += object.len();
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
    let replica = (request.replica != 0).then_some(ReplicaId(request.replica));
    let (complete, objects) = (response.missing == 0, response.objects.len());
    if request.reads_packed
        && let Some((frame, lengths)) = packed::pack(&response.objects)
    {
        (response.packed, response.packed_lengths) = (frame, lengths);
        response.objects.clear();
    }
    Served { complete, objects, bytes, response: encode(&response), replica, failure }
}

/// The object, with another byte where a test says so: whatever corrupts it after it was verified here.
fn flawed(object: Bytes) -> Bytes {
    let at = number(Place::SnapshotFlaw).and_then(|at| usize::try_from(at).ok());
    let Some(at) = at.filter(|at| *at < object.len()) else { return object };
    let mut flawed = object.to_vec();
    flawed[at] ^= 1;
    flawed.into()
}

/// The answer to a request for objects while this node may not send any; `None` for other requests.
#[must_use]
pub fn serve_later(request: Bytes, retry_ms: u64) -> Option<Served> {
    let request = decode::<peer::ObjectsRequest>(request).unwrap_or_default();
    let retry_ms = u32::try_from(retry_ms).unwrap_or(u32::MAX).max(1);
    let response = encode(&peer::ObjectsResponse { retry_ms, ..peer::ObjectsResponse::default() });
    let replica = (request.replica != 0).then_some(ReplicaId(request.replica));
    let served = Served { response, replica, objects: 0, bytes: 0, complete: true, failure: None };
    Some(served).filter(|_| !request.need.is_empty())
}

/// A bit for each of the first objects: whether it is here.
fn held_here(engine: &dyn StateEngine, asked: &[Bytes]) -> Bytes {
    let ids: Vec<_> = asked.iter().take(ASKED_MAX).map(|id| ObjectId::from_slice(id)).collect();
    let known: Vec<_> = ids.iter().copied().flatten().collect();
    let missing: HashSet<_> = engine.missing(&known).into_iter().collect();
    let mut bits = vec![0_u8; ids.len().div_ceil(8)];
    for (at, _) in ids.iter().enumerate().filter(|(_, id)| id.is_some_and(|id| !missing.contains(&id))) {
        bits[at / 8] |= 1 << (at % 8);
    }
    bits.into()
}
