//! Counters of a transport. Their handles are created when it starts, so install the recorder
//! before.

use metrics::{Counter, counter};

use crate::Class;

/// Counters of the whole transport.
#[derive(Debug)]
pub(crate) struct Meter {
    classes: [ClassMeter; 4],
    /// Calls issued, by class.
    calls: [Counter; 4],
    call_failures: [Counter; 4],
    pub(crate) datagrams_sent: Counter,
    pub(crate) datagrams_received: Counter,
    pub(crate) datagrams_dropped: Counter,
    /// Incoming connections that were refused for any reason.
    pub(crate) refused: Counter,
    pub(crate) joins: Counter,
}

impl Meter {
    pub(crate) fn new() -> Self {
        let by_class = |name: &'static str| Class::ALL.map(|class| counter!(name, "class" => class.name()));
        Self {
            classes: Class::ALL.map(ClassMeter::new),
            calls: by_class("flotilla_transport_calls_total"),
            call_failures: by_class("flotilla_transport_call_failures_total"),
            datagrams_sent: counter!("flotilla_transport_datagrams_sent_total"),
            datagrams_received: counter!("flotilla_transport_datagrams_received_total"),
            datagrams_dropped: counter!("flotilla_transport_datagrams_dropped_total"),
            refused: counter!("flotilla_transport_connections_refused_total"),
            joins: counter!("flotilla_transport_joins_total"),
        }
    }

    pub(crate) fn class(&self, class: Class) -> &ClassMeter {
        &self.classes[class.index()]
    }

    pub(crate) fn call<T, E>(&self, class: Class, outcome: &Result<T, E>) {
        self.calls[class.index()].increment(1);
        if outcome.is_err() {
            self.call_failures[class.index()].increment(1);
        }
    }
}

/// Counters of one class of frames.
#[derive(Debug, Clone)]
pub(crate) struct ClassMeter {
    frames_sent: Counter,
    bytes_sent: Counter,
    frames_received: Counter,
    bytes_received: Counter,
    dropped: Counter,
}

impl ClassMeter {
    fn new(class: Class) -> Self {
        let name = class.name();
        Self {
            frames_sent: counter!("flotilla_transport_frames_sent_total", "class" => name),
            bytes_sent: counter!("flotilla_transport_bytes_sent_total", "class" => name),
            frames_received: counter!("flotilla_transport_frames_received_total", "class" => name),
            bytes_received: counter!("flotilla_transport_bytes_received_total", "class" => name),
            dropped: counter!("flotilla_transport_frames_dropped_total", "class" => name),
        }
    }

    /// Counts a frame handed to its stream.
    pub(crate) fn sent(&self, bytes: usize) {
        self.frames_sent.increment(1);
        self.bytes_sent.increment(bytes as u64);
    }

    /// Counts a received frame.
    pub(crate) fn received(&self, bytes: usize) {
        self.frames_received.increment(1);
        self.bytes_received.increment(bytes as u64);
    }

    /// Counts a frame that was not queued: peer down or queue full.
    pub(crate) fn dropped(&self) {
        self.dropped.increment(1);
    }
}
