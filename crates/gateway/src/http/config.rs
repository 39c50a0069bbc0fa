//! Bounds of the HTTP server.

use std::time::Duration;

use super::host::is_host_name;
use crate::Pace;

/// Bounds of the HTTP server. [`HttpConfig::default`] suits a node with a few hundred MB to spare.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpConfig {
    /// Open connections. At least 1. Raise it with the number of clients. Further ones use
    /// [`reserved_connections_max`](Self::reserved_connections_max).
    pub connections_max: usize,
    /// The same, from one address; an IPv6 network of 64 bits is one address. At least 1. Behind a proxy all
    /// clients have one address.
    pub connections_per_address_max: usize,
    /// Connections beyond these limits: they serve probes, metrics and the administration, one request each,
    /// and those that have not sent theirs yet make room for newer ones. 1 to 1,024.
    pub reserved_connections_max: usize,
    /// Requests for records in progress at the same time; more are refused as `busy`. At least 1. A request
    /// whose body is still arriving does not count.
    pub requests_max: usize,
    /// Longest request head in bytes: 8 KiB to 1 MiB. It carries the key, percent-encoded to up to three
    /// times its length.
    pub header_bytes_max: usize,
    /// How long a connection may take to send its first byte. 100 ms to 10 min. Well above a round trip.
    pub first_byte_timeout: Duration,
    /// How long a request head may take to arrive after its first byte. 100 ms to 10 min.
    pub head_timeout: Duration,
    /// How long a connection may stay idle between requests. 1 s to 10 min.
    pub idle_timeout: Duration,
    /// The slowest pace at which a body may arrive. Its request's own deadline holds as well.
    pub body_pace: Pace,
    /// The slowest pace at which answers may be read.
    pub answer_pace: Pace,
    /// Names by which clients reach this node: a request with another name in `Host` is refused, unless that
    /// is an address or a name of the loopback. `*.example.com` stands for all names below it, `*` for all.
    pub host_names: Vec<String>,
    /// Open event streams; more are refused as `busy`.
    pub streams_max: usize,
    /// Origins (`https://host:port`) whose pages may use this node from a browser. Empty: only the node's own
    /// page.
    pub cors_origins: Vec<String>,
    /// How long open requests may still take when the server stops.
    pub stop_grace: Duration,
}

/// A setting is out of its range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{setting} must be {range}")]
pub struct HttpConfigError {
    /// The setting.
    pub setting: &'static str,
    /// The values it may have.
    pub range: &'static str,
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self {
            connections_max: 1_024,
            connections_per_address_max: 768,
            reserved_connections_max: 16,
            requests_max: 512,
            header_bytes_max: 64 * 1024,
            first_byte_timeout: Duration::from_secs(5),
            head_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(60),
            body_pace: Pace { grace: Duration::from_secs(2), bytes_per_second_min: 16 << 10 },
            answer_pace: Pace { grace: Duration::from_secs(10), bytes_per_second_min: 16 << 10 },
            host_names: Vec::new(),
            streams_max: 64,
            cors_origins: Vec::new(),
            stop_grace: Duration::from_secs(5),
        }
    }
}

impl HttpConfig {
    /// Checks all ranges.
    ///
    /// # Errors
    /// The first setting that is out of its range.
    pub fn validate(&self) -> Result<(), HttpConfigError> {
        let longest = Duration::from_secs(600);
        let quick = Duration::from_millis(100)..=longest;
        let names_are_valid = self.host_names.iter().all(|name| is_host_name(name));
        let pace = "100 ms to 10 min, and at least 1 byte per second";
        let checks = [
            (self.connections_max >= 1, "connections_max", "at least 1"),
            (self.connections_per_address_max >= 1, "connections_per_address_max", "at least 1"),
            ((1..=1_024).contains(&self.reserved_connections_max), "reserved_connections_max", "1 to 1,024"),
            (self.requests_max >= 1, "requests_max", "at least 1"),
            ((8 << 10..=1 << 20).contains(&self.header_bytes_max), "header_bytes_max", "8 KiB to 1 MiB"),
            (quick.contains(&self.first_byte_timeout), "first_byte_timeout", "100 ms to 10 min"),
            (quick.contains(&self.head_timeout), "head_timeout", "100 ms to 10 min"),
            ((Duration::from_secs(1)..=longest).contains(&self.idle_timeout), "idle_timeout", "1 s to 10 min"),
            (self.body_pace.is_valid(), "body_pace", pace),
            (self.answer_pace.is_valid(), "answer_pace", pace),
            (names_are_valid, "host_names", "names without ports, `*.name` or `*`"),
        ];
        match checks.into_iter().find(|(holds, ..)| !holds) {
            Some((_, setting, range)) => Err(HttpConfigError { setting, range }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_valid_and_a_zero_bound_is_not() {
        assert_eq!(HttpConfig::default().validate(), Ok(()));
        let config = HttpConfig { requests_max: 0, ..HttpConfig::default() };
        assert_eq!(config.validate().map_err(|error| error.setting), Err("requests_max"));
    }
}
