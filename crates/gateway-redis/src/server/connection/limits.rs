//! What a connection holds, and whether it may take or read more.

use std::{sync::atomic::Ordering, time::Instant};

use bytes::{Bytes, BytesMut};

use super::{Connection, READ_BYTES_MIN};

impl Connection {
    /// Whether another request that has arrived may start. One at a time also starts without room in the
    /// budget, because that frees its bytes.
    pub(super) fn takes_requests(&self) -> bool {
        self.is_within_limits() && (self.window.is_empty() || self.account.has_room(0))
    }

    /// Whether more input is wanted.
    pub(super) fn wants_input(&self) -> bool {
        self.is_within_limits() && self.needs_input && !self.is_eof
    }

    /// By how much the input buffer must grow before the next read.
    pub(super) fn growth(&self) -> usize {
        let (capacity, len) = (self.input.capacity(), self.input.len());
        if capacity - len >= READ_BYTES_MIN { 0 } else { self.grown() - capacity }
    }

    /// The capacity to which the input buffer grows. Buffers double, but not beyond the argument that is awaited.
    pub(super) fn grown(&self) -> usize {
        grown(self.input.capacity(), self.input.len() + self.read_bytes, self.decoder.awaited_bytes())
    }

    /// Whether another request may start as far as the limits of connections go. One at a time is always
    /// allowed.
    pub(super) fn is_within_limits(&self) -> bool {
        let config = &self.shared.config;
        let others = self.shared.buffered_bytes.load(Ordering::Relaxed).saturating_sub(self.counted_bytes);
        let own = self.pipeline_bytes();
        !self.is_closing
            && self.postponed.is_none()
            && self.selecting.is_none()
            && self.window.len() < config.in_flight_max
            && own < config.buffered_bytes_max
            && (self.window.is_empty() || own.saturating_add(others) < config.buffered_bytes_total_max)
    }

    /// Bytes of requests in flight or queued, and of replies, also of those that are only expected.
    pub(super) fn pipeline_bytes(&self) -> usize {
        self.window.held_bytes()
            + self.window.expected_bytes()
            + self.output.len()
            + self.multi.held_bytes()
            + self.postponed.as_deref().map_or(0, request_bytes)
    }

    /// Bytes that a transaction may still queue. Half of the connection's own are left for everything else.
    pub(super) fn queue_room(&self) -> usize {
        let config = &self.shared.config;
        let others = self.shared.buffered_bytes.load(Ordering::Relaxed).saturating_sub(self.counted_bytes);
        let total = config.buffered_bytes_total_max.saturating_sub(others.saturating_add(self.pipeline_bytes()));
        total.min((config.buffered_bytes_max / 2).saturating_sub(self.multi.held_bytes()))
    }

    /// Updates this connection's share of the shared byte count and of the node's budget.
    pub(super) fn count_bytes(&mut self) {
        let pipeline = self.pipeline_bytes();
        if pipeline > self.counted_bytes {
            self.shared.buffered_bytes.fetch_add(pipeline - self.counted_bytes, Ordering::Relaxed);
        } else {
            self.shared.buffered_bytes.fetch_sub(self.counted_bytes - pipeline, Ordering::Relaxed);
        }
        self.counted_bytes = pipeline;
        if self.input.is_empty() {
            // An idle connection keeps no buffer.
            self.input = BytesMut::new();
        }
        let input = self.input.capacity() + self.decoder.held_bytes();
        let output = self.output.capacity() + self.stream.held_bytes();
        let waiting = self.multi.held_bytes() + self.postponed.as_deref().map_or(0, request_bytes);
        self.charge.set(self.window.held_bytes() + output + input + waiting);
        let is_partial = self.needs_input && (self.decoder.is_mid_request() || !self.input.is_empty());
        let progressed = std::mem::take(&mut self.has_progressed);
        self.deadlines.request(is_partial, progressed, Instant::now().into());
        // A transaction that is queued waits for its client from the first of its commands to the last.
        let is_queuing = self.multi.held_bytes() > 0 && self.window.is_empty();
        let waits = self.deadlines.waits_for_client() || is_queuing;
        if !waits || progressed && !is_queuing {
            self.account.works();
        }
        if waits {
            self.account.waits_for_client();
        }
    }
}

/// The next capacity of a buffer that must have `least`, while an argument of so many bytes is awaited.
fn grown(capacity: usize, least: usize, awaited: Option<usize>) -> usize {
    let doubled = (2 * capacity).max(least);
    match awaited.map(|bytes| bytes + READ_BYTES_MIN) {
        // In one step, so that there are not two long buffers for the last bytes.
        Some(awaited) if 2 * doubled >= awaited => awaited.max(least),
        _ => doubled,
    }
}

/// Bytes that a request takes.
pub(super) fn request_bytes(request: &[Bytes]) -> usize {
    request.iter().map(|argument| argument.len() + size_of::<Bytes>()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_doubles_up_to_the_argument_that_is_awaited() {
        assert_eq!(grown(8_000, 9_000, None), 16_000);
        assert_eq!(grown(0, 9_000, None), 9_000);
        let (mut capacity, mut steps, awaited) = (0, 0, (64 << 20) + 2);
        while capacity < awaited {
            let next = grown(capacity, capacity + READ_BYTES_MIN, Some(awaited));
            assert!(next >= capacity + READ_BYTES_MIN && next <= awaited + READ_BYTES_MIN);
            (capacity, steps) = (next, steps + 1);
        }
        assert!(steps < 16, "{steps}");
        assert_eq!(grown(64 << 10, 70_000, Some(10)), 70_000, "what follows is read as well");
    }
}
