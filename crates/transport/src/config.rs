//! The settings of a transport. All nodes of a cluster should use the same frame limits: a frame over the
//! receiver's limit closes the connection.

use std::{net::SocketAddr, time::Duration};

const MIB: usize = 1024 * 1024;

/// The settings of a transport. Start from [`Config::new`] and change what must differ.
#[derive(Debug, Clone)]
pub struct Config {
    /// The UDP address to bind. With port 0 the system assigns one.
    pub listen: SocketAddr,
    /// Largest payload of `Urgent`, `Bulk` and `Rpc`, in bytes (1 KiB – 1 GiB). Above the largest log entry
    /// and its envelope.
    pub frame_bytes_max: usize,
    /// Largest payload of `Objects`, in bytes (1 KiB – 1 GiB). Above the largest object and its envelope.
    pub object_frame_bytes_max: usize,
    /// Frames queued for one peer in one class (≥ 1). Enough for a few flushes of all Raft groups.
    pub queue_frames_max: usize,
    /// Bytes queued for one peer in one class (≥ 1). An empty queue accepts one larger frame.
    pub queue_bytes_max: usize,
    /// `Rpc` calls in flight to one peer, and executed concurrently for one peer (≥ 1).
    pub calls_max: usize,
    /// `Objects` calls in flight to one peer, and executed concurrently for one peer (≥ 1). Each may hold
    /// `object_frame_bytes_max` of memory on both sides.
    pub object_calls_max: usize,
    /// Idle time after which the dialling side sends a ping. Below half of `idle_timeout`.
    pub keep_alive: Duration,
    /// Idle time after which a connection counts as lost.
    pub idle_timeout: Duration,
    /// How long one dial may take, including handshake and welcome. At least four round trips.
    pub connect_timeout: Duration,
    /// Backoff after the first failed dial (> 0). Doubles with each further failure; jitter adds up to the
    /// same again.
    pub backoff_min: Duration,
    /// Longest backoff, without jitter (≥ `backoff_min`). A peer that dials this node is dialled back at
    /// once.
    pub backoff_max: Duration,
    /// How long an incoming handshake may take.
    pub handshake_timeout: Duration,
    /// Connected peers served concurrently (≥ 1). Above the size of the cluster.
    pub connections_max: usize,
    /// Unauthenticated incoming connections, handshakes and joins together (≥ 1).
    pub unauthenticated_max: usize,
    /// The same, from one IP address (≥ 1). Above the number of nodes that share one address.
    pub unauthenticated_per_address_max: usize,
    /// Join requests served concurrently (≥ 1).
    pub joins_max: usize,
    /// The same, from one IP address (≥ 1).
    pub joins_per_address_max: usize,
    /// Join requests accepted per second (≥ 1).
    pub joins_per_second_max: u32,
    /// The same, from one IP address (≥ 1). A joiner that is refused tries again after half a second.
    pub joins_per_second_per_address_max: u32,
    /// How long a join may take from the end of its handshake to the delivered answer.
    pub join_timeout: Duration,
    /// Receive window of one stream, in bytes (64 KiB – 64 MiB): bandwidth times round-trip time. A
    /// connection gets four times as much, so that a full stream never blocks the others.
    pub stream_window_bytes: u32,
}

/// A setting is out of range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the transport setting `{setting}` is out of range: {rule}")]
pub struct ConfigError {
    /// The field of [`Config`].
    pub setting: &'static str,
    /// The range or relation that must hold.
    pub rule: &'static str,
}

impl Config {
    /// Settings for a local network.
    #[must_use]
    pub fn new(listen: SocketAddr) -> Self {
        Self {
            listen,
            frame_bytes_max: 16 * MIB,
            object_frame_bytes_max: 64 * MIB + 64 * 1024,
            queue_frames_max: 4096,
            queue_bytes_max: 32 * MIB,
            calls_max: 1024,
            object_calls_max: 8,
            keep_alive: Duration::from_secs(3),
            idle_timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(3),
            backoff_min: Duration::from_millis(50),
            backoff_max: Duration::from_secs(1),
            handshake_timeout: Duration::from_secs(5),
            connections_max: 1024,
            unauthenticated_max: 256,
            unauthenticated_per_address_max: 64,
            joins_max: 16,
            joins_per_address_max: 4,
            joins_per_second_max: 32,
            joins_per_second_per_address_max: 8,
            join_timeout: Duration::from_secs(30),
            stream_window_bytes: 2 * MIB as u32,
        }
    }

    /// Checks the ranges and relations stated on the fields.
    ///
    /// # Errors
    /// The first setting that is out of range.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let frame_range = 1024..=1024 * MIB;
        let window_range = 64 * 1024..=64 * MIB as u32;
        let checks = [
            (frame_range.contains(&self.frame_bytes_max), "frame_bytes_max", "1 KiB to 1 GiB"),
            (frame_range.contains(&self.object_frame_bytes_max), "object_frame_bytes_max", "1 KiB to 1 GiB"),
            (self.queue_frames_max > 0, "queue_frames_max", "at least 1"),
            (self.queue_bytes_max > 0, "queue_bytes_max", "at least 1"),
            (self.calls_max > 0, "calls_max", "at least 1"),
            (self.object_calls_max > 0, "object_calls_max", "at least 1"),
            (!self.keep_alive.is_zero(), "keep_alive", "more than 0"),
            (self.keep_alive * 2 < self.idle_timeout, "keep_alive", "below half of idle_timeout"),
            (self.idle_timeout <= Duration::from_secs(600), "idle_timeout", "at most 10 minutes"),
            (!self.connect_timeout.is_zero(), "connect_timeout", "more than 0"),
            (!self.backoff_min.is_zero(), "backoff_min", "more than 0"),
            (self.backoff_min <= self.backoff_max, "backoff_max", "at least backoff_min"),
            (!self.handshake_timeout.is_zero(), "handshake_timeout", "more than 0"),
            (self.connections_max > 0, "connections_max", "at least 1"),
            (self.unauthenticated_max > 0, "unauthenticated_max", "at least 1"),
            (self.unauthenticated_per_address_max > 0, "unauthenticated_per_address_max", "at least 1"),
            (self.joins_max > 0, "joins_max", "at least 1"),
            (self.joins_per_address_max > 0, "joins_per_address_max", "at least 1"),
            (self.joins_per_second_max > 0, "joins_per_second_max", "at least 1"),
            (self.joins_per_second_per_address_max > 0, "joins_per_second_per_address_max", "at least 1"),
            (!self.join_timeout.is_zero(), "join_timeout", "more than 0"),
            (window_range.contains(&self.stream_window_bytes), "stream_window_bytes", "64 KiB to 64 MiB"),
        ];
        match checks.into_iter().find(|(holds, ..)| !holds) {
            None => Ok(()),
            Some((_, setting, rule)) => Err(ConfigError { setting, rule }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid_and_bad_settings_are_named() {
        let config = Config::new(([127, 0, 0, 1], 0).into());
        assert_eq!(config.validate(), Ok(()));
        let rare_pings = Config { keep_alive: Duration::from_secs(5), ..config.clone() };
        assert_eq!(rare_pings.validate().unwrap_err().setting, "keep_alive");
        let huge = Config { frame_bytes_max: usize::MAX, ..config };
        assert_eq!(huge.validate().unwrap_err().setting, "frame_bytes_max");
    }
}
