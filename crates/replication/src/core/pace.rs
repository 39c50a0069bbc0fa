//! How much a tick may start that makes groups talk: waking replicas, campaigns.
//!
//! A machine that cannot carry all its groups awake is late with heartbeats; replicas miss them, elect, and wake
//! more groups. Without a bound that follows the load, this feeds itself and does not end (a metastable
//! failure: Bronson and others, HotOS 2021).

/// Replicas that one tick wakes, or lets campaign, at most.
const PACE_MAX: usize = 500;
/// The same, at least.
const PACE_MIN: usize = 25;
/// How many more after each tick that comes in time.
const PACE_STEP: usize = 25;

/// How many replicas a tick wakes, and how many campaign at it: fewer after ticks that came late, by halves,
/// and more after others, step by step (additive increase, multiplicative decrease: Chiu and Jain, 1989).
#[derive(Debug)]
pub(super) struct Pace {
    per_tick: usize,
    last_tick_ms: Option<u64>,
}

impl Default for Pace {
    fn default() -> Self {
        Self { per_tick: PACE_MAX, last_tick_ms: None }
    }
}

impl Pace {
    pub(super) fn next(&mut self, now_ms: u64, tick_ms: u64) -> usize {
        let took_ms = self.last_tick_ms.replace(now_ms).map_or(0, |last| now_ms.saturating_sub(last));
        self.per_tick = if took_ms > tick_ms + tick_ms / 2 {
            (self.per_tick / 2).max(PACE_MIN)
        } else {
            (self.per_tick + PACE_STEP).min(PACE_MAX)
        };
        self.per_tick
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn late_ticks_start_less_and_ticks_in_time_more_again() {
        let (mut pace, mut now_ms) = (Pace::default(), 0);
        let mut next = |took_ms| {
            now_ms += took_ms;
            pace.next(now_ms, 50)
        };
        assert_eq!([next(50), next(60), next(76), next(500), next(50)], [500, 500, 250, 125, 150]);
        assert_eq!([next(100), next(100), next(100), next(100)], [75, 37, 25, 25]);
        assert_eq!((0..100).map(|_| next(50)).last(), Some(500));
    }
}
