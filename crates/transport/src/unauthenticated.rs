//! Limits on unauthenticated incoming connections and on joins, in number and rate.
//!
//! Pure apart from a lock: the caller passes the time.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

/// Limits the number of unauthenticated connections, or of joins, in total and per IP address.
#[derive(Debug)]
pub(crate) struct UnauthenticatedLimits {
    total_max: usize,
    per_address_max: usize,
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    total: usize,
    by_address: HashMap<IpAddr, usize>,
}

impl UnauthenticatedLimits {
    pub(crate) fn new(total_max: usize, per_address_max: usize) -> Arc<Self> {
        Arc::new(Self { total_max, per_address_max, counts: Mutex::default() })
    }

    /// Counts one more connection until the guard is dropped; `None` at a limit.
    pub(crate) fn enter(self: &Arc<Self>, address: IpAddr) -> Option<UnauthenticatedGuard> {
        let address = address.to_canonical();
        let mut counts = self.counts.lock();
        let from_address = counts.by_address.get(&address).copied().unwrap_or(0);
        if counts.total >= self.total_max || from_address >= self.per_address_max {
            return None;
        }
        counts.total += 1;
        counts.by_address.insert(address, from_address + 1);
        Some(UnauthenticatedGuard { limits: self.clone(), address })
    }

    /// Whether more than half of the limit is used: then an address must be validated before it gets a
    /// handshake.
    pub(crate) fn is_crowded(&self) -> bool {
        self.counts.lock().total > self.total_max / 2
    }
}

/// One counted connection.
#[derive(Debug)]
pub(crate) struct UnauthenticatedGuard {
    limits: Arc<UnauthenticatedLimits>,
    address: IpAddr,
}

impl Drop for UnauthenticatedGuard {
    fn drop(&mut self) {
        let mut counts = self.limits.counts.lock();
        counts.total -= 1;
        if let Some(from_address) = counts.by_address.get_mut(&self.address) {
            *from_address -= 1;
            if *from_address == 0 {
                counts.by_address.remove(&self.address);
            }
        }
    }
}

/// Limits the events per second, in total and per IP address, in fixed windows of one second.
#[derive(Debug)]
pub(crate) struct Rate {
    per_second_max: u32,
    per_address_max: u32,
    window: Mutex<Window>,
}

#[derive(Debug)]
struct Window {
    since: Instant,
    events: u32,
    /// Of the addresses whose events were allowed, so that their number is bounded.
    by_address: HashMap<IpAddr, u32>,
}

impl Rate {
    pub(crate) fn new(per_second_max: u32, per_address_max: u32, now: Instant) -> Self {
        let window = Window { since: now, events: 0, by_address: HashMap::new() };
        Self { per_second_max, per_address_max, window: Mutex::new(window) }
    }

    /// Counts one event of an address if it is within the limits, and returns whether it is.
    pub(crate) fn allow(&self, address: IpAddr, now: Instant) -> bool {
        let address = address.to_canonical();
        let mut window = self.window.lock();
        if now.duration_since(window.since) >= Duration::from_secs(1) {
            *window = Window { since: now, events: 0, by_address: HashMap::new() };
        }
        let of_address = window.by_address.get(&address).copied().unwrap_or(0);
        if window.events >= self.per_second_max || of_address >= self.per_address_max {
            return false;
        }
        window.events += 1;
        window.by_address.insert(address, of_address + 1);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
    const B: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));

    #[test]
    fn connections_are_bounded_in_total_and_per_address() {
        let limits = UnauthenticatedLimits::new(3, 2);
        let first = limits.enter(A).unwrap();
        let _second = limits.enter(A).unwrap();
        assert!(limits.is_crowded());
        assert!(limits.enter(A).is_none());
        // An IPv4-mapped IPv6 address counts as the IPv4 address.
        let IpAddr::V4(v4) = A else { unreachable!() };
        assert!(limits.enter(v4.to_ipv6_mapped().into()).is_none());
        let _third = limits.enter(B).unwrap();
        assert!(limits.enter(B).is_none());
        drop(first);
        assert!(limits.enter(B).is_some());
        drop(limits.enter(A));
        assert_eq!(limits.counts.lock().by_address.len(), 2);
    }

    #[test]
    fn rate_is_bounded_per_address_and_resets_each_second() {
        let start = Instant::now();
        let rate = Rate::new(3, 2, start);
        assert_eq!([A, A, A, B, B].map(|address| rate.allow(address, start)), [true, true, false, true, false]);
        assert_eq!(rate.window.lock().by_address.len(), 2);
        let later = start + Duration::from_secs(1);
        assert!(rate.allow(A, later) && rate.allow(B, later));
    }
}
