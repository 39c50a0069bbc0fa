//! Bounds of the HTTP server.

use std::time::Duration;

/// Bounds of the HTTP server. [`HttpConfig::default`] suits a node with a few hundred MB to spare.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpConfig {
    /// Open connections; more wait in the listener's backlog. At least 1. Raise it with the number of
    /// clients.
    pub connections_max: usize,
    /// Requests in progress at the same time; more are refused as `busy`. At least 1. Probes and status do
    /// not count.
    pub requests_max: usize,
    /// Bytes of bodies larger than 64 KiB that may be in memory at the same time; more wait until their
    /// deadline. At least 16 MiB, the largest body.
    pub body_bytes_in_flight_max: usize,
    /// Longest request head in bytes: 8 KiB to 1 MiB. It carries the key, percent-encoded to up to three
    /// times its length.
    pub header_bytes_max: usize,
    /// How long a request head may take to arrive, and how long a connection may stay idle. 1 s to 10 min.
    pub header_read_timeout: Duration,
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
            requests_max: 512,
            body_bytes_in_flight_max: 64 * 1024 * 1024,
            header_bytes_max: 64 * 1024,
            header_read_timeout: Duration::from_secs(60),
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
        let timeout = Duration::from_secs(1)..=Duration::from_secs(600);
        let checks = [
            (self.connections_max >= 1, "connections_max", "at least 1"),
            (self.requests_max >= 1, "requests_max", "at least 1"),
            (
                (16 << 20..=4 << 30).contains(&self.body_bytes_in_flight_max),
                "body_bytes_in_flight_max",
                "16 MiB to 4 GiB",
            ),
            ((8 << 10..=1 << 20).contains(&self.header_bytes_max), "header_bytes_max", "8 KiB to 1 MiB"),
            (timeout.contains(&self.header_read_timeout), "header_read_timeout", "1 s to 10 min"),
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
