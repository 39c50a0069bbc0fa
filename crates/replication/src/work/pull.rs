//! The object protocol: a snapshot names objects, and only missing ones are transferred, each verified by its
//! hash.
//!
//! What an object needs is known once it is here, so that a pull fetches manifests first, then their pieces, then
//! what the records refer to; or lists before what they list. The first source is said to hold all of them. The
//! others, nodes with a replica of the shard, are asked which of them they hold, and become sources for those. Each
//! source has a few requests in flight and gets the next objects when it has answered: a slow one gets fewer, one
//! that fails pauses, and the pull goes on as long as some source holds what is missing. No object is requested
//! again unless a request for it has failed.
//!
//! What a pull has stored is held for whom it is for, so a pull that ends early, or is replaced by one for a newer
//! snapshot, has fetched nothing in vain.

mod exchange;
mod packed;
mod supply;
#[cfg(test)]
mod tests;
mod wanted;

use std::{collections::BTreeMap, num::NonZero};

pub use exchange::{End, PullRequest, Served, Stored, serve, serve_later, waiting_request};
use flotilla_storage::{EngineError, ListRefs, Remedy, StateEngine, remedy};
use flotilla_types::{Checkpoint, Holder, NodeId, ObjectId, ObjectRef, ReplicaId, ReplicaRole, ShardDescriptor};
use flotilla_wire::WireError;
use supply::{SOURCES_MAX, Supply};
use wanted::Found;
pub use wanted::Reuse;
pub(crate) use wanted::Wanted;

/// Bounds of a pull, and of the answers to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PullBounds {
    /// Requests for objects in flight, of each source.
    pub requests_max: usize,
    /// The same of all sources.
    pub requests_total_max: usize,
    /// Objects per request.
    pub objects_max: usize,
    /// Bytes of objects in one response, unless the first alone is larger.
    pub response_bytes_max: usize,
    /// Bytes that may be stored before they are made durable: what a power failure costs.
    pub unsynced_bytes_max: usize,
}

impl Default for PullBounds {
    fn default() -> Self {
        Self {
            requests_max: 3,
            requests_total_max: 4,
            objects_max: 64,
            response_bytes_max: 4 << 20,
            unsynced_bytes_max: 64 << 20,
        }
    }
}

impl PullBounds {
    /// The bounds of a node that receives so many bytes per second: no request takes much longer than half a
    /// second of them.
    #[must_use]
    pub fn of_rate(bytes_per_second: Option<NonZero<u64>>) -> Self {
        let bounds = Self::default();
        let half_a_second = bytes_per_second.map_or(u64::MAX, |rate| rate.get() / 2);
        let response_bytes_max = usize::try_from(half_a_second).unwrap_or(usize::MAX).min(bounds.response_bytes_max);
        Self { response_bytes_max, ..bounds }
    }
}

/// Looks for what is missing, of one pull.
const LOOKS_MAX: u32 = 4;
/// Objects that one request asks about.
const ASKED_MAX: usize = 1_024;
/// Requests to a source that failed one after the other, without a successful one, after which it is none.
const FAILURES_MAX: u32 = 5;
/// Objects whose bytes did not match their ids after which a node is no source any more.
const BAD_MAX: u32 = 3;
/// Base of the exponential backoff after a failed call, milliseconds: twice this after the first failure.
const BACKOFF_MS: u64 = 50;
/// Longest pause that a source may ask for, milliseconds.
const PAUSE_MS_MAX: u64 = 10_000;
/// Objects that a source does not hold, against what it said, after which it is none; the pull ends if it offers
/// a snapshot, because it will offer another one. Each costs a round trip.
const GONE_MAX: usize = 64;
/// Milliseconds of one call, unless its source is known to be slower. One that has failed since it last served is
/// asked for one object at a time.
const CALL_MS: u64 = 20_000;
/// Milliseconds of a call to a slow source, at most: 4 MiB in this time are 26 KB/s.
const CALL_MS_MAX: u64 = 160_000;
/// Milliseconds that one request may be expected to take, if it is for several objects.
const REQUEST_MS_MAX: u64 = 5_000;
/// Milliseconds of one call while another source serves the same objects, unless that takes long itself.
const CALL_MS_OF_SEVERAL: u64 = 5_000;
/// A source that takes so many times as long as the quickest one is slow.
const SLOW_FACTOR: u64 = 4;
/// Milliseconds per MiB that do not make a source slow.
const SLOW_MS_MIN: u64 = 100;
/// Smaller answers count as this many bytes, because they take as long.
const COST_BYTES_MIN: u64 = 256 << 10;

/// Why an answer, or a part of it, was not stored.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The response does not parse.
    #[error("the peer's response does not parse")]
    Malformed(#[from] WireError),
    /// It has a frame that is not one of the lengths that it says.
    #[error("the objects in the peer's response do not decompress")]
    Packed,
    /// The response has no object and names none as gone.
    #[error("the peer's response contains none of the requested objects")]
    Empty,
    /// An object could not be stored, or what was stored could not be made durable.
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

/// Objects to fetch, with all that they need.
#[derive(Debug, Clone)]
pub struct PullOrder {
    /// The replica here that receives a snapshot, if it is one.
    replica: ReplicaId,
    /// Who holds what was fetched, from the first object on; `None` if whoever ordered it sees to that.
    holder: Option<Holder>,
    /// The first one is said to have all of them.
    sources: Vec<NodeId>,
    roots: Vec<Wanted>,
    lists: ListRefs,
}

impl PullOrder {
    /// The objects of a snapshot that a node offers to a replica of node `node`.
    #[must_use]
    pub fn of_snapshot(
        node: NodeId,
        replica: ReplicaId,
        from: NodeId,
        checkpoint: &Checkpoint,
        lists: ListRefs,
    ) -> Self {
        let sources = sources(node, Some(from), &checkpoint.position.descriptor);
        let roots = Wanted::of_checkpoint(checkpoint);
        Self { replica, holder: Some(Holder::Receiver(replica)), sources, roots, lists }
    }

    /// What entries or commands refer to, which the engine keeps already. The sources are other nodes; the first one
    /// is said to have everything.
    #[must_use]
    pub fn of_refs(sources: Vec<NodeId>, refs: &[ObjectRef], lists: ListRefs) -> Self {
        let roots = refs.iter().map(Wanted::of_ref).collect();
        Self { replica: ReplicaId::NONE, holder: None, sources, roots, lists }
    }

    /// Whether a node offers the objects, and will offer others when it has them no longer.
    fn is_of_snapshot(&self) -> bool {
        self.replica != ReplicaId::NONE
    }

    /// The same, held by this holder from the first object on.
    #[must_use]
    pub fn held_by(self, holder: Holder) -> Self {
        Self { holder: Some(holder), ..self }
    }
}

/// Nodes that may have objects, each once, without `node`, which needs them.
pub(crate) fn other_nodes(node: NodeId, nodes: Vec<NodeId>) -> Vec<NodeId> {
    let mut others: Vec<NodeId> = Vec::new();
    for other in nodes {
        if other != node && !others.contains(&other) && others.len() < SOURCES_MAX {
            others.push(other);
        }
    }
    others
}

/// The nodes that may have objects of a shard: one that is said to have all, and those of other replicas, voters
/// first; without `node`, which needs them.
pub(crate) fn sources(node: NodeId, first: Option<NodeId>, descriptor: &ShardDescriptor) -> Vec<NodeId> {
    let mut replicas = descriptor.replicas.clone();
    replicas.sort_by_key(|replica| replica.role != ReplicaRole::Voter);
    let nodes = first.into_iter().chain(replicas.into_iter().map(|replica| replica.node));
    other_nodes(node, nodes.collect())
}

/// A node that serves a pull.
#[derive(Debug)]
struct Source {
    node: NodeId,
    /// It is said to have everything, and is not asked what it holds.
    has_all: bool,
    /// Requests for objects.
    in_flight: usize,
    asking: bool,
    /// How many of the supply's objects it was asked about.
    asked: usize,
    /// Failures since the last success.
    failures: u32,
    bad: u32,
    /// Objects that it did not hold, against what it said.
    gone: usize,
    paused_until_ms: u64,
    /// Milliseconds per MiB, recently.
    cost_ms: Option<u64>,
    lost: bool,
}

#[derive(Debug)]
struct InFlight {
    /// Objects to be fetched.
    objects: usize,
    /// How much the source had been asked before.
    asked_before: usize,
}

/// A pull of objects. Its clock is monotonic, in milliseconds.
#[derive(Debug)]
pub struct Pull {
    order: PullOrder,
    bounds: PullBounds,
    /// What was missing, as far as that is known.
    supply: Supply,
    /// Objects that are wanted, or needed by those that are here or were fetched, and that were here.
    reused: usize,
    /// Those of them that entries and records refer to, and that were here at the start.
    reuse: Reuse,
    /// By their position in [`Supply`]'s sets of holders.
    sources: Vec<Source>,
    /// Requests without an answer.
    in_flight: BTreeMap<u64, InFlight>,
    requests: u64,
    /// Answers that could not be stored since the last one that was.
    failures: u32,
    paused_until_ms: u64,
    unsynced_bytes: usize,
    /// Looks for what is still missing once everything was fetched.
    looks: u32,
    /// An object here is not what the order says: no source can help.
    is_invalid: bool,
    /// Sends no further requests.
    stopping: bool,
}

impl Pull {
    /// Holds the objects for whom they are for, and finds out which are missing. Reads what says what else is
    /// needed.
    pub fn start(engine: &dyn StateEngine, order: PullOrder, bounds: PullBounds) -> Result<Self, PullError> {
        if let Some(holder) = order.holder {
            engine.hold(holder, &wanted::ids_of(&order.roots));
        }
        let sources = order.sources.iter().zip(0..).map(|(node, at)| Source::new(*node, at == OFFERER)).collect();
        let mut pull = Self {
            bounds,
            reused: 0,
            reuse: Reuse::default(),
            supply: Supply::default(),
            sources,
            order,
            in_flight: BTreeMap::new(),
            requests: 0,
            failures: 0,
            paused_until_ms: 0,
            unsynced_bytes: 0,
            looks: 0,
            is_invalid: false,
            stopping: false,
        };
        let found = pull.look(engine)?;
        (pull.reused, pull.reuse) = (found.here, found.reuse);
        Ok(pull)
    }

    /// What was here at the start of that which entries and records refer to.
    #[must_use]
    pub fn reuse(&self) -> Reuse {
        self.reuse
    }

    /// Looks for what is missing.
    fn look(&mut self, engine: &dyn StateEngine) -> Result<Found, PullError> {
        self.looks += 1;
        let found = wanted::find(engine, self.order.lists, self.order.roots.iter().copied())?;
        self.is_invalid |= found.is_invalid;
        let offerer = (!self.sources.is_empty()).then_some(OFFERER).filter(|at| !self.sources[*at].lost);
        for wanted in &found.missing {
            self.supply.add(*wanted, offerer);
            self.supply.put_back(wanted.id);
        }
        Ok(found)
    }

    /// The number of objects that the order needs, and how many of them are missing, as far as both are
    /// known.
    #[must_use]
    pub fn progress(&self) -> (usize, usize) {
        let in_flight: usize = self.in_flight.values().map(|request| request.objects).sum();
        (self.reused + self.supply.len(), self.supply.waiting() + in_flight)
    }

    /// How it stands.
    #[must_use]
    pub fn state(&self) -> PullState {
        let may_find_more = || self.sources.iter().any(|source| source.may_be_asked(self.supply.len()));
        if !self.in_flight.is_empty() {
            PullState::Working
        } else if self.supply.waiting() == 0 && !self.is_invalid {
            PullState::Fetched
        } else if self.ends() || !(self.supply.has_holders() || may_find_more()) {
            PullState::Failed
        } else {
            PullState::Working
        }
    }

    fn ends(&self) -> bool {
        self.failures >= FAILURES_MAX || self.stopping || self.is_invalid
    }

    /// The next request, if one may be sent now.
    pub fn next_request(&mut self, now_ms: u64) -> Option<PullRequest> {
        if self.ends() || self.paused_until_ms > now_ms || self.supply.waiting() == 0 {
            return None;
        }
        self.next_fetch(now_ms).or_else(|| self.next_question(now_ms))
    }

    /// Requests objects from the source with the fewest requests.
    fn next_fetch(&mut self, now_ms: u64) -> Option<PullRequest> {
        let in_flight: usize = self.sources.iter().map(|source| source.in_flight).sum();
        if in_flight >= self.bounds.requests_total_max {
            return None;
        }
        let mut ready: Vec<_> = (0..self.sources.len()).filter(|at| self.sources[*at].is_ready(now_ms)).collect();
        ready.sort_by_key(|at| self.sources[*at].in_flight);
        for at in ready {
            let is_slow = self.is_slow(at) || self.sources[at].failures > 0;
            let (requests_max, objects_max) =
                if is_slow { (1, 1) } else { (self.bounds.requests_max, self.bounds.objects_max) };
            if self.sources[at].in_flight >= requests_max {
                continue;
            }
            let (objects, bytes) = self.supply.take(at, objects_max, self.response_bytes_max(at));
            if !objects.is_empty() {
                self.sources[at].in_flight += 1;
                let asked_before = self.sources[at].asked;
                let ids = objects.iter().map(|wanted| wanted.id).collect();
                return Some(PullRequest { wanted: objects, ..self.request(at, ids, bytes, false, asked_before) });
            }
        }
        None
    }

    /// Bytes that a source may be asked for at once: over a slow link no request takes much longer than
    /// [`REQUEST_MS_MAX`].
    fn response_bytes_max(&self, at: usize) -> u64 {
        let in_time = self.sources[at].cost_ms.map_or(u64::MAX, |cost_ms| (REQUEST_MS_MAX << 20) / cost_ms.max(1));
        in_time.min(self.bounds.response_bytes_max as u64)
    }

    /// Asks a source which objects it holds, of those that nobody was asked for yet.
    fn next_question(&mut self, now_ms: u64) -> Option<PullRequest> {
        for at in 0..self.sources.len() {
            let source = &mut self.sources[at];
            if !source.is_ready(now_ms) || source.asking || !source.may_be_asked(self.supply.len()) {
                continue;
            }
            let asked_before = source.asked;
            let (objects, asked) = self.supply.waiting_from(asked_before, ASKED_MAX);
            source.asked = asked;
            if !objects.is_empty() {
                source.asking = true;
                return Some(self.request(at, objects, 0, true, asked_before));
            }
        }
        None
    }

    fn request(
        &mut self,
        at: usize,
        objects: Vec<ObjectId>,
        bytes: u64,
        asks: bool,
        asked_before: usize,
    ) -> PullRequest {
        self.requests += 1;
        let fetched = if asks { 0 } else { objects.len() };
        self.in_flight.insert(self.requests, InFlight { objects: fetched, asked_before });
        PullRequest {
            number: self.requests,
            source: self.sources[at].node,
            at,
            asks,
            bytes_expected: bytes,
            timeout_ms: self.timeout_ms(at, &objects, bytes),
            objects,
            wanted: Vec::new(),
            lists: self.order.lists,
            replica: self.order.replica,
        }
    }

    /// Whether a source takes much longer than another one that serves.
    fn is_slow(&self, at: usize) -> bool {
        let own = self.sources[at].cost_ms;
        own.zip(self.quickest_other(at, &[])).is_some_and(|(own, best)| own > (best * SLOW_FACTOR).max(SLOW_MS_MIN))
    }

    /// How long a source may take to send these objects: not long if another one can.
    fn timeout_ms(&self, at: usize, objects: &[ObjectId], bytes: u64) -> u64 {
        let response_max = self.bounds.response_bytes_max as u64;
        if let Some(quickest_ms) = self.quickest_other(at, objects) {
            return ((SLOW_FACTOR * quickest_ms * response_max) >> 20).clamp(CALL_MS_OF_SEVERAL, CALL_MS);
        }
        let source = &self.sources[at];
        let bytes = if bytes == 0 { response_max } else { bytes }.max(COST_BYTES_MIN);
        let known_ms = source.cost_ms.map_or(0, |cost_ms| (SLOW_FACTOR * cost_ms * bytes) >> 20);
        known_ms.clamp(CALL_MS, CALL_MS_MAX)
    }

    /// What the quickest other source that serves, and holds all of these objects, takes for a MiB.
    fn quickest_other(&self, at: usize, objects: &[ObjectId]) -> Option<u64> {
        let holds_all = |other| objects.iter().all(|object| self.supply.is_held_by(*object, other));
        let others = self.sources.iter().enumerate().filter(|(other, source)| *other != at && source.serves());
        others.filter(|(other, _)| holds_all(*other)).filter_map(|(_, source)| source.cost_ms).min()
    }

    /// When another request may be sent, if none may be now because sources pause.
    #[must_use]
    pub fn wakes_at_ms(&self, now_ms: u64) -> Option<u64> {
        let pauses = self.sources.iter().filter(|source| !source.lost).map(|source| source.paused_until_ms);
        pauses.map(|until_ms| until_ms.max(self.paused_until_ms)).filter(|until_ms| *until_ms > now_ms).min()
    }

    /// Sends no further requests; it ends when those in flight are answered. For a pull that another one
    /// replaces: the sources send the answers anyway.
    pub fn stop(&mut self) {
        self.stopping = true;
    }

    /// An answer was stored, as far as it goes, after `took_ms`. What it did not bring is requested again, except
    /// what no source holds: the rest is of use for the next snapshot, too. Returns whether it is time for
    /// [`Pull::sync`].
    #[must_use]
    pub fn on_stored(&mut self, now_ms: u64, took_ms: u64, request: PullRequest, stored: Stored) -> bool {
        let Some(_) = self.in_flight.remove(&request.number) else { return false };
        let at = request.at;
        if request.asks {
            self.sources[at].asking = false;
            match stored.end {
                End::Failed(_) => self.source_failed(now_ms, at),
                _ if self.sources[at].lost => {}
                _ => stored.held.iter().for_each(|object| self.supply.found(*object, at)),
            }
            return false;
        }
        self.sources[at].in_flight -= 1;
        self.unsynced_bytes += stored.bytes;
        self.reused += stored.reused;
        let holder = Some(OFFERER).filter(|offerer| !self.sources[*offerer].lost);
        for wanted in stored.needed {
            self.supply.add(wanted, holder);
        }
        if stored.objects > 0 {
            self.failures = 0;
            self.sources[at].succeeded(took_ms, stored.bytes as u64);
        }
        let mut rest = request.objects.into_iter().skip(stored.objects);
        self.on_end(now_ms, at, stored.end, &mut rest);
        self.put_back(rest, None);
        let syncs = self.unsynced_bytes >= self.bounds.unsynced_bytes_max;
        if syncs {
            self.unsynced_bytes = 0;
        }
        syncs
    }

    /// Why an answer had no more objects, and what that says of the first one that is missing.
    fn on_end(&mut self, now_ms: u64, at: usize, end: End, rest: &mut impl Iterator<Item = ObjectId>) {
        match end {
            End::Served => {}
            End::Gone => {
                self.sources[at].gone += 1;
                if let Some(object) = rest.next() {
                    self.supply.put_back(object);
                    self.supply.lacks(object, at);
                    if let Some(number) = self.supply.number_without_holder(object) {
                        self.ask_again(number);
                    }
                }
                // The others promise nothing, and the pull goes on without them.
                if self.sources[at].gone > GONE_MAX {
                    self.stopping |= self.sources[at].has_all && self.order.is_of_snapshot();
                    self.lose(at);
                }
            }
            End::Bad => {
                self.put_back(rest.next(), Some(at));
                self.sources[at].bad += 1;
                if self.sources[at].bad >= BAD_MAX {
                    self.lose(at);
                }
            }
            End::Busy { retry_ms } => {
                self.sources[at].paused_until_ms = now_ms + retry_ms.clamp(BACKOFF_MS, PAUSE_MS_MAX);
            }
            End::Failed(PullError::Engine(_)) => {
                self.failures += 1;
                self.paused_until_ms = now_ms + backoff_ms(self.failures);
            }
            End::Failed(PullError::Malformed(_) | PullError::Packed | PullError::Empty) => {
                self.source_failed(now_ms, at)
            }
        }
    }

    /// A call was not answered. Its objects are fetched elsewhere, if others hold them.
    pub fn on_failure(&mut self, now_ms: u64, request: PullRequest) {
        let Some(InFlight { asked_before, .. }) = self.in_flight.remove(&request.number) else { return };
        let at = request.at;
        if request.asks {
            self.sources[at].asking = false;
            self.sources[at].asked = self.sources[at].asked.min(asked_before);
        } else {
            self.sources[at].in_flight -= 1;
            self.put_back(request.objects, Some(at));
        }
        self.source_failed(now_ms, at);
    }

    /// Requests objects again: of other sources than this one, if there are any.
    fn put_back(&mut self, objects: impl IntoIterator<Item = ObjectId>, failed: Option<usize>) {
        for object in objects {
            self.supply.put_back(object);
            if let Some(at) = failed.filter(|at| self.supply.is_held_elsewhere(object, *at)) {
                self.supply.lacks(object, at);
            }
        }
    }

    fn source_failed(&mut self, now_ms: u64, at: usize) {
        let source = &mut self.sources[at];
        source.failures += 1;
        source.paused_until_ms = now_ms + backoff_ms(source.failures);
        if source.failures >= FAILURES_MAX {
            self.lose(at);
        }
    }

    /// A node is no source any more.
    fn lose(&mut self, at: usize) {
        self.sources[at].lost = true;
        self.supply.lose(at);
        self.ask_again(0);
    }

    /// Sources are asked again about what waits from this object on: what was requested when they were asked was left
    /// out.
    fn ask_again(&mut self, from: usize) {
        self.sources.iter_mut().for_each(|source| source.asked = source.asked.min(from));
    }

    /// Makes the pulled objects durable.
    pub fn sync(&self, engine: &dyn StateEngine) -> Result<(), PullError> {
        Ok(engine.sync()?)
    }

    /// Makes everything durable once it was fetched, and looks whether it is all here. If not, which takes an object
    /// that was found damaged, or that is two things at once, the pull goes on.
    pub fn finish(&mut self, engine: &dyn StateEngine) -> Result<bool, PullError> {
        self.sync(engine)?;
        let is_whole = self.look(engine)?.missing.is_empty() && !self.is_invalid;
        self.stopping |= !is_whole && self.looks > LOOKS_MAX;
        // Looking may have stored what lists need.
        self.sync(engine)?;
        Ok(is_whole)
    }
}

impl Source {
    fn new(node: NodeId, has_all: bool) -> Self {
        Self {
            node,
            has_all,
            in_flight: 0,
            asking: false,
            asked: 0,
            failures: 0,
            bad: 0,
            gone: 0,
            paused_until_ms: 0,
            cost_ms: None,
            lost: false,
        }
    }

    fn is_ready(&self, now_ms: u64) -> bool {
        !self.lost && self.paused_until_ms <= now_ms
    }

    fn may_be_asked(&self, known: usize) -> bool {
        !self.has_all && !self.lost && self.asked < known
    }

    /// Whether its last request was served.
    fn serves(&self) -> bool {
        !self.lost && self.failures == 0
    }

    fn succeeded(&mut self, took_ms: u64, bytes: u64) {
        self.failures = 0;
        let cost_ms = (took_ms << 20) / bytes.max(COST_BYTES_MIN);
        self.cost_ms = Some(self.cost_ms.map_or(cost_ms, |before| (3 * before + cost_ms) / 4));
    }
}

/// The position of the source that is said to have everything.
const OFFERER: usize = 0;

fn backoff_ms(failures: u32) -> u64 {
    BACKOFF_MS << failures.min(FAILURES_MAX)
}
