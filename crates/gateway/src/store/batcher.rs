//! One batcher for each shard: requests of many callers are gathered while a call is in flight, and sent in
//! few calls.
//!
//! What a call costs beside its keys and values (a command's session, a frame, a log entry, a round of
//! consensus) is paid once for all requests that share it. A request waits only while a call that started
//! less than [`JOIN_WAIT`] ago is in flight, or while a call that just ended waits for its callers to return
//! (see [`Gathering::begin`]): a lone caller never waits, and batches grow with the load by themselves.
//!
//! Invariants: requests that touch the same key exclusively never share a call, because a call's writes share
//! one version; a request whose caller has gone is never sent. What a call does is up to the request type:
//! see [`Batchable`].
//!
//! Each batcher has its own lock, and nothing under it grows with the number of pending requests, except by
//! what a call takes. The lock of the table of batchers is held only to find one.

use std::{
    collections::{BTreeMap, HashSet},
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use flotilla_control::clock;
use flotilla_types::ShardId;
use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};

use super::Store;

/// How long requests wait for a call in flight before another one starts beside it.
const JOIN_WAIT: Duration = Duration::from_millis(5);
/// A call waits for the callers it just answered for as long as it took, but at most this long.
const GATHER_WAIT_MAX: Duration = Duration::from_millis(4);
/// Calls that start without gathering after the first wait in vain; doubles with each further one.
const BACKOFF_CALLS_MIN: u32 = 1;
/// Upper bound of that number.
const BACKOFF_CALLS_MAX: u32 = 1_024;
/// Calls of one batcher in flight at a time.
const CALLS_MAX: usize = 64;
/// Requests pending in one batcher; more are refused as busy.
const PENDING_MAX: usize = 16_384;
/// Bytes of keys and values in one call; a single request may exceed it.
const CALL_BYTES_MAX: usize = 256 << 10;
/// Keys of one call; a single request may exceed it.
const CALL_KEYS_MAX: usize = 256;
/// Pending requests examined for one call: bounds the search past requests that cannot join it.
const EXAMINED_MAX: usize = 1_024;
/// Requests share a call only when their deadlines are this close: the earliest ends the call for all.
const DEADLINES_WITHIN_MS: u64 = 100;

/// How much of a call's limits a request uses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Cost {
    pub(super) keys: usize,
    pub(super) bytes: usize,
    /// Bytes of the answer, where they are bounded.
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
pub(super) trait Batchable: Send + Sized + 'static {
    /// Bytes of results in one call.
    const RESULT_BYTES_MAX: usize;

    /// The batchers for requests of this type.
    fn batchers(store: &Store) -> &Batchers<Self>;
    /// Only requests with the same batch key share a call.
    fn batch_key(&self) -> u64;
    fn cost(&self) -> Cost;
    fn deadline_ms(&self) -> u64;
    /// Keys that no other request of the call may touch.
    fn exclusive_keys(&self) -> impl Iterator<Item = &Bytes>;
    /// Whether the caller no longer waits for the answer.
    fn is_abandoned(&self) -> bool;
    /// Sends requests to a shard as one call, and answers every one of them.
    fn call(store: Store, shard: ShardId, requests: Vec<Self>) -> impl Future<Output = ()> + Send;
}

/// The batchers of all shards.
#[derive(Debug)]
pub(super) struct Batchers<R> {
    by_shard: Mutex<BTreeMap<ShardId, SharedBatcher<R>>>,
    /// Unique over all batchers: a ticket must name no other request after its batcher was dropped.
    next_ticket: AtomicU64,
}

type SharedBatcher<R> = Arc<Mutex<Batcher<R>>>;

/// The pending requests of one shard, and how many calls are in flight.
#[derive(Debug)]
struct Batcher<R> {
    /// Requests by ticket, oldest first.
    pending: BTreeMap<u64, R>,
    calls: usize,
    /// Calls in flight that pending requests still wait for: they started less than [`JOIN_WAIT`] ago.
    recent_calls: usize,
    gathering: Gathering,
}

/// The wait of a finished call for its callers to return, with backoff while they do not.
#[derive(Debug, Default)]
struct Gathering {
    /// Number of pending requests that ends the wait; 0 while no call waits.
    expected: usize,
    /// Notified when that many requests are pending.
    complete: Arc<Notify>,
    /// Calls left that start without a wait, because callers did not return.
    immediate_calls: u32,
    /// Value of `immediate_calls` after the last wait; 0 if all callers returned.
    backoff_calls: u32,
}

impl Gathering {
    /// Ends the wait if enough requests are pending.
    fn on_pending(&mut self, pending: usize) {
        if self.expected > 0 && pending >= self.expected {
            self.expected = 0;
            self.complete.notify_one();
        }
    }

    /// Begins a wait, or returns `None` during backoff. Callers often send their next request as soon as they
    /// are answered. The wait ends when as many requests as were just answered have joined those already
    /// pending, so that two groups of callers do not keep taking turns in separate calls.
    fn begin(&mut self, pending: usize, answered: usize) -> Option<Arc<Notify>> {
        if self.immediate_calls > 0 {
            self.immediate_calls -= 1;
            return None;
        }
        self.expected = pending + answered;
        Some(self.complete.clone())
    }

    /// Ends the wait; `all_returned` says whether the expected number of requests arrived.
    fn end(&mut self, all_returned: bool) {
        self.expected = 0;
        self.backoff_calls =
            if all_returned { 0 } else { (2 * self.backoff_calls).clamp(BACKOFF_CALLS_MIN, BACKOFF_CALLS_MAX) };
        self.immediate_calls = self.backoff_calls;
    }
}

/// Too many requests are pending.
#[derive(Debug)]
pub(super) struct QueueFull;

impl<R> Default for Batchers<R> {
    fn default() -> Self {
        Self { by_shard: Mutex::default(), next_ticket: AtomicU64::new(0) }
    }
}

impl<R> Default for Batcher<R> {
    fn default() -> Self {
        Self { pending: BTreeMap::new(), calls: 0, recent_calls: 0, gathering: Gathering::default() }
    }
}

impl<R: Batchable> Batcher<R> {
    /// Queues a request under a ticket above all earlier ones.
    fn push(&mut self, ticket: u64, request: R) -> Result<u64, QueueFull> {
        if self.pending.len() >= PENDING_MAX {
            return Err(QueueFull);
        }
        self.pending.insert(ticket, request);
        self.gathering.on_pending(self.pending.len());
        Ok(ticket)
    }

    /// Counts another call as started if one should start now. When true, the caller must start it.
    fn begin_call(&mut self) -> bool {
        let begins = self.recent_calls == 0 && self.calls < CALLS_MAX && !self.pending.is_empty();
        if begins {
            self.recent_calls += 1;
            self.calls += 1;
        }
        begins
    }

    /// Takes the requests of one call, in order. The flag says whether requests remain that cannot share this
    /// call but could go in a call of their own.
    fn take_batch(&mut self) -> (Vec<R>, bool) {
        let mut batch: Vec<R> = Vec::new();
        let mut cost = Cost::default();
        let mut keys = HashSet::new();
        let mut skipped = Vec::new();
        let mut conflicts = false;
        for _ in 0..EXAMINED_MAX {
            let Some((ticket, request)) = self.pending.pop_first() else { break };
            if request.is_abandoned() {
                continue;
            }
            let sum = cost.plus(request.cost());
            if !batch.is_empty() && !sum.fits(R::RESULT_BYTES_MAX) {
                skipped.push((ticket, request));
                break;
            }
            let is_compatible = batch.first().is_none_or(|first| {
                first.batch_key() == request.batch_key()
                    && first.deadline_ms().abs_diff(request.deadline_ms()) <= DEADLINES_WITHIN_MS
            });
            if !is_compatible || request.exclusive_keys().any(|key| keys.contains(key)) {
                conflicts = true;
                skipped.push((ticket, request));
                continue;
            }
            keys.extend(request.exclusive_keys().cloned());
            cost = sum;
            batch.push(request);
        }
        self.pending.extend(skipped);
        (batch, conflicts)
    }
}

impl<R: Batchable> Batchers<R> {
    /// Queues a request for a shard. Returns its ticket.
    pub(super) fn submit(store: &Store, shard: ShardId, request: R) -> Result<u64, QueueFull> {
        let batchers = R::batchers(store);
        let batcher = batchers.batcher(shard);
        // The ticket is taken under the batcher's lock, so that tickets order its requests.
        update(store, shard, &batcher, |batcher| {
            batcher.push(batchers.next_ticket.fetch_add(1, Ordering::Relaxed), request)
        })
    }

    fn batcher(&self, shard: ShardId) -> SharedBatcher<R> {
        self.by_shard.lock().entry(shard).or_default().clone()
    }

    /// Removes a pending request. `false` if it was already sent or answered.
    pub(super) fn cancel(&self, shard: ShardId, ticket: u64) -> bool {
        let batcher = self.by_shard.lock().get(&shard).cloned();
        batcher.is_some_and(|batcher| batcher.lock().pending.remove(&ticket).is_some())
    }

    /// Drops the batchers of shards that are gone and that are not in use.
    pub(super) fn retain(&self, exists: impl Fn(ShardId) -> bool) {
        // Calls and submitting callers hold a batcher; under this lock no other task can get hold of it.
        self.by_shard.lock().retain(|shard, batcher| {
            exists(*shard) || Arc::strong_count(batcher) > 1 || !batcher.lock().pending.is_empty()
        });
    }
}

/// Changes a batcher, then starts another call beside those in flight if one is due.
fn update<R: Batchable, T>(
    store: &Store,
    shard: ShardId,
    batcher: &SharedBatcher<R>,
    change: impl FnOnce(&mut Batcher<R>) -> T,
) -> T {
    let (changed, begins) = {
        let mut batcher = batcher.lock();
        (change(&mut batcher), batcher.begin_call())
    };
    if begins {
        spawn_call::<R>(store, shard, batcher);
    }
    changed
}

/// A call in flight. Dropping it frees its slot, even after a panic, so that a batcher never waits for a lost
/// call.
struct InFlightCall<R: Batchable> {
    store: Store,
    shard: ShardId,
    batcher: SharedBatcher<R>,
    is_recent: bool,
}

impl<R: Batchable> InFlightCall<R> {
    fn update<T>(&self, change: impl FnOnce(&mut Batcher<R>) -> T) -> T {
        update(&self.store, self.shard, &self.batcher, change)
    }

    /// Lets pending requests start a call of their own.
    fn release_pending(&mut self) {
        let was_recent = std::mem::take(&mut self.is_recent);
        self.update(|batcher| batcher.recent_calls -= usize::from(was_recent));
    }

    /// Waits for the callers of a call that took `took` to return, unless they recently did not.
    async fn gather(&self, answered: usize, took: Duration) {
        let begin = |batcher: &mut Batcher<R>| batcher.gathering.begin(batcher.pending.len(), answered);
        let Some(complete) = self.update(begin) else { return };
        let all_returned = tokio::time::timeout(took.min(GATHER_WAIT_MAX), complete.notified()).await.is_ok();
        self.update(|batcher| batcher.gathering.end(all_returned));
    }
}

impl<R: Batchable> Drop for InFlightCall<R> {
    fn drop(&mut self) {
        self.update(|batcher| {
            batcher.calls -= 1;
            batcher.recent_calls -= usize::from(self.is_recent);
        });
    }
}

/// Makes one call after another with the pending requests, until there are none or a call exceeds
/// [`JOIN_WAIT`].
async fn run_calls<R: Batchable>(store: Store, shard: ShardId, batcher: SharedBatcher<R>) {
    let mut in_flight = InFlightCall::<R> { store: store.clone(), shard, batcher, is_recent: true };
    while in_flight.is_recent {
        let (batch, leaves_others) = in_flight.update(Batcher::take_batch);
        if batch.is_empty() {
            return;
        }
        if leaves_others {
            // What cannot share this call need not wait for it either.
            in_flight.release_pending();
        }
        let (answered, start) = (batch.len(), Instant::now());
        let call = R::call(store.clone(), shard, batch);
        tokio::pin!(call);
        tokio::select! {
            () = &mut call => {}
            () = tokio::time::sleep(JOIN_WAIT), if in_flight.is_recent => {
                in_flight.release_pending();
                call.await;
            }
        }
        if in_flight.is_recent {
            in_flight.gather(answered, start.elapsed()).await;
        }
    }
}

/// Starts a call. The future is boxed because its type is recursive: a call that ends starts the next one.
fn spawn_call<R: Batchable>(store: &Store, shard: ShardId, batcher: &SharedBatcher<R>) {
    // Without a runtime the node is stopping, and no caller waits for an answer.
    let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
    let call: Pin<Box<dyn Future<Output = ()> + Send>> =
        Box::pin(run_calls::<R>(store.clone(), shard, batcher.clone()));
    runtime.spawn(call);
}

/// Time until a deadline on the host's monotonic clock.
pub(super) fn time_left(deadline_ms: u64) -> Duration {
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

    impl Batchable for Request {
        const RESULT_BYTES_MAX: usize = 100;

        fn batchers(_: &Store) -> &Batchers<Self> {
            unreachable!("each test has a single batcher")
        }

        fn batch_key(&self) -> u64 {
            1
        }

        fn cost(&self) -> Cost {
            self.cost
        }

        fn deadline_ms(&self) -> u64 {
            self.deadline_ms
        }

        fn exclusive_keys(&self) -> impl Iterator<Item = &Bytes> {
            std::iter::once(&self.key)
        }

        fn is_abandoned(&self) -> bool {
            self.is_abandoned
        }

        async fn call(_: Store, _: ShardId, _: Vec<Self>) {
            unreachable!("no test makes calls")
        }
    }

    fn request(name: &'static str, key: &'static str) -> Request {
        let cost = Cost { keys: 1, bytes: 10, result_bytes: 1 };
        Request { name, key: Bytes::from_static(key.as_bytes()), cost, deadline_ms: 1_000, is_abandoned: false }
    }

    /// Queues a request under the next ticket.
    fn push(batcher: &mut Batcher<Request>, request: Request) -> Result<u64, QueueFull> {
        let next = batcher.pending.last_key_value().map_or(0, |(last, _)| last + 1);
        batcher.push(next, request)
    }

    fn batcher(requests: impl IntoIterator<Item = Request>) -> Batcher<Request> {
        let mut batcher = Batcher::default();
        for request in requests {
            push(&mut batcher, request).expect("room");
        }
        batcher
    }

    /// Whether the wait of the gathering call is over.
    fn is_complete(complete: &Notify) -> bool {
        complete.notified().now_or_never().is_some()
    }

    #[test]
    fn gathering_ends_when_the_answered_callers_have_joined_the_pending_ones() {
        let mut batcher = batcher([request("pending", "a")]);
        let complete = batcher.gathering.begin(batcher.pending.len(), 2).expect("no backoff yet");
        push(&mut batcher, request("returned", "b")).expect("room");
        assert!(!is_complete(&complete));
        push(&mut batcher, request("returned too", "c")).expect("room");
        assert!(is_complete(&complete));
        batcher.gathering.end(true);
        push(&mut batcher, request("later", "d")).expect("room");
        assert!(!is_complete(&complete), "no call is gathering");
    }

    #[test]
    fn gathering_backs_off_exponentially_while_callers_do_not_return() {
        let mut gathering = Gathering::default();
        let mut immediate = Vec::new();
        for _ in 0..12 {
            assert!(gathering.begin(0, 1).is_some());
            gathering.end(false);
            immediate.push(std::iter::repeat_with(|| gathering.begin(0, 1)).take_while(Option::is_none).count());
        }
        assert_eq!(immediate, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 1024]);
        gathering.end(true);
        assert!(gathering.begin(0, 1).is_some(), "a wait that succeeds resets the backoff");
    }

    fn names(batch: &[Request]) -> Vec<&'static str> {
        batch.iter().map(|request| request.name).collect()
    }

    #[test]
    fn requests_gather_during_a_recent_call_and_share_the_next_one() {
        let mut batcher = batcher([request("first", "a")]);
        assert!(batcher.begin_call());
        assert_eq!(names(&batcher.take_batch().0), ["first"]);
        for (name, key) in [("second", "b"), ("third", "c")] {
            push(&mut batcher, request(name, key)).expect("room");
            assert!(!batcher.begin_call(), "a call has just started");
        }
        // The call ended, or took too long to be waited for.
        batcher.recent_calls -= 1;
        assert!(batcher.begin_call());
        assert_eq!(names(&batcher.take_batch().0), ["second", "third"]);
        assert!(!batcher.begin_call(), "nothing is pending");
    }

    #[test]
    fn calls_in_flight_are_bounded() {
        let mut batcher = batcher([request("first", "a")]);
        for _ in 0..CALLS_MAX {
            assert!(batcher.begin_call());
            batcher.recent_calls -= 1;
        }
        assert!(!batcher.begin_call());
    }

    #[test]
    fn requests_for_one_key_never_share_a_call_and_keep_their_order() {
        let mut batcher = batcher([request("1", "a"), request("2", "a"), request("3", "b"), request("4", "a")]);
        let (batch, conflicts) = batcher.take_batch();
        assert_eq!((names(&batch), conflicts), (vec!["1", "3"], true));
        let (batch, conflicts) = batcher.take_batch();
        assert_eq!((names(&batch), conflicts), (vec!["2"], true));
        let (batch, conflicts) = batcher.take_batch();
        assert_eq!((names(&batch), conflicts), (vec!["4"], false));
    }

    #[test]
    fn a_call_is_bounded_and_a_large_request_goes_alone() {
        let costs =
            |cost: Cost| batcher([("1", "a"), ("2", "b"), ("3", "c")].map(|(n, k)| Request { cost, ..request(n, k) }));
        for cost in [
            Cost { keys: CALL_KEYS_MAX / 2, ..Cost::default() },
            Cost { bytes: CALL_BYTES_MAX / 2, ..Cost::default() },
            Cost { result_bytes: 50, ..Cost::default() },
        ] {
            let mut batcher = costs(cost);
            assert_eq!(names(&batcher.take_batch().0), ["1", "2"], "{cost:?}");
            assert_eq!(names(&batcher.take_batch().0), ["3"], "{cost:?}");
        }
        let mut batcher = costs(Cost { bytes: 2 * CALL_BYTES_MAX, ..Cost::default() });
        assert_eq!(names(&batcher.take_batch().0), ["1"]);
    }

    #[test]
    fn distant_deadlines_do_not_share_a_call_and_abandoned_requests_are_dropped() {
        let distant = Request { deadline_ms: 1_000 + DEADLINES_WITHIN_MS + 1, ..request("distant", "b") };
        let abandoned = Request { is_abandoned: true, ..request("abandoned", "c") };
        let mut batcher = batcher([request("urgent", "a"), abandoned, distant]);
        assert_eq!(names(&batcher.take_batch().0), ["urgent"]);
        assert_eq!(names(&batcher.take_batch().0), ["distant"]);
        assert!(batcher.take_batch().0.is_empty());
    }

    #[test]
    fn a_full_batcher_refuses() {
        let mut batcher = batcher((0..PENDING_MAX).map(|_| request("one of many", "a")));
        assert!(push(&mut batcher, request("one too many", "a")).is_err());
    }

    /// One shard's batchers with a full queue of requests that conflict.
    fn full() -> Batchers<Request> {
        let batchers = Batchers::default();
        *batchers.batcher(ShardId(1)).lock() = batcher((0..PENDING_MAX).map(|_| request("one of many", "a")));
        batchers
    }

    #[test]
    fn a_cancelled_request_is_not_sent_and_others_keep_their_order() {
        let batchers = Batchers::default();
        *batchers.batcher(ShardId(1)).lock() = batcher([request("1", "a"), request("2", "b"), request("3", "c")]);
        assert!(batchers.cancel(ShardId(1), 1));
        assert!(!batchers.cancel(ShardId(1), 1), "it is gone");
        assert!(!batchers.cancel(ShardId(2), 0), "another shard's requests are not touched");
        assert_eq!(names(&batchers.batcher(ShardId(1)).lock().take_batch().0), ["1", "3"]);
        assert!(!batchers.cancel(ShardId(1), 0), "it was sent");
    }

    #[test]
    fn a_shard_whose_lock_is_held_does_not_hold_up_others() {
        let batchers = full();
        let held = batchers.batcher(ShardId(1));
        let _lock = held.lock();
        *batchers.batcher(ShardId(2)).lock() = batcher([request("1", "a")]);
        assert!(batchers.cancel(ShardId(2), 0));
    }

    #[test]
    fn batchers_of_dropped_shards_are_dropped_once_nobody_uses_them() {
        let batchers = full();
        let in_use = batchers.batcher(ShardId(2));
        batchers.batcher(ShardId(3));
        batchers.batcher(ShardId(4));
        let shards = || batchers.by_shard.lock().keys().map(|shard| shard.0).collect::<Vec<_>>();
        batchers.retain(|shard| shard == ShardId(4));
        assert_eq!(shards(), [1, 2, 4], "the first has pending requests, a call uses the second");
        drop(in_use);
        (0..PENDING_MAX as u64).for_each(|ticket| assert!(batchers.cancel(ShardId(1), ticket)));
        batchers.retain(|_| false);
        assert!(shards().is_empty());
    }
}
