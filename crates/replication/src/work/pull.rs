//! The object protocol: a snapshot names objects, and only missing ones are transferred, each verified by its
//! hash.
//!
//! What an object needs is known once it is here, so that a pull fetches manifests first, then their pieces. It
//! keeps a few requests in flight. What it has stored is held for the receiving replica, so a pull
//! that ends early, or is replaced by one for a newer snapshot, has fetched nothing in vain.

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    sync::Arc,
};

use bytes::Bytes;
use flotilla_storage::{EngineError, Remedy, StateEngine, children_of, remedy};
use flotilla_types::{Checkpoint, Holder, ObjectId, ReplicaId};
use flotilla_wire::{WireError, decode, encode, peer};

/// Bounds of a pull, and of the answers to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PullBounds {
    /// Requests in flight.
    pub requests_max: usize,
    /// Objects per request.
    pub objects_max: usize,
    /// Bytes of objects in one response, unless the first alone is larger.
    pub response_bytes_max: usize,
    /// Bytes that may be stored before they are made durable: what a power failure costs.
    pub unsynced_bytes_max: usize,
}

impl Default for PullBounds {
    fn default() -> Self {
        Self { requests_max: 3, objects_max: 64, response_bytes_max: 4 << 20, unsynced_bytes_max: 64 << 20 }
    }
}

/// Calls that failed one after the other, without a successful one, after which a pull ends; the leader will
/// offer the snapshot again.
const FAILURES_MAX: u32 = 5;
/// Base of the exponential backoff after a failed call, milliseconds: twice this after the first failure.
const BACKOFF_MS: u64 = 50;
/// Objects that the peer does not hold any more after which a pull ends. Each costs a round trip.
const GONE_MAX: usize = 64;

/// Why a response made no progress. No object that does not match its id was stored.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The response does not parse.
    #[error("the peer's response does not parse")]
    Malformed(#[from] WireError),
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

/// A request of a pull.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PullRequest {
    /// Which of the pull's requests it is.
    number: u64,
    objects: Vec<ObjectId>,
    /// The objects whose children are fetched too: those that the checkpoint names. A peer cannot make the
    /// chain longer.
    roots: Arc<HashSet<ObjectId>>,
    replica: ReplicaId,
}

/// What an answer brought.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stored {
    /// Objects stored, the first ones of the request.
    pub objects: usize,
    /// What these need and is not here.
    pub needed: Vec<ObjectId>,
    /// How many of the objects that these need are here already.
    pub reused: usize,
    /// Their bytes.
    pub bytes: usize,
    /// Whether the peer does not hold the object after them.
    pub next_is_gone: bool,
}

/// How a pull stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PullState {
    /// Objects are missing.
    Working,
    /// No object is missing, and [`Pull::sync`] is due.
    Fetched,
    /// It ends without the rest.
    Failed,
}

/// A pull of the objects of one snapshot.
#[derive(Debug)]
pub struct Pull {
    replica: ReplicaId,
    checkpoint: Checkpoint,
    bounds: PullBounds,
    /// Every object that was missing, as far as that is known.
    known: HashSet<ObjectId>,
    /// Objects that the checkpoint names, and pieces of manifests that were fetched, that were here.
    reused: usize,
    roots: Arc<HashSet<ObjectId>>,
    /// Objects to request.
    waiting: VecDeque<ObjectId>,
    /// Requests without an answer.
    in_flight: BTreeMap<u64, usize>,
    requests: u64,
    /// Objects that the peer does not hold.
    gone: usize,
    failures: u32,
    unsynced_bytes: usize,
    /// Sends no further requests.
    stopping: bool,
}

impl Pull {
    /// Holds the objects for the receiving replica, and finds out which are missing.
    #[must_use]
    pub fn start(engine: &dyn StateEngine, replica: ReplicaId, checkpoint: Checkpoint, bounds: PullBounds) -> Self {
        let objects: Vec<_> = checkpoint.objects().collect();
        engine.hold(Holder::Receiver(replica), &objects);
        let waiting = VecDeque::from(engine.missing(&objects));
        let lacking: HashSet<_> = waiting.iter().copied().collect();
        Self {
            replica,
            bounds,
            reused: objects.iter().filter(|object| !lacking.contains(object)).count(),
            known: lacking,
            roots: Arc::new(objects.into_iter().collect()),
            waiting,
            checkpoint,
            in_flight: BTreeMap::new(),
            requests: 0,
            gone: 0,
            failures: 0,
            unsynced_bytes: 0,
            stopping: false,
        }
    }

    /// The number of objects that the checkpoint needs, and how many of them are missing, as far as both are
    /// known.
    #[must_use]
    pub fn progress(&self) -> (usize, usize) {
        (self.reused + self.known.len(), self.waiting.len() + self.in_flight.values().sum::<usize>() + self.gone)
    }

    /// The snapshot's checkpoint.
    #[must_use]
    pub fn into_checkpoint(self) -> Checkpoint {
        self.checkpoint
    }

    /// How it stands.
    #[must_use]
    pub fn state(&self) -> PullState {
        if !self.in_flight.is_empty() {
            PullState::Working
        } else if self.waiting.is_empty() && self.gone == 0 {
            PullState::Fetched
        } else if self.waiting.is_empty() || self.ends() {
            PullState::Failed
        } else {
            PullState::Working
        }
    }

    fn ends(&self) -> bool {
        self.failures >= FAILURES_MAX || self.gone > GONE_MAX || self.stopping
    }

    /// The next request, if one may be sent now.
    pub fn next_request(&mut self) -> Option<PullRequest> {
        let count = self.waiting.len().min(self.bounds.objects_max);
        if self.ends() || count == 0 || self.in_flight.len() >= self.bounds.requests_max {
            return None;
        }
        self.requests += 1;
        self.in_flight.insert(self.requests, count);
        let objects = self.waiting.drain(..count).collect();
        Some(PullRequest { number: self.requests, objects, roots: self.roots.clone(), replica: self.replica })
    }

    /// Sends no further requests; it ends when those in flight are answered. For a pull that another one from
    /// the same peer replaces: the peer sends the answers anyway.
    pub fn stop(&mut self) {
        self.stopping = true;
    }

    /// An answer was stored. What it did not bring is requested again, except what is gone: the rest is of use
    /// for the next snapshot, too. Returns whether it is time for [`Pull::sync`].
    #[must_use]
    pub fn on_stored(&mut self, request: PullRequest, stored: Stored) -> bool {
        self.in_flight.remove(&request.number);
        self.failures = 0;
        self.unsynced_bytes += stored.bytes;
        self.gone += usize::from(stored.next_is_gone);
        let rest = request.objects.into_iter().skip(stored.objects + usize::from(stored.next_is_gone));
        rest.rev().for_each(|object| self.waiting.push_front(object));
        self.reused += stored.reused;
        let needed = stored.needed.into_iter().filter(|object| self.known.insert(*object));
        self.waiting.extend(needed);
        let syncs = self.unsynced_bytes >= self.bounds.unsynced_bytes_max;
        if syncs {
            self.unsynced_bytes = 0;
        }
        syncs
    }

    /// A call failed, or its answer could not be stored. Returns the pause before the next request,
    /// milliseconds.
    pub fn on_failure(&mut self, request: PullRequest) -> u64 {
        self.in_flight.remove(&request.number);
        self.failures += 1;
        request.objects.into_iter().rev().for_each(|object| self.waiting.push_front(object));
        BACKOFF_MS << self.failures.min(FAILURES_MAX)
    }

    /// Makes the pulled objects durable. Before the snapshot may be stepped, too.
    pub fn sync(&self, engine: &dyn StateEngine) -> Result<(), PullError> {
        Ok(engine.sync()?)
    }
}

impl PullRequest {
    /// The request as bytes.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let need = self.objects.iter().map(|id| Bytes::copy_from_slice(id.as_bytes())).collect();
        encode(&peer::ObjectsRequest { need, replica: self.replica.0 })
    }

    /// Stores the objects of an answer after verifying their hashes. Writes the disk.
    pub fn store(&self, engine: &dyn StateEngine, answer: Bytes) -> Result<Stored, PullError> {
        let answer: peer::ObjectsResponse = decode(answer)?;
        let (mut stored, mut roots) = (Stored::default(), Vec::new());
        for (id, object) in self.objects.iter().zip(answer.objects) {
            stored.bytes += object.len();
            if self.roots.contains(id) {
                stored.reused += children_of(&object).len();
                roots.push(*id);
            }
            engine.import(*id, object)?;
            stored.objects += 1;
        }
        stored.needed = engine.missing(&roots);
        stored.reused = stored.reused.saturating_sub(stored.needed.len());
        let next = stored.objects as u64 + 1;
        stored.next_is_gone = u64::from(answer.missing) == next && stored.objects < self.objects.len();
        if stored.objects == 0 && !stored.next_is_gone { Err(PullError::Empty) } else { Ok(stored) }
    }
}

/// A request that asks for no objects: it tells the leader that the replica still waits for its turn.
#[must_use]
pub fn waiting_request(replica: ReplicaId) -> Bytes {
    encode(&peer::ObjectsRequest { need: Vec::new(), replica: replica.0 })
}

/// The answer to a peer's request.
#[derive(Debug)]
pub struct Served {
    /// The answer. Without objects and without one that is named as missing, the peer asks again.
    pub response: Bytes,
    /// The peer's replica, if it says so.
    pub replica: Option<ReplicaId>,
    /// Whether none of the objects is missing or damaged here.
    pub complete: bool,
    /// Why not all objects that would fit are in it, other than that one is missing or damaged.
    pub failure: Option<EngineError>,
}

/// Answers a peer's request with as many objects as fit. Reads the disk.
#[must_use]
pub fn serve(engine: &dyn StateEngine, request: Bytes, bounds: PullBounds) -> Served {
    let mut failure = None;
    let mut response = peer::ObjectsResponse::default();
    let request = decode::<peer::ObjectsRequest>(request).unwrap_or_default();
    let mut bytes = 0;
    for (at, id) in request.need.iter().take(bounds.objects_max).enumerate() {
        match ObjectId::from_slice(id).map(|id| engine.object(id)) {
            Some(Ok(object)) => {
                bytes += object.len();
                if bytes > bounds.response_bytes_max && !response.objects.is_empty() {
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
    let replica = (request.replica != 0).then_some(ReplicaId(request.replica));
    Served { complete: response.missing == 0, response: encode(&response), replica, failure }
}

#[cfg(test)]
mod tests {
    use flotilla_storage::{Manifest, MemoryEngine, PieceRef};
    use flotilla_types::{
        ConfState, Epoch, KeyRange, LogIndex, Position, ShardDescriptor, ShardId, TableKind, TableRef, Tables, Term,
    };

    use super::*;

    const REPLICA: ReplicaId = ReplicaId(7);
    /// Three of these objects fit in a response.
    const BOUNDS: PullBounds =
        PullBounds { requests_max: 3, objects_max: 4, response_bytes_max: 30, unsynced_bytes_max: 50 };

    /// An engine with objects of ten bytes, and a checkpoint that names them.
    fn source(count: u64) -> (MemoryEngine, Checkpoint) {
        let engine = MemoryEngine::default();
        let object = |n: u64| Bytes::from(format!("object {n:>3}"));
        let base: Vec<_> = (0..count).map(|n| ObjectId::of(&object(n))).collect();
        for (n, id) in (0..).zip(&base) {
            engine.import(*id, object(n)).unwrap();
        }
        let descriptor = ShardDescriptor {
            shard: ShardId(1),
            range: KeyRange::all(),
            epoch: Epoch::default(),
            replicas: Vec::new(),
        };
        let position = Position { index: LogIndex(9), term: Term(1), conf: ConfState::default(), descriptor };
        (engine, Checkpoint { tables: Tables::Pieces { base, runs: Vec::new() }, ..Checkpoint::empty(position) })
    }

    fn answer(pull: &mut Pull, target: &MemoryEngine, source: &MemoryEngine, request: PullRequest) -> usize {
        let served = serve(source, request.encode(), BOUNDS);
        assert_eq!(served.replica, Some(REPLICA));
        let stored = request.store(target, served.response).unwrap();
        let objects = stored.objects;
        if pull.on_stored(request, stored) {
            pull.sync(target).unwrap();
        }
        objects
    }

    #[test]
    fn a_few_requests_are_in_flight_and_every_object_is_fetched_once() {
        let (source, checkpoint) = source(50);
        let target = MemoryEngine::default();
        let mut pull = Pull::start(&target, REPLICA, checkpoint, BOUNDS);
        let (mut in_flight, mut fetched) = (VecDeque::new(), 0);
        while pull.state() == PullState::Working {
            while let Some(request) = pull.next_request() {
                in_flight.push_back(request);
            }
            assert!(in_flight.len() <= BOUNDS.requests_max);
            let request = in_flight.pop_front().expect("a pull that works has a request in flight");
            fetched += answer(&mut pull, &target, &source, request);
        }
        assert_eq!((pull.state(), fetched, pull.progress()), (PullState::Fetched, 50, (50, 0)));
    }

    /// A source whose checkpoint names manifests of these objects.
    fn source_with_manifests(tables: &[&[u64]]) -> (MemoryEngine, Checkpoint) {
        let (engine, checkpoint) = source(50);
        let table = |pieces: &&[u64]| {
            let piece = |n: &u64| PieceRef {
                id: ObjectId::of(format!("object {n:>3}").as_bytes()),
                first_key: n.to_be_bytes().to_vec().into(),
                bytes: 10,
                records: 1,
                footer_bytes: 0,
                footer_crc: 0,
            };
            let manifest = Manifest { pieces: pieces.iter().map(piece).collect() }.encode();
            let id = ObjectId::of(&manifest);
            engine.import(id, manifest).unwrap();
            TableRef { kind: TableKind::Run, clip: KeyRange::all(), manifest: id, fold: None }
        };
        let tables = Tables::Manifests(tables.iter().map(table).collect());
        (engine, Checkpoint { tables, ..checkpoint })
    }

    #[test]
    fn pieces_are_fetched_after_their_manifests_and_once() {
        let (source, checkpoint) = source_with_manifests(&[&[1, 2, 3, 4, 5, 6, 7, 8, 9], &[5, 6, 7, 8, 9, 10, 11]]);
        let target = MemoryEngine::default();
        let mut fetched = 0;
        // The second time a manifest and some pieces are here.
        for answers in [4, usize::MAX] {
            let mut pull = Pull::start(&target, REPLICA, checkpoint.clone(), BOUNDS);
            for _ in 0..answers {
                let Some(request) = pull.next_request() else { break };
                fetched += answer(&mut pull, &target, &source, request);
            }
            let left = 2 + 11 - fetched;
            assert_eq!((pull.state() == PullState::Fetched, pull.progress().1), (left == 0, left));
        }
        let objects: Vec<_> = checkpoint.objects().collect();
        assert!(target.missing(&objects).is_empty());
    }

    /// A piece that is a manifest itself is stored, and of no use: nothing it names is fetched.
    #[test]
    fn a_peer_cannot_make_the_chain_of_objects_longer() {
        let (source, checkpoint) = source_with_manifests(&[&[1]]);
        let inner = checkpoint.tables.objects().next().unwrap();
        let mut piece = Manifest::decode(source.object(inner).unwrap()).unwrap();
        piece.pieces[0].id = inner;
        let outer = piece.encode();
        let manifest = ObjectId::of(&outer);
        source.import(manifest, outer).unwrap();
        let table = TableRef { kind: TableKind::Run, clip: KeyRange::all(), manifest, fold: None };
        let checkpoint = Checkpoint { tables: Tables::Manifests(vec![table]), ..checkpoint };
        let target = MemoryEngine::default();
        let mut pull = Pull::start(&target, REPLICA, checkpoint, BOUNDS);
        let mut fetched = 0;
        while let Some(request) = pull.next_request() {
            fetched += answer(&mut pull, &target, &source, request);
        }
        assert_eq!((pull.state(), fetched), (PullState::Fetched, 2));
    }

    #[test]
    fn an_interrupted_pull_keeps_what_it_stored_even_over_a_restart() {
        let (source, checkpoint) = source(40);
        let target = MemoryEngine::default();
        let mut pull = Pull::start(&target, REPLICA, checkpoint.clone(), BOUNDS);
        for _ in 0..8 {
            let request = pull.next_request().unwrap();
            answer(&mut pull, &target, &source, request);
        }
        let (_, missing) = pull.progress();
        assert_eq!(missing, 40 - 8 * 3);
        let again = Pull::start(&target, REPLICA, checkpoint.clone(), BOUNDS);
        assert_eq!(again.progress(), (40, missing));
        let restarted = Pull::start(&target.reopen(), REPLICA, checkpoint, BOUNDS);
        assert!(restarted.progress().1 <= missing + 5, "{:?} after a power failure", restarted.progress());
    }

    #[test]
    fn a_pull_that_is_stopped_ends_with_the_answers_in_flight() {
        let (source, checkpoint) = source(40);
        let target = MemoryEngine::default();
        let mut pull = Pull::start(&target, REPLICA, checkpoint, BOUNDS);
        let in_flight = [pull.next_request().unwrap(), pull.next_request().unwrap()];
        pull.stop();
        assert_eq!((pull.next_request(), pull.state()), (None, PullState::Working));
        for request in in_flight {
            answer(&mut pull, &target, &source, request);
        }
        assert_eq!((pull.state(), pull.progress()), (PullState::Failed, (40, 34)));
    }

    #[test]
    fn a_pull_goes_on_without_an_object_that_is_gone() {
        let (source, mut checkpoint) = source(20);
        let Tables::Pieces { base, .. } = &mut checkpoint.tables else { panic!("they have no manifests") };
        base.insert(5, ObjectId::of(b"gone"));
        let target = MemoryEngine::default();
        let mut pull = Pull::start(&target, REPLICA, checkpoint, BOUNDS);
        let mut fetched = 0;
        while let Some(request) = pull.next_request() {
            fetched += answer(&mut pull, &target, &source, request);
        }
        assert_eq!((pull.state(), fetched, pull.progress()), (PullState::Failed, 20, (21, 1)));
    }

    #[test]
    fn failures_end_a_pull_only_if_nothing_succeeds_in_between() {
        let (source, checkpoint) = source(50);
        let target = MemoryEngine::default();
        let mut pull = Pull::start(&target, REPLICA, checkpoint, BOUNDS);
        for _ in 0..3 {
            for failed in 1..FAILURES_MAX {
                let request = pull.next_request().unwrap();
                assert_eq!(pull.on_failure(request), BACKOFF_MS << failed);
            }
            let request = pull.next_request().unwrap();
            answer(&mut pull, &target, &source, request);
        }
        for _ in 0..FAILURES_MAX {
            let request = pull.next_request().unwrap();
            pull.on_failure(request);
        }
        assert_eq!((pull.state(), pull.next_request()), (PullState::Failed, None));
    }
}
