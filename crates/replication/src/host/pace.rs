//! How fast the node receives or sends objects: whoever transfers some waits for its turn.

use std::{num::NonZero, sync::Arc, time::Duration};

use parking_lot::Mutex;

use crate::{clock, work::Budget};

/// The pace of one direction, shared by all transfers.
#[derive(Clone)]
pub(super) struct Pace(Arc<Mutex<Budget>>);

impl Pace {
    pub(super) fn new(bytes_per_second: Option<NonZero<u64>>) -> Self {
        Self(Arc::new(Mutex::new(Budget::new(bytes_per_second))))
    }

    /// Reserves bytes, and waits until they may be transferred.
    pub(super) async fn take(&self, bytes: u64) {
        let wait_us = self.0.lock().reserve(now_us(), bytes);
        if wait_us > 0 {
            tokio::time::sleep(Duration::from_micros(wait_us)).await;
        }
    }

    /// Corrects what was taken when it is known how many bytes were transferred.
    pub(super) fn correct(&self, taken: u64, transferred: u64) {
        self.0.lock().correct(taken, transferred);
    }

    /// How long whoever takes bytes now would wait.
    pub(super) fn backlog_ms(&self) -> u64 {
        self.0.lock().backlog_us(now_us()) / 1_000
    }

    pub(super) fn bytes_per_second(&self) -> Option<NonZero<u64>> {
        self.0.lock().bytes_per_second()
    }

    pub(super) fn set_bytes_per_second(&self, bytes_per_second: Option<NonZero<u64>>) {
        self.0.lock().set_bytes_per_second(now_us(), bytes_per_second);
    }
}

fn now_us() -> u64 {
    clock::monotonic_ms() * 1_000
}
