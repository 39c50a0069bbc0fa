//! How much of a machine's CPUs the process uses, over the last seconds.

use std::collections::VecDeque;

/// Over how long the share is measured, in milliseconds: a burst of a second is no load.
const WINDOW_MS: u64 = 5_000;
/// The shortest time that says anything, in milliseconds.
const WINDOW_MS_MIN: u64 = 1_000;
/// Time between two samples that are kept, in milliseconds.
const SAMPLE_MS: u64 = 250;

/// Measures the share from what the process has used.
#[derive(Debug, Default)]
pub(crate) struct CpuMeter {
    /// Monotonic milliseconds, and microseconds of CPU time used until then; oldest first. One for each
    /// [`SAMPLE_MS`] of the window, at most.
    samples: VecDeque<(u64, u64)>,
}

impl CpuMeter {
    /// Takes the CPU time used until now, in microseconds. Returns the share of `cores` that was used lately, in
    /// thousandths; `None` until that is known.
    pub(crate) fn observe(&mut self, now_ms: u64, used_us: u64, cores: usize) -> Option<u32> {
        // One sample from before the window stays, so that the window is covered.
        while self.samples.get(1).is_some_and(|(at_ms, _)| at_ms + WINDOW_MS <= now_ms) {
            self.samples.pop_front();
        }
        if self.samples.back().is_none_or(|(at_ms, _)| at_ms + SAMPLE_MS <= now_ms) {
            self.samples.push_back((now_ms, used_us));
        }
        let (since_ms, before_us) = *self.samples.front()?;
        let elapsed_ms = now_ms.saturating_sub(since_ms);
        if elapsed_ms < WINDOW_MS_MIN {
            return None;
        }
        // Microseconds in a millisecond are thousandths.
        let share = used_us.saturating_sub(before_us) / (elapsed_ms * cores.max(1) as u64);
        Some(u32::try_from(share).unwrap_or(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_is_that_of_all_cores_over_the_last_seconds() {
        let mut meter = CpuMeter::default();
        assert_eq!(meter.observe(10_000, 500, 2), None);
        assert_eq!(meter.observe(10_900, 500, 2), None, "too short to say anything");
        assert_eq!(meter.observe(11_000, 500 + 1_000_000, 2), Some(500), "one of two cores");
        // Idle from here on: it is forgotten.
        let shares: Vec<_> = (1..=8).map(|s| meter.observe(11_000 + s * 1_000, 1_000_500, 2)).collect();
        assert!(shares.is_sorted_by(|a, b| a >= b), "{shares:?}");
        assert_eq!(shares[7], Some(0));
        assert_eq!(meter.observe(20_000, 0, 0), Some(0), "the clock of the process cannot go back");
    }

    #[test]
    fn samples_are_bounded_however_often_it_is_asked() {
        let mut meter = CpuMeter::default();
        for at in 0..100_000 {
            meter.observe(at, at, 1);
        }
        assert!(meter.samples.len() as u64 <= WINDOW_MS / SAMPLE_MS + 2, "{}", meter.samples.len());
    }
}
