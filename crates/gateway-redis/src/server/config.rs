//! Bounds of the Redis server.

use std::time::Duration;

/// Bounds of the Redis server. [`ServerConfig::default`] suits a node with a few hundred MB to spare.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerConfig {
    /// Open connections; a further one gets an error reply and is closed. 1 to 65,536. Raise it with the
    /// number of clients.
    pub connections_max: usize,
    /// Requests of one connection that have been read and not yet answered. 1 to 4,096. A higher limit makes
    /// long pipelines faster, and lets one connection use a larger share of the node.
    pub in_flight_max: usize,
    /// Bytes of one connection's requests in flight, of their expected replies and of replies not yet sent;
    /// at this limit, no further requests are read. 64 KiB to 1 GiB. Replies are expected to be as large as
    /// recent ones, so a connection exceeds the limit when they suddenly grow.
    pub buffered_bytes_max: usize,
    /// The same for all connections together: above it, each connection has one request in flight. 1 MiB to 1
    /// TiB; a few percent of the process's memory.
    pub buffered_bytes_total_max: usize,
    /// How long a request may take, from when it was read. 100 ms to 10 min.
    pub request_timeout: Duration,
    /// How long open requests may still take when the server stops. At most 10 min.
    pub stop_grace: Duration,
}

/// A setting is out of its range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{setting} must be {range}")]
pub struct ServerConfigError {
    /// The setting.
    pub setting: &'static str,
    /// The values it may have.
    pub range: &'static str,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            connections_max: 4_096,
            in_flight_max: 256,
            buffered_bytes_max: 16 << 20,
            buffered_bytes_total_max: 256 << 20,
            request_timeout: Duration::from_secs(5),
            stop_grace: Duration::from_secs(5),
        }
    }
}

impl ServerConfig {
    /// Checks all ranges.
    ///
    /// # Errors
    /// The first setting that is out of its range.
    pub fn validate(&self) -> Result<(), ServerConfigError> {
        let duration_max = Duration::from_secs(600);
        let timeouts = Duration::from_millis(100)..=duration_max;
        let checks = [
            ((1..=65_536).contains(&self.connections_max), "connections_max", "1 to 65,536"),
            ((1..=4_096).contains(&self.in_flight_max), "in_flight_max", "1 to 4,096"),
            ((64 << 10..=1 << 30).contains(&self.buffered_bytes_max), "buffered_bytes_max", "64 KiB to 1 GiB"),
            (
                (1 << 20..=1 << 40).contains(&self.buffered_bytes_total_max),
                "buffered_bytes_total_max",
                "1 MiB to 1 TiB",
            ),
            (timeouts.contains(&self.request_timeout), "request_timeout", "100 ms to 10 min"),
            (self.stop_grace <= duration_max, "stop_grace", "at most 10 min"),
        ];
        match checks.into_iter().find(|(holds, ..)| !holds) {
            Some((_, setting, range)) => Err(ServerConfigError { setting, range }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_valid_and_a_zero_bound_is_not() {
        assert_eq!(ServerConfig::default().validate(), Ok(()));
        let config = ServerConfig { in_flight_max: 0, ..ServerConfig::default() };
        assert_eq!(config.validate().map_err(|error| error.setting), Err("in_flight_max"));
    }
}
