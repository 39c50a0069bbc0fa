//! The clocks of a simulated node: a monotonic one that may run fast or slow, and a wall clock that may be
//! wrong.
//!
//! Invariant: the monotonic clock never goes back.

/// The correct wall clock at the start of a run, Unix milliseconds.
pub(crate) const WALL_START_MS: u64 = 1_700_000_000_000;

/// Parts per million in one.
const MILLION: i128 = 1_000_000;

/// A node's clocks as functions of true time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    /// True time and monotonic time when the rate was last changed, microseconds.
    since: (u64, u64),
    /// How much faster than true time the clock runs, parts per million.
    drift_ppm: i64,
    /// How far the wall clock is ahead of a correct one, milliseconds.
    wall_ahead_ms: i64,
}

impl Clock {
    /// A clock whose monotonic time is `start_us` at true time 0, and whose wall clock is this far ahead.
    pub(crate) fn new(start_us: u64, wall_ahead_ms: i64) -> Self {
        Self { since: (0, start_us), drift_ppm: 0, wall_ahead_ms }
    }

    fn mono_us(&self, true_us: u64) -> u64 {
        let (since_true, since_mono) = self.since;
        let elapsed = i128::from(true_us.saturating_sub(since_true));
        since_mono + (elapsed * (MILLION + i128::from(self.drift_ppm)) / MILLION) as u64
    }

    /// Milliseconds by the monotonic clock.
    pub(crate) fn mono_ms(&self, true_us: u64) -> u64 {
        self.mono_us(true_us) / 1_000
    }

    /// Unix milliseconds by the wall clock. Drift affects both clocks: they share an oscillator.
    pub(crate) fn wall_ms(&self, true_us: u64) -> u64 {
        let elapsed_ms = (self.mono_us(true_us) - self.since.1 + self.since.0) / 1_000;
        (WALL_START_MS + elapsed_ms).saturating_add_signed(self.wall_ahead_ms)
    }

    /// True duration of a wait that the node measures by its own clock, microseconds.
    pub(crate) fn true_us(&self, wait_ms: u64) -> u64 {
        (i128::from(wait_ms) * 1_000 * MILLION / (MILLION + i128::from(self.drift_ppm))) as u64
    }

    /// Changes the rate of both clocks from now on.
    pub(crate) fn set_drift(&mut self, true_us: u64, drift_ppm: i64) {
        self.wall_ahead_ms += self.wall_error_ms(true_us);
        self.since = (true_us, self.mono_us(true_us));
        self.drift_ppm = drift_ppm;
    }

    /// How much drift has moved the wall clock since the rate was last changed.
    fn wall_error_ms(&self, true_us: u64) -> i64 {
        let elapsed = self.mono_us(true_us) - self.since.1;
        elapsed as i64 / 1_000 - (true_us - self.since.0) as i64 / 1_000
    }

    /// Moves the wall clock.
    pub(crate) fn jump(&mut self, ms: i64) {
        self.wall_ahead_ms += ms;
    }

    /// Corrects the clock, as an operator or NTP does.
    pub(crate) fn correct(&mut self, true_us: u64, wall_ahead_ms: i64) {
        self.set_drift(true_us, 0);
        self.wall_ahead_ms = wall_ahead_ms;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fast_clock_gains_time_and_keeps_it_when_the_drift_ends() {
        let mut clock = Clock::new(5_000_000, 0);
        clock.set_drift(0, 100_000);
        assert_eq!((clock.mono_ms(1_000_000), clock.wall_ms(1_000_000)), (6_100, WALL_START_MS + 1_100));
        assert_eq!(clock.true_us(1_100), 1_000_000);
        clock.set_drift(1_000_000, 0);
        assert_eq!((clock.mono_ms(2_000_000), clock.wall_ms(2_000_000)), (7_100, WALL_START_MS + 2_100));
        clock.jump(-500);
        assert_eq!((clock.mono_ms(2_000_000), clock.wall_ms(2_000_000)), (7_100, WALL_START_MS + 1_600));
        clock.correct(2_000_000, 30);
        assert_eq!(clock.wall_ms(3_000_000), WALL_START_MS + 3_030);
    }
}
