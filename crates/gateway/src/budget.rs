//! One budget for the bytes that a node holds for its clients, on every protocol: requests that have not
//! arrived completely, requests in progress, and answers that were not read.
//!
//! Each connection has an [`Account`], and what it holds is a [`Charge`] on it. While the budget is nearly
//! used up, connections read no further ([`Account::room`]). If that does not help, because clients neither
//! complete their requests nor read their answers, the accounts that hold the most for the longest time are
//! made to close. Small holders are kept waiting last: a share of the budget is for them alone.
//!
//! Invariant: what is held exceeds the budget only by answers that the store had already given.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    sync::Notify,
    time::{Instant, sleep},
};

/// Default of a node's budget.
pub const CLIENT_BYTES_DEFAULT: usize = 96 << 20;
/// Least budget: the largest requests of several clients fit.
pub const CLIENT_BYTES_MIN: usize = 64 << 20;

/// An account that holds at most this much is small.
const SMALL_BYTES: usize = 64 << 10;
/// What accounts that are not small may use together, in eighths of the budget.
const LARGE_EIGHTHS: usize = 6;
/// How far the budget is relieved when accounts must close, in eighths.
const RELIEVED_EIGHTHS: usize = 5;
/// How long an account must have waited for its client before it is closed in favour of others that wait.
const STALLED_AFTER: Duration = Duration::from_secs(1);
/// How often those who wait look for stalled accounts.
const RELIEF_INTERVAL: Duration = Duration::from_millis(100);
/// `since_ms` of an account that does not wait for its client.
const WORKING: u64 = u64::MAX;

/// The budget. Clones share it.
#[derive(Clone)]
pub struct ClientBudget(Arc<Inner>);

struct Inner {
    bytes_max: usize,
    held: AtomicUsize,
    accounts: Mutex<Accounts>,
    /// One of those who wait for room may look again.
    freed: Notify,
    started: Instant,
    /// When stalled accounts were last looked for, in milliseconds since the start.
    relieved_ms: AtomicU64,
    gauge: metrics::Gauge,
}

#[derive(Default)]
struct Accounts {
    opened: u64,
    open: BTreeMap<u64, Arc<State>>,
}

/// What one connection holds.
struct State {
    budget: Arc<Inner>,
    held: AtomicUsize,
    /// Since when the connection has waited for its client, in milliseconds since the budget's start.
    since_ms: AtomicU64,
    is_closing: AtomicBool,
    close: Notify,
}

/// Which accounts may be closed to relieve the budget.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Relief {
    /// The budget is exceeded: any account.
    Exceeded,
    /// Others wait for room: accounts that wait for their clients for too long.
    Wanted,
}

impl ClientBudget {
    /// A budget of `bytes_max`, at least [`CLIENT_BYTES_MIN`].
    #[must_use]
    pub fn new(bytes_max: usize) -> Self {
        Self(Arc::new(Inner {
            bytes_max: bytes_max.max(CLIENT_BYTES_MIN),
            held: AtomicUsize::new(0),
            accounts: Mutex::default(),
            freed: Notify::new(),
            started: Instant::now(),
            relieved_ms: AtomicU64::new(0),
            gauge: metrics::gauge!("flotilla_client_bytes"),
        }))
    }

    /// Opens the account of a connection.
    #[must_use]
    pub fn open(&self) -> Account {
        let state = Arc::new(State {
            budget: self.0.clone(),
            held: AtomicUsize::new(0),
            since_ms: AtomicU64::new(WORKING),
            is_closing: AtomicBool::new(false),
            close: Notify::new(),
        });
        let mut accounts = self.0.accounts.lock();
        accounts.opened += 1;
        let id = accounts.opened;
        accounts.open.insert(id, state.clone());
        Account { id, state }
    }

    /// Bytes that all accounts hold.
    #[must_use]
    pub fn held(&self) -> usize {
        self.0.held.load(Ordering::Relaxed)
    }
}

impl Inner {
    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(WORKING - 1)
    }

    /// Tells the worst accounts to close until the rest fits. The worst one holds the most bytes for the
    /// longest time, as their product.
    fn relieve(&self, relief: Relief, now_ms: u64) {
        let accounts = self.accounts.lock();
        let held = |state: &State| state.held.load(Ordering::Relaxed);
        let closing: usize = accounts
            .open
            .values()
            .filter(|state| state.is_closing.load(Ordering::Relaxed))
            .map(|state| held(state))
            .sum();
        let mut left = self.held.load(Ordering::Relaxed).saturating_sub(closing);
        let trigger = match relief {
            Relief::Exceeded => self.bytes_max,
            Relief::Wanted => self.bytes_max / 8 * RELIEVED_EIGHTHS,
        };
        if left <= trigger {
            return;
        }
        let stalled_ms = STALLED_AFTER.as_millis() as u64;
        let mut worst: Vec<(u128, usize, &Arc<State>)> = accounts
            .open
            .values()
            .filter(|state| !state.is_closing.load(Ordering::Relaxed) && held(state) > 0)
            .filter_map(|state| {
                let waited_ms = now_ms.saturating_sub(state.since_ms.load(Ordering::Relaxed));
                let may_close = relief == Relief::Exceeded || waited_ms >= stalled_ms;
                may_close.then(|| (held(state) as u128 * u128::from(waited_ms + 1), held(state), state))
            })
            .collect();
        worst.sort_unstable_by_key(|(score, ..)| std::cmp::Reverse(*score));
        for (_, bytes, state) in worst {
            if left <= self.bytes_max / 8 * RELIEVED_EIGHTHS {
                break;
            }
            left = left.saturating_sub(bytes);
            state.is_closing.store(true, Ordering::Relaxed);
            state.close.notify_waiters();
            metrics::counter!("flotilla_client_connections_closed_total").increment(1);
        }
    }

    /// As [`relieve`](Self::relieve), for those who wait; at most once in each interval.
    fn relieve_for_waiting(&self) {
        let now_ms = self.now_ms();
        let last_ms = self.relieved_ms.load(Ordering::Relaxed);
        if now_ms.saturating_sub(last_ms) >= RELIEF_INTERVAL.as_millis() as u64
            && self.relieved_ms.compare_exchange(last_ms, now_ms, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        {
            self.relieve(Relief::Wanted, now_ms);
        }
    }
}

impl State {
    fn add(&self, bytes: usize) {
        if bytes == 0 {
            return;
        }
        if self.held.fetch_add(bytes, Ordering::Relaxed) == 0 {
            self.since_ms.store(self.budget.now_ms(), Ordering::Relaxed);
        }
        self.budget.gauge.increment(bytes as f64);
        let total = self.budget.held.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if total > self.budget.bytes_max {
            self.budget.relieve(Relief::Exceeded, self.budget.now_ms());
        }
    }

    fn remove(&self, bytes: usize) {
        if bytes == 0 {
            return;
        }
        self.held.fetch_sub(bytes, Ordering::Relaxed);
        self.budget.held.fetch_sub(bytes, Ordering::Relaxed);
        self.budget.gauge.decrement(bytes as f64);
        self.budget.freed.notify_one();
    }
}

/// The share of one connection in the budget.
pub struct Account {
    id: u64,
    state: Arc<State>,
}

impl Account {
    /// Counts bytes that are already held, also above the budget: then the worst accounts are made to close.
    #[must_use]
    pub fn charge(&self, bytes: usize) -> Charge {
        self.state.add(bytes);
        Charge { state: self.state.clone(), bytes }
    }

    /// Waits until there is room for `bytes`, and counts them.
    pub async fn reserve(&self, bytes: usize) -> Charge {
        self.room(bytes).await;
        self.charge(bytes)
    }

    /// Whether there is room for `bytes` more. Accounts that are not small leave some room to others.
    #[must_use]
    pub fn has_room(&self, bytes: usize) -> bool {
        let budget = &self.state.budget;
        let own = self.state.held.load(Ordering::Relaxed) + bytes;
        let limit = if own <= SMALL_BYTES { budget.bytes_max } else { budget.bytes_max / 8 * LARGE_EIGHTHS };
        budget.held.load(Ordering::Relaxed) + bytes <= limit
    }

    /// Waits until there is room for `bytes` more. Meanwhile, accounts that stall are made to close.
    pub async fn room(&self, bytes: usize) {
        let budget = &self.state.budget;
        loop {
            let freed = budget.freed.notified();
            if self.has_room(bytes) {
                // There may be room for the next one, too.
                budget.freed.notify_one();
                return;
            }
            budget.relieve_for_waiting();
            tokio::select! {
                () = freed => {}
                () = sleep(RELIEF_INTERVAL) => {}
            }
        }
    }

    /// The client has done its part: what the account holds is in the node's own hands until it next holds
    /// something new, or [`waits_for_client`](Self::waits_for_client).
    pub fn works(&self) {
        self.state.since_ms.store(WORKING, Ordering::Relaxed);
    }

    /// The connection waits for its client: for the rest of a request, or for an answer to be read. It has
    /// done so since the first of such calls after [`works`](Self::works).
    pub fn waits_for_client(&self) {
        let now_ms = self.state.budget.now_ms();
        let _ = self.state.since_ms.compare_exchange(WORKING, now_ms, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Whether the connection must close, to relieve the budget.
    #[must_use]
    pub fn is_closing(&self) -> bool {
        self.state.is_closing.load(Ordering::Relaxed)
    }

    /// Tells the connection to close.
    pub fn close(&self) {
        self.state.is_closing.store(true, Ordering::Relaxed);
        self.state.close.notify_waiters();
    }

    /// Waits until the connection must close.
    pub async fn closing(&self) {
        let notified = self.state.close.notified();
        tokio::pin!(notified);
        // Registered before the flag is read, so that no notification is missed.
        notified.as_mut().enable();
        if !self.is_closing() {
            notified.await;
        }
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.state.budget.accounts.lock().open.remove(&self.id);
    }
}

/// Bytes counted on an account until this is dropped.
pub struct Charge {
    state: Arc<State>,
    bytes: usize,
}

impl Charge {
    /// The bytes counted.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Counts `bytes` from now on.
    pub fn set(&mut self, bytes: usize) {
        let before = std::mem::replace(&mut self.bytes, bytes);
        if bytes > before {
            self.state.add(bytes - before);
        } else {
            self.state.remove(before - bytes);
        }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.state.remove(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    const MIB: usize = 1 << 20;
    /// Long enough that only a hang exceeds it.
    const HANG: Duration = Duration::from_secs(30);
    /// Longer than stalled accounts are tolerated.
    const LONG_MS: u64 = 5_000;

    fn budget() -> ClientBudget {
        ClientBudget::new(CLIENT_BYTES_MIN)
    }

    #[tokio::test]
    async fn large_holders_wait_before_small_ones() {
        let budget = budget();
        let (large, small) = (budget.open(), budget.open());
        let held = large.charge(CLIENT_BYTES_MIN / 8 * LARGE_EIGHTHS);
        large.works();
        assert!(!large.has_room(1) && !small.has_room(SMALL_BYTES + 1));
        assert!(small.has_room(SMALL_BYTES));
        let reserved = large.reserve(MIB);
        tokio::pin!(reserved);
        assert!(timeout(RELIEF_INTERVAL / 2, &mut reserved).await.is_err(), "there is no room");
        drop(held);
        assert_eq!(timeout(HANG, reserved).await.map(|charge| charge.bytes()).ok(), Some(MIB));
    }

    #[tokio::test]
    async fn those_who_wait_get_the_room_of_those_who_stall() {
        let budget = budget();
        let stalled: Vec<_> = (0..12).map(|_| budget.open()).collect();
        let held = stalled.iter().map(|account| async {
            let held = account.charge(4 * MIB);
            account.closing().await;
            drop(held);
        });
        let (works, waits) = (budget.open(), budget.open());
        let _working = works.charge(4 * MIB);
        works.works();
        let all_close = futures_util::future::join_all(held);
        tokio::select! {
            biased;
            _ = all_close => panic!("more than necessary have closed"),
            reserved = timeout(HANG, waits.reserve(MIB)) => assert!(reserved.is_ok(), "nobody has closed"),
        }
        assert!(stalled.iter().any(Account::is_closing) && stalled.iter().any(|account| !account.is_closing()));
        assert!(!works.is_closing() && !waits.is_closing());
    }

    #[test]
    fn accounts_that_have_not_stalled_are_not_closed_for_those_who_wait() {
        let budget = budget();
        let (stalls, works) = (budget.open(), budget.open());
        let _held = [stalls.charge(30 * MIB), works.charge(30 * MIB)];
        works.works();
        let now_ms = budget.0.now_ms();
        budget.0.relieve(Relief::Wanted, now_ms);
        assert!(!stalls.is_closing(), "it has just begun");
        budget.0.relieve(Relief::Wanted, now_ms + LONG_MS);
        assert!(stalls.is_closing() && !works.is_closing());
        let again = budget.open();
        let _more = again.charge(MIB);
        budget.0.relieve(Relief::Wanted, now_ms + 2 * LONG_MS);
        assert!(!again.is_closing(), "what will be freed is enough");
    }

    #[test]
    fn an_exceeded_budget_closes_who_holds_most_for_longest() {
        let budget = budget();
        let (slow, quick, works) = (budget.open(), budget.open(), budget.open());
        let _held = [slow.charge(20 * MIB), works.charge(20 * MIB)];
        works.works();
        quick.state.since_ms.store(LONG_MS, Ordering::Relaxed);
        quick.state.held.store(21 * MIB, Ordering::Relaxed);
        budget.0.held.store(61 * MIB, Ordering::Relaxed);
        budget.0.relieve(Relief::Exceeded, LONG_MS);
        assert!(!slow.is_closing(), "within the budget nobody is closed");
        budget.0.held.store(65 * MIB, Ordering::Relaxed);
        budget.0.relieve(Relief::Exceeded, LONG_MS);
        assert!(slow.is_closing() && !works.is_closing());
    }

    #[test]
    fn what_is_dropped_is_no_longer_held() {
        let budget = budget();
        let account = budget.open();
        let mut charge = account.charge(10);
        charge.set(30);
        charge.set(20);
        assert_eq!(budget.held(), 20);
        drop(account);
        assert_eq!(budget.held(), 20, "a charge may outlive its connection");
        drop(charge);
        assert_eq!((budget.held(), budget.0.accounts.lock().open.len()), (0, 0));
    }
}
