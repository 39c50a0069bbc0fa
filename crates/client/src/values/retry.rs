//! When a call is repeated: with backoff, until a deadline.

use std::time::{Duration, Instant};

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};

/// Shortest time between two attempts.
const BACKOFF_MIN: Duration = Duration::from_millis(50);
/// Longest time between two attempts.
const BACKOFF_MAX: Duration = Duration::from_secs(2);

/// How long attempts may follow each other without any progress.
const STALLED_MAX: Duration = Duration::from_secs(30);

/// The attempts of one transfer.
#[derive(Debug)]
pub(super) struct Attempts {
    deadline: Instant,
    progress: Instant,
    backoff: ExponentialBackoff,
}

impl Attempts {
    /// Attempts from now on.
    pub(super) fn within(timeout: Duration) -> Self {
        // So far away that it makes no difference to a transfer, if the clock cannot express it.
        let now = Instant::now();
        let deadline = now.checked_add(timeout).unwrap_or(now + Duration::from_secs(1 << 30));
        Self { deadline, progress: now, backoff: backoff() }
    }

    /// Begins anew to count attempts without progress.
    pub(super) fn progress(&mut self) {
        self.progress = Instant::now();
        self.backoff = backoff();
    }

    /// Waits before the next attempt. False, at once, if there is no time left for one, or no progress.
    pub(super) async fn again(&mut self) -> bool {
        let wait = self.backoff.next().unwrap_or(BACKOFF_MAX);
        if Instant::now() + wait >= self.deadline.min(self.progress + STALLED_MAX) {
            return false;
        }
        tokio::time::sleep(wait).await;
        true
    }
}

fn backoff() -> ExponentialBackoff {
    let backoff = ExponentialBuilder::new().with_min_delay(BACKOFF_MIN).with_max_delay(BACKOFF_MAX);
    backoff.without_max_times().with_jitter().build()
}
