//! Counts of incoming connections that have not proven who they are, and the rate of joins. Pure but for a lock: time
//! comes in as an argument.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

/// Bounds strangers in total and from one address.
#[derive(Debug)]
pub(crate) struct Strangers {
    total_max: usize,
    per_address_max: usize,
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    total: usize,
    by_address: HashMap<IpAddr, usize>,
}

impl Strangers {
    pub(crate) fn new(total_max: usize, per_address_max: usize) -> Arc<Self> {
        Arc::new(Self { total_max, per_address_max, counts: Mutex::default() })
    }

    /// Lets one more in, until its guard is dropped.
    pub(crate) fn enter(self: &Arc<Self>, address: IpAddr) -> Option<StrangerGuard> {
        let address = address.to_canonical();
        let mut counts = self.counts.lock();
        let here = counts.by_address.get(&address).copied().unwrap_or(0);
        if counts.total >= self.total_max || here >= self.per_address_max {
            return None;
        }
        counts.total += 1;
        counts.by_address.insert(address, here + 1);
        Some(StrangerGuard { strangers: self.clone(), address })
    }

    /// Whether so many are here that an address should be proven before more work is spent on it.
    pub(crate) fn is_crowded(&self) -> bool {
        self.counts.lock().total > self.total_max / 2
    }
}

/// One stranger.
#[derive(Debug)]
pub(crate) struct StrangerGuard {
    strangers: Arc<Strangers>,
    address: IpAddr,
}

impl Drop for StrangerGuard {
    fn drop(&mut self) {
        let mut counts = self.strangers.counts.lock();
        counts.total -= 1;
        if let Some(here) = counts.by_address.get_mut(&self.address) {
            *here -= 1;
            if *here == 0 {
                counts.by_address.remove(&self.address);
            }
        }
    }
}

/// Bounds how many events begin in one second.
#[derive(Debug)]
pub(crate) struct Rate {
    per_second_max: u32,
    window: Mutex<(Instant, u32)>,
}

impl Rate {
    pub(crate) fn new(per_second_max: u32, now: Instant) -> Self {
        Self { per_second_max, window: Mutex::new((now, 0)) }
    }

    /// Whether one more may begin now.
    pub(crate) fn allow(&self, now: Instant) -> bool {
        let mut window = self.window.lock();
        if now.duration_since(window.0) >= Duration::from_secs(1) {
            *window = (now, 0);
        }
        window.1 += 1;
        window.1 <= self.per_second_max
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
    const B: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));

    #[test]
    fn strangers_are_bounded_in_total_and_per_address() {
        let strangers = Strangers::new(3, 2);
        let first = strangers.enter(A).unwrap();
        let _second = strangers.enter(A).unwrap();
        assert!(strangers.is_crowded());
        assert!(strangers.enter(A).is_none());
        // The same address written as IPv6 is the same address.
        let IpAddr::V4(v4) = A else { unreachable!() };
        assert!(strangers.enter(v4.to_ipv6_mapped().into()).is_none());
        let _third = strangers.enter(B).unwrap();
        assert!(strangers.enter(B).is_none());
        drop(first);
        assert!(strangers.enter(B).is_some());
        drop(strangers.enter(A));
        assert_eq!(strangers.counts.lock().by_address.len(), 2);
    }

    #[test]
    fn rate_starts_afresh_each_second() {
        let start = Instant::now();
        let rate = Rate::new(2, start);
        assert_eq!([rate.allow(start), rate.allow(start), rate.allow(start)], [true, true, false]);
        assert!(rate.allow(start + Duration::from_secs(1)));
    }
}
