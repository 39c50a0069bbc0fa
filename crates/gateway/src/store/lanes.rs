//! One lane for each shard: requests of many callers that gather while a call is on its way, and leave in few calls.
//!
//! What a call costs beside its keys and values (a command's session, a frame, a log entry, a round of consensus) is paid
//! once for all requests that share it. A request waits only while a call that started less than [`PATIENCE`] ago is on
//! its way, or while one that just ended waits for its callers to come back (see [`Gathering::begin`]): a lone caller never waits,
//! and batches grow with the load by themselves.
//!
//! Invariants: requests that touch the same key exclusively never share a call, because a call's writes share one
//! version; a request that nobody waits for any more is never sent. Lanes know nothing of what a call is: see [`Part`].

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    future::Future,
    marker::PhantomData,
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use flotilla_replication::clock;
use flotilla_types::ShardId;
use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};

use super::Store;

/// How long requests gather behind a call that is on its way before another one starts beside it.
const PATIENCE: Duration = Duration::from_millis(5);
/// A call waits for callers who were just answered as long as their call took, but no longer than this.
const GATHER_MAX: Duration = Duration::from_millis(4);
/// Calls that leave at once after callers did not come back; twice as many each time, up to the second number.
const HASTY: (u32, u32) = (1, 1_024);
/// Calls of one lane at a time.
const CALLS_MAX: usize = 64;
/// Requests that wait in one lane; more are refused as busy.
const WAITING_MAX: usize = 16_384;
/// Bytes of keys and values in one call; one request may go beyond.
const CALL_BYTES_MAX: usize = 256 << 10;
/// Keys of one call; one request may go beyond.
const CALL_KEYS_MAX: usize = 256;
/// Requests that are looked at for one call: bounds the search behind requests that do not fit.
const LOOK_MAX: usize = 1_024;
/// Requests share a call only when their deadlines are so close: the earliest ends the call for all.
const DEADLINES_WITHIN_MS: u64 = 100;

/// What a request takes of a call.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Cost {
    pub(super) keys: usize,
    pub(super) bytes: usize,
    /// Of the answer, where that is bounded.
    pub(super) result_bytes: usize,
}

impl Cost {
    fn plus(self, other: Self) -> Self {
        Self {
            keys: self.keys + other.keys,
            bytes: self.bytes + other.bytes,
            result_bytes: self.result_bytes + other.result_bytes,
        }
    }

    fn fits(self, result_bytes_max: usize) -> bool {
        self.keys <= CALL_KEYS_MAX && self.bytes <= CALL_BYTES_MAX && self.result_bytes <= result_bytes_max
    }
}

/// A request that may share a call with others.
pub(super) trait Part: Send + Sized + 'static {
    /// Bytes of results in one call.
    const RESULT_BYTES_MAX: usize;

    /// The lanes for requests of this kind.
    fn lanes(store: &Store) -> &Lanes<Self>;
    /// Only requests with the same label share a call.
    fn label(&self) -> u64;
    fn cost(&self) -> Cost;
    fn deadline_ms(&self) -> u64;
    /// Keys that no other request of the call may touch.
    fn exclusive(&self) -> impl Iterator<Item = &Bytes>;
    /// Whether the caller has gone.
    fn is_abandoned(&self) -> bool;
    /// Sends requests to a shard as one call, and answers every one of them.
    fn call(store: Store, shard: ShardId, parts: Vec<Self>) -> impl Future<Output = ()> + Send;
}

/// The lanes of all shards.
#[derive(Debug)]
pub(super) struct Lanes<P>(Mutex<BTreeMap<ShardId, Lane<P>>>);

#[derive(Debug)]
struct Lane<P> {
    waiting: VecDeque<(u64, P)>,
    next_ticket: u64,
    calls: usize,
    /// Calls that started less than the patience ago.
    fresh: usize,
    gathering: Gathering,
}

/// A call that waits for its callers to come back.
#[derive(Debug, Default)]
struct Gathering {
    /// How many requests must wait before it leaves; 0 when none gathers.
    expects: usize,
    /// Tells it that they do.
    complete: Arc<Notify>,
    /// Calls that will leave at once, because callers did not come back.
    hasty: u32,
    /// How many there were the last time.
    hasty_before: u32,
}

impl Gathering {
    /// So many requests wait.
    fn offered(&mut self, waiting: usize) {
        if self.expects > 0 && waiting >= self.expects {
            self.expects = 0;
            self.complete.notify_one();
        }
    }

    /// Callers who are answered often ask again at once. Begins to wait for as many requests as were just answered beside those
    /// that wait already, so that two groups of callers do not go on taking turns for ever.
    fn begin(&mut self, waiting: usize, answered: usize) -> Option<Arc<Notify>> {
        if self.hasty > 0 {
            self.hasty -= 1;
            return None;
        }
        self.expects = waiting + answered;
        Some(self.complete.clone())
    }

    /// The wait is over; `came` says whether all came.
    fn end(&mut self, came: bool) {
        let (first, most) = HASTY;
        self.expects = 0;
        self.hasty_before = if came { 0 } else { (2 * self.hasty_before).clamp(first, most) };
        self.hasty = self.hasty_before;
    }
}

/// Too many requests wait.
#[derive(Debug)]
pub(super) struct Full;

impl<P> Default for Lanes<P> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<P> Default for Lane<P> {
    fn default() -> Self {
        Self { waiting: VecDeque::new(), next_ticket: 0, calls: 0, fresh: 0, gathering: Gathering::default() }
    }
}

impl<P: Part> Lane<P> {
    fn offer(&mut self, part: P) -> Result<u64, Full> {
        if self.waiting.len() >= WAITING_MAX {
            return Err(Full);
        }
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.waiting.push_back((ticket, part));
        self.gathering.offered(self.waiting.len());
        Ok(ticket)
    }

    /// Whether another call should start now. The caller must start it.
    fn starts(&mut self) -> bool {
        let starts = self.fresh == 0 && self.calls < CALLS_MAX && !self.waiting.is_empty();
        if starts {
            self.fresh += 1;
            self.calls += 1;
        }
        starts
    }

    /// The requests of one call, in order, and whether requests were left behind that could go in a call of their own.
    fn take(&mut self) -> (Vec<P>, bool) {
        let mut parts: Vec<P> = Vec::new();
        let mut cost = Cost::default();
        let mut keys = HashSet::new();
        let mut left = VecDeque::new();
        let mut conflicts = false;
        for _ in 0..LOOK_MAX {
            let Some((ticket, part)) = self.waiting.pop_front() else { break };
            if part.is_abandoned() {
                continue;
            }
            let sum = cost.plus(part.cost());
            let joins = parts.first().is_none_or(|first| {
                first.label() == part.label() && first.deadline_ms().abs_diff(part.deadline_ms()) <= DEADLINES_WITHIN_MS
            });
            if !parts.is_empty() && !sum.fits(P::RESULT_BYTES_MAX) {
                left.push_back((ticket, part));
                break;
            }
            if !joins || part.exclusive().any(|key| keys.contains(key)) {
                conflicts = true;
                left.push_back((ticket, part));
                continue;
            }
            keys.extend(part.exclusive().cloned());
            cost = sum;
            parts.push(part);
        }
        while let Some(part) = left.pop_back() {
            self.waiting.push_front(part);
        }
        (parts, conflicts)
    }
}

impl<P: Part> Lanes<P> {
    /// Puts a request into a shard's lane. Returns its ticket.
    pub(super) fn offer(store: &Store, shard: ShardId, part: P) -> Result<u64, Full> {
        let lanes = P::lanes(store);
        let (ticket, starts) = {
            let mut all = lanes.0.lock();
            let lane = all.entry(shard).or_default();
            (lane.offer(part)?, lane.starts())
        };
        if starts {
            spawn::<P>(store, shard);
        }
        Ok(ticket)
    }

    /// Takes a request back. `false` when it was sent, or answered.
    pub(super) fn withdraw(&self, shard: ShardId, ticket: u64) -> bool {
        let mut all = self.0.lock();
        let Some(lane) = all.get_mut(&shard) else { return false };
        let before = lane.waiting.len();
        lane.waiting.retain(|(waiting, _)| *waiting != ticket);
        lane.waiting.len() < before
    }

    /// Changes a lane and starts another call beside those on their way, if it is time for one.
    fn change<T>(store: &Store, shard: ShardId, change: impl FnOnce(&mut Lane<P>) -> T) -> T {
        let (changed, starts) = {
            let mut all = P::lanes(store).0.lock();
            let lane = all.entry(shard).or_default();
            (change(lane), lane.starts())
        };
        if starts {
            spawn::<P>(store, shard);
        }
        changed
    }
}

/// A call on its way. Dropping it frees its place, also when the call panicked: a lane never waits for what is gone.
struct Running<P: Part> {
    store: Store,
    shard: ShardId,
    is_fresh: bool,
    kind: PhantomData<fn() -> P>,
}

impl<P: Part> Running<P> {
    /// Others need not wait for it any more.
    fn outwaited(&mut self) {
        let was_fresh = std::mem::take(&mut self.is_fresh);
        Lanes::<P>::change(&self.store, self.shard, |lane| lane.fresh -= usize::from(was_fresh));
    }

    /// Waits for the callers of a call that took so long, unless they did not come back of late.
    async fn gather(&self, answered: usize, took: Duration) {
        let begin = |lane: &mut Lane<P>| lane.gathering.begin(lane.waiting.len(), answered);
        let Some(complete) = Lanes::<P>::change(&self.store, self.shard, begin) else { return };
        let came = tokio::time::timeout(took.min(GATHER_MAX), complete.notified()).await.is_ok();
        Lanes::<P>::change(&self.store, self.shard, |lane| lane.gathering.end(came));
    }
}

impl<P: Part> Drop for Running<P> {
    fn drop(&mut self) {
        Lanes::<P>::change(&self.store, self.shard, |lane| {
            lane.calls -= 1;
            lane.fresh -= usize::from(self.is_fresh);
        });
    }
}

/// Makes one call after another with what waits, until nothing does or a call outlasts the patience.
async fn drive<P: Part>(store: Store, shard: ShardId) {
    let mut running = Running::<P> { store: store.clone(), shard, is_fresh: true, kind: PhantomData };
    while running.is_fresh {
        let (parts, leaves_others) = Lanes::<P>::change(&store, shard, Lane::take);
        if parts.is_empty() {
            return;
        }
        if leaves_others {
            // What cannot share this call need not wait for it either.
            running.outwaited();
        }
        let (answered, start) = (parts.len(), Instant::now());
        let call = P::call(store.clone(), shard, parts);
        tokio::pin!(call);
        tokio::select! {
            () = &mut call => {}
            () = tokio::time::sleep(PATIENCE), if running.is_fresh => {
                running.outwaited();
                call.await;
            }
        }
        if running.is_fresh {
            running.gather(answered, start.elapsed()).await;
        }
    }
}

/// Starts a call. Its type is hidden here, because a call that ends starts the next one.
fn spawn<P: Part>(store: &Store, shard: ShardId) {
    // Without a runtime the node is stopping, and nobody waits for an answer.
    let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
    let call: Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(drive::<P>(store.clone(), shard));
    runtime.spawn(call);
}

/// Milliseconds until a deadline on the host's monotonic clock.
pub(super) fn left(deadline_ms: u64) -> Duration {
    Duration::from_millis(deadline_ms.saturating_sub(clock::monotonic_ms()))
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[derive(Debug, Clone, PartialEq)]
    struct Request {
        name: &'static str,
        key: Bytes,
        cost: Cost,
        deadline_ms: u64,
        is_abandoned: bool,
    }

    impl Part for Request {
        const RESULT_BYTES_MAX: usize = 100;

        fn lanes(_: &Store) -> &Lanes<Self> {
            unreachable!("lanes are tested one by one")
        }

        fn label(&self) -> u64 {
            1
        }

        fn cost(&self) -> Cost {
            self.cost
        }

        fn deadline_ms(&self) -> u64 {
            self.deadline_ms
        }

        fn exclusive(&self) -> impl Iterator<Item = &Bytes> {
            std::iter::once(&self.key)
        }

        fn is_abandoned(&self) -> bool {
            self.is_abandoned
        }

        async fn call(_: Store, _: ShardId, _: Vec<Self>) {
            unreachable!("lanes are tested without calls")
        }
    }

    fn request(name: &'static str, key: &'static str) -> Request {
        let cost = Cost { keys: 1, bytes: 10, result_bytes: 1 };
        Request { name, key: Bytes::from_static(key.as_bytes()), cost, deadline_ms: 1_000, is_abandoned: false }
    }

    fn lane(requests: impl IntoIterator<Item = Request>) -> Lane<Request> {
        let mut lane = Lane::default();
        for request in requests {
            lane.offer(request).expect("room");
        }
        lane
    }

    /// Whether the call that gathers is told to leave.
    fn leaves(complete: &Notify) -> bool {
        complete.notified().now_or_never().is_some()
    }

    #[test]
    fn a_call_leaves_when_those_it_answered_are_back_beside_those_who_wait() {
        let mut lane = lane([request("waits", "a")]);
        let complete = lane.gathering.begin(lane.waiting.len(), 2).expect("nobody failed to come so far");
        lane.offer(request("back", "b")).expect("room");
        assert!(!leaves(&complete));
        lane.offer(request("back too", "c")).expect("room");
        assert!(leaves(&complete));
        lane.gathering.end(true);
        lane.offer(request("later", "d")).expect("room");
        assert!(!leaves(&complete), "nothing gathers");
    }

    #[test]
    fn calls_wait_ever_more_seldom_for_callers_who_do_not_come_back() {
        let mut gathering = Gathering::default();
        let mut hasty = Vec::new();
        for _ in 0..12 {
            assert!(gathering.begin(0, 1).is_some());
            gathering.end(false);
            hasty.push(std::iter::repeat_with(|| gathering.begin(0, 1)).take_while(Option::is_none).count());
        }
        assert_eq!(hasty, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 1024]);
        gathering.end(true);
        assert!(gathering.begin(0, 1).is_some(), "once they come, calls wait again");
    }

    fn names(parts: &[Request]) -> Vec<&'static str> {
        parts.iter().map(|part| part.name).collect()
    }

    #[test]
    fn requests_gather_behind_a_fresh_call_and_leave_together() {
        let mut lane = lane([request("first", "a")]);
        assert!(lane.starts());
        assert_eq!(names(&lane.take().0), ["first"]);
        for (name, key) in [("second", "b"), ("third", "c")] {
            lane.offer(request(name, key)).expect("room");
            assert!(!lane.starts(), "a call has just left");
        }
        // The call came back, or took too long to be waited for.
        lane.fresh -= 1;
        assert!(lane.starts());
        assert_eq!(names(&lane.take().0), ["second", "third"]);
        assert!(!lane.starts(), "nothing waits");
    }

    #[test]
    fn calls_under_way_are_bounded() {
        let mut lane = lane([request("first", "a")]);
        for _ in 0..CALLS_MAX {
            assert!(lane.starts());
            lane.fresh -= 1;
        }
        assert!(!lane.starts());
    }

    #[test]
    fn requests_for_one_key_never_share_a_call_and_keep_their_order() {
        let mut lane = lane([request("1", "a"), request("2", "a"), request("3", "b"), request("4", "a")]);
        let (parts, conflicts) = lane.take();
        assert_eq!((names(&parts), conflicts), (vec!["1", "3"], true));
        let (parts, conflicts) = lane.take();
        assert_eq!((names(&parts), conflicts), (vec!["2"], true));
        let (parts, conflicts) = lane.take();
        assert_eq!((names(&parts), conflicts), (vec!["4"], false));
    }

    #[test]
    fn a_call_is_bounded_and_a_large_request_goes_alone() {
        let costs =
            |cost: Cost| lane([("1", "a"), ("2", "b"), ("3", "c")].map(|(n, k)| Request { cost, ..request(n, k) }));
        for cost in [
            Cost { keys: CALL_KEYS_MAX / 2, ..Cost::default() },
            Cost { bytes: CALL_BYTES_MAX / 2, ..Cost::default() },
            Cost { result_bytes: 50, ..Cost::default() },
        ] {
            let mut lane = costs(cost);
            assert_eq!(names(&lane.take().0), ["1", "2"], "{cost:?}");
            assert_eq!(names(&lane.take().0), ["3"], "{cost:?}");
        }
        let mut lane = costs(Cost { bytes: 2 * CALL_BYTES_MAX, ..Cost::default() });
        assert_eq!(names(&lane.take().0), ["1"]);
    }

    #[test]
    fn a_short_deadline_is_not_imposed_on_others_and_nobody_is_served_who_has_gone() {
        let patient = Request { deadline_ms: 1_000 + DEADLINES_WITHIN_MS + 1, ..request("patient", "b") };
        let gone = Request { is_abandoned: true, ..request("gone", "c") };
        let mut lane = lane([request("hasty", "a"), gone, patient]);
        assert_eq!(names(&lane.take().0), ["hasty"]);
        assert_eq!(names(&lane.take().0), ["patient"]);
        assert!(lane.take().0.is_empty());
    }

    #[test]
    fn a_full_lane_refuses() {
        let mut lane = lane((0..WAITING_MAX).map(|_| request("one of many", "a")));
        assert!(lane.offer(request("one too many", "a")).is_err());
    }
}
