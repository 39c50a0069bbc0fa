//! How many bytes of objects a node sends or receives per second.
//!
//! Whoever wants to transfer reserves bytes, and waits for as long as those reserved before take at the rate. So
//! the rate holds on average, whatever the size of a request, and a node that was idle saves nothing up.

use std::num::NonZero;

/// The bytes per second of one direction.
#[derive(Debug)]
pub struct Budget {
    /// Without one there is no bound.
    bytes_per_second: Option<NonZero<u64>>,
    /// When what is reserved has been transferred, monotonic microseconds.
    free_at_us: u64,
}

impl Budget {
    /// Nothing is reserved.
    #[must_use]
    pub fn new(bytes_per_second: Option<NonZero<u64>>) -> Self {
        Self { bytes_per_second, free_at_us: 0 }
    }

    /// Reserves bytes, and returns how long to wait before they are transferred, microseconds.
    pub fn reserve(&mut self, now_us: u64, bytes: u64) -> u64 {
        let start_us = self.free_at_us.max(now_us);
        self.free_at_us = start_us.saturating_add(self.takes_us(bytes));
        start_us - now_us
    }

    /// How long a reservation would wait now, microseconds.
    #[must_use]
    pub fn backlog_us(&self, now_us: u64) -> u64 {
        self.free_at_us.saturating_sub(now_us)
    }

    /// Corrects a reservation when it is known how many bytes were transferred.
    pub fn correct(&mut self, reserved: u64, transferred: u64) {
        let before_us = self.free_at_us.saturating_sub(self.takes_us(reserved));
        self.free_at_us = before_us.saturating_add(self.takes_us(transferred));
    }

    /// The rate.
    #[must_use]
    pub fn bytes_per_second(&self) -> Option<NonZero<u64>> {
        self.bytes_per_second
    }

    /// Changes the rate. What was reserved and not yet transferred takes as long as it would at the new one.
    pub fn set_bytes_per_second(&mut self, now_us: u64, bytes_per_second: Option<NonZero<u64>>) {
        let backlog_us = u128::from(self.backlog_us(now_us));
        let rate = |rate: Option<NonZero<u64>>| rate.map(|rate| u128::from(rate.get()));
        let scaled_us = match (rate(self.bytes_per_second), rate(bytes_per_second)) {
            (Some(before), Some(after)) => backlog_us * before / after,
            _ => 0,
        };
        self.free_at_us = now_us.saturating_add(u64::try_from(scaled_us).unwrap_or(u64::MAX));
        self.bytes_per_second = bytes_per_second;
    }

    fn takes_us(&self, bytes: u64) -> u64 {
        let takes_us = |rate: NonZero<u64>| u128::from(bytes) * 1_000_000 / u128::from(rate.get());
        self.bytes_per_second.map_or(0, |rate| u64::try_from(takes_us(rate)).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transfers_wait_for_what_was_reserved_before() {
        let mut budget = Budget::new(NonZero::new(1_000));
        assert_eq!((budget.reserve(5_000_000, 500), budget.reserve(5_000_000, 500)), (0, 500_000));
        assert_eq!(budget.backlog_us(5_400_000), 600_000);
        budget.correct(500, 100);
        assert_eq!(budget.reserve(5_400_000, 1), 200_000);
        assert_eq!(
            (budget.reserve(60_000_000, 1), budget.backlog_us(61_000_000)),
            (0, 0),
            "an idle node saves nothing up"
        );
    }

    #[test]
    fn what_is_reserved_takes_as_long_as_the_new_rate_says() {
        let mut budget = Budget::new(NonZero::new(1_000));
        budget.reserve(0, 3_000);
        budget.set_bytes_per_second(1_000_000, NonZero::new(4_000));
        assert_eq!((budget.backlog_us(1_000_000), budget.bytes_per_second()), (500_000, NonZero::new(4_000)));
        budget.set_bytes_per_second(1_000_000, None);
        assert_eq!((budget.backlog_us(1_000_000), budget.reserve(1_000_000, 9)), (0, 0));
        budget.set_bytes_per_second(2_000_000, NonZero::new(10));
        assert_eq!((budget.reserve(2_000_000, 10), budget.backlog_us(2_000_000)), (0, 1_000_000));
    }

    #[test]
    fn without_a_rate_nothing_waits() {
        let mut budget = Budget::new(None);
        assert_eq!((budget.reserve(1, u64::MAX), budget.reserve(2, 1), budget.backlog_us(2)), (0, 0, 0));
    }
}
