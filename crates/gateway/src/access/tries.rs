//! Limits wrong keys per address: a bucket of tries that refills with time.
//!
//! A full bucket refuses further tries from its address, but not keys that were accepted from there before:
//! one wrong client behind a proxy must not lock out the others.

use std::{collections::HashMap, net::IpAddr};

/// Wrong keys from one address at once.
const TRIES_MAX: u32 = 20;
/// Time after which one more try is allowed.
const REFILL_MS: u64 = 3_000;
/// Addresses that are remembered. Beyond it one that never failed is forgotten, or else the one that failed
/// least recently.
const ADDRESSES_MAX: usize = 4_096;
/// Accepted keys that are remembered per address.
const ACCEPTED_MAX: usize = 16;

/// The addresses that sent keys.
#[derive(Debug, Default)]
pub(super) struct FailedTries(HashMap<IpAddr, Tries>);

#[derive(Debug, Default)]
struct Tries {
    /// The time at which all its tries are refilled.
    full_at_ms: u64,
    /// Ids of keys that were accepted from this address.
    accepted: Vec<u64>,
}

impl FailedTries {
    /// How long the address must wait before a try with this key id; `None` when it may try.
    pub(super) fn refuses(&self, address: IpAddr, key: Option<u64>, now_ms: u64) -> Option<u64> {
        let tries = self.0.get(&address)?;
        if key.is_some_and(|key| tries.accepted.contains(&key)) {
            return None;
        }
        let used_ms = tries.full_at_ms.saturating_sub(now_ms);
        let allowed_ms = u64::from(TRIES_MAX - 1) * REFILL_MS;
        (used_ms > allowed_ms).then(|| used_ms - allowed_ms)
    }

    pub(super) fn failed(&mut self, address: IpAddr, now_ms: u64) {
        let tries = self.tries_of(address);
        tries.full_at_ms = tries.full_at_ms.max(now_ms) + REFILL_MS;
    }

    fn tries_of(&mut self, address: IpAddr) -> &mut Tries {
        if self.0.len() >= ADDRESSES_MAX && !self.0.contains_key(&address) {
            let oldest = self.0.iter().min_by_key(|(_, tries)| tries.full_at_ms).map(|(address, _)| *address);
            oldest.and_then(|oldest| self.0.remove(&oldest));
        }
        self.0.entry(address).or_default()
    }

    pub(super) fn succeeded(&mut self, address: IpAddr, key: u64) {
        let tries = self.tries_of(address);
        if !tries.accepted.contains(&key) && tries.accepted.len() < ACCEPTED_MAX {
            tries.accepted.push(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn address(number: u32) -> IpAddr {
        IpAddr::V4(Ipv4Addr::from(number))
    }

    #[test]
    fn tries_run_out_and_refill() {
        let mut tries = FailedTries::default();
        for _ in 0..TRIES_MAX {
            assert_eq!(tries.refuses(address(1), None, 0), None);
            tries.failed(address(1), 0);
        }
        assert_eq!(tries.refuses(address(1), None, 0), Some(REFILL_MS));
        assert_eq!(tries.refuses(address(1), None, REFILL_MS), None);
        tries.succeeded(address(1), 5);
        assert_eq!(tries.refuses(address(1), Some(5), 0), None, "an accepted key goes on");
        assert!(tries.refuses(address(1), Some(6), 0).is_some());
    }

    #[test]
    fn addresses_are_bounded_and_the_oldest_goes_first() {
        let mut tries = FailedTries::default();
        for number in 0..=u32::try_from(ADDRESSES_MAX).expect("few") {
            tries.failed(address(number), u64::from(number));
        }
        assert_eq!(tries.0.len(), ADDRESSES_MAX);
        assert!(!tries.0.contains_key(&address(0)) && tries.0.contains_key(&address(1)));
    }
}
