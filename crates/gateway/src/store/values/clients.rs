//! Uploads that clients have begun, so that they leave some to readers and other writers.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use super::hold::HOLD_TIME;

/// Uploads that clients have begun, at a time: half of those that a node has.
const UPLOADS_MAX: usize = 512;

/// The uploads that clients have begun, with their deadlines.
#[derive(Debug, Default)]
pub(crate) struct ClientUploads(HashMap<u64, Instant>);

impl ClientUploads {
    /// Whether another one may begin.
    pub(crate) fn has_room(&mut self, now: Instant) -> bool {
        if self.0.len() >= UPLOADS_MAX {
            self.0.retain(|_, deadline| *deadline > now);
        }
        self.0.len() < UPLOADS_MAX
    }

    /// One has begun, or was used.
    pub(crate) fn used(&mut self, upload: u64, now: Instant) {
        self.lasts(upload, now, HOLD_TIME);
    }

    /// One lasts for `time`.
    pub(crate) fn lasts(&mut self, upload: u64, now: Instant, time: Duration) {
        self.0.insert(upload, now + time);
    }

    pub(crate) fn ended(&mut self, upload: u64) {
        self.0.remove(&upload);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_begin_so_many_uploads_until_some_end() {
        let (mut uploads, now) = (ClientUploads::default(), Instant::now());
        for upload in 0..UPLOADS_MAX as u64 {
            assert!(uploads.has_room(now));
            uploads.used(upload, now);
        }
        assert!(!uploads.has_room(now));
        uploads.ended(3);
        assert!(uploads.has_room(now));
        uploads.used(3, now + HOLD_TIME / 2);
        assert!(!uploads.has_room(now + HOLD_TIME / 2));
        assert!(uploads.has_room(now + HOLD_TIME), "those that were not used have ended");
        assert_eq!(uploads.0.len(), 1);
    }
}
