//! The slowest pace at which a client may send or read.

use std::time::Duration;

use tokio::time::Instant;

/// The slowest pace of a transfer. It must end within `grace`, prolonged by a second for each
/// `bytes_per_second_min` that were moved: a slow line is served, and who only holds something up is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// Time for the first bytes. 100 ms to 10 min.
    pub grace: Duration,
    /// Bytes that prolong the transfer by a second. At least 1.
    pub bytes_per_second_min: u32,
}

impl Pace {
    /// When a transfer that started at `started` and has moved `bytes` must end, or have moved more.
    #[must_use]
    pub fn deadline(self, started: Instant, bytes: usize) -> Instant {
        let extra = Duration::from_secs_f64(bytes as f64 / f64::from(self.bytes_per_second_min.max(1)));
        started + self.grace + extra
    }

    /// Whether both values are in their ranges.
    #[must_use]
    pub fn is_valid(self) -> bool {
        (Duration::from_millis(100)..=Duration::from_secs(600)).contains(&self.grace) && self.bytes_per_second_min > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_second_of_bytes_prolongs_a_transfer_by_a_second() {
        let pace = Pace { grace: Duration::from_secs(2), bytes_per_second_min: 1_000 };
        let start = Instant::now();
        assert_eq!(pace.deadline(start, 0), start + Duration::from_secs(2));
        assert_eq!(pace.deadline(start, 500), start + Duration::from_millis(2_500));
        assert!(pace.is_valid() && !Pace { bytes_per_second_min: 0, ..pace }.is_valid());
    }
}
