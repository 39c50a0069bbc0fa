//! `CLIENT PAUSE`: a time during which this node takes no requests, or no writes.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use tokio::{sync::watch, time::sleep_until};

/// The longest pause: a pause that no client ends would look like a fault.
const PAUSE_MAX: Duration = Duration::from_secs(600);

/// The pause of a server, if there is one.
#[derive(Debug)]
pub(crate) struct Pause {
    paused: watch::Sender<Option<Paused>>,
    /// Whether there may be a pause: what each request asks first.
    exists: AtomicBool,
}

#[derive(Debug, Clone, Copy)]
struct Paused {
    until: Instant,
    only_writes: bool,
}

impl Default for Pause {
    fn default() -> Self {
        Self { paused: watch::Sender::new(None), exists: AtomicBool::new(false) }
    }
}

impl Pause {
    /// Starts a pause, or makes the present one longer or stricter.
    pub(super) fn begin(&self, for_ms: u64, only_writes: bool, now: Instant) {
        let until = now + Duration::from_millis(for_ms).min(PAUSE_MAX);
        self.exists.store(true, Ordering::Release);
        self.paused.send_modify(|paused| {
            let before = paused.filter(|paused| paused.until > now);
            *paused = Some(Paused {
                until: before.map_or(until, |before| before.until.max(until)),
                only_writes: only_writes && before.is_none_or(|before| before.only_writes),
            });
        });
    }

    pub(super) fn end(&self) {
        self.paused.send_replace(None);
        self.exists.store(false, Ordering::Release);
    }

    /// Whether a request must wait.
    pub(super) fn holds(&self, writes: bool, now: Instant) -> bool {
        let exists = self.exists.load(Ordering::Acquire);
        exists && self.paused.borrow().is_some_and(|paused| paused.until > now && (writes || !paused.only_writes))
    }

    /// Waits until the pause ends or changes.
    pub(super) async fn changed(&self) {
        let mut pauses = self.paused.subscribe();
        let paused = *pauses.borrow_and_update();
        let Some(paused) = paused else { return };
        tokio::select! {
            () = sleep_until(paused.until.into()) => {}
            // The sender lives as long as the server.
            _ = pauses.changed() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_pause_holds_what_it_names_until_it_ends() {
        let (pause, now) = (Pause::default(), Instant::now());
        assert!(!pause.holds(true, now));
        pause.begin(60_000, true, now);
        assert!(pause.holds(true, now) && !pause.holds(false, now));
        pause.begin(1, false, now);
        assert!(pause.holds(false, now + Duration::from_secs(59)), "the longer and stricter one counts");
        assert!(!pause.holds(true, now + Duration::from_secs(60)));
        let waiting = pause.changed();
        pause.end();
        waiting.await;
        assert!(!pause.holds(true, now));
        pause.begin(u64::MAX, false, now);
        assert!(!pause.holds(true, now + PAUSE_MAX));
    }
}
