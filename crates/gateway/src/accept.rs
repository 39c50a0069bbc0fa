//! Pauses after failed accepts.
//!
//! While file descriptors have run out, `accept` fails at once, again and again: without a pause its loop
//! would take a whole CPU, and without restraint the log would fill up.

use std::{io, time::Duration};

use tokio::time::{Instant, sleep_until};

const PAUSE_FIRST: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// When a listener may accept again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AcceptBackoff {
    pause: Duration,
    resume_at: Option<Instant>,
}

impl AcceptBackoff {
    /// Waits until the next accept is due.
    pub async fn wait(self) {
        if let Some(at) = self.resume_at {
            sleep_until(at).await;
        }
    }

    /// An accept succeeded: the next one is due at once.
    pub fn accepted(&mut self) {
        if self.resume_at.is_some() {
            tracing::info!("connections can be accepted again");
        }
        *self = Self::default();
    }

    /// An accept failed: each pause is twice as long as the one before, up to a second. Only the first
    /// failure is logged. Connections that the client gave up before they were accepted need no pause.
    pub fn failed(&mut self, error: &io::Error, now: Instant) {
        if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) {
            return;
        }
        if self.resume_at.is_none() {
            tracing::warn!(%error, "no connection can be accepted; trying again and again");
        }
        self.pause = (self.pause * 2).clamp(PAUSE_FIRST, PAUSE_MAX);
        self.resume_at = Some(now + self.pause);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_a_second_and_end_with_a_success() {
        let (mut backoff, now) = (AcceptBackoff::default(), Instant::now());
        let mut pauses = Vec::new();
        for _ in 0..8 {
            backoff.failed(&io::Error::other("no descriptors"), now);
            pauses.push(backoff.resume_at.map(|at| at - now));
        }
        assert_eq!(pauses[..3], [20, 40, 80].map(|ms| Some(Duration::from_millis(ms))));
        assert_eq!(pauses.last(), Some(&Some(PAUSE_MAX)));
        backoff.accepted();
        assert_eq!(backoff, AcceptBackoff::default());
    }

    #[test]
    fn a_client_that_gave_up_delays_nobody() {
        let mut backoff = AcceptBackoff::default();
        backoff.failed(&io::ErrorKind::ConnectionAborted.into(), Instant::now());
        assert_eq!(backoff, AcceptBackoff::default());
    }
}
