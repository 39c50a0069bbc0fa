//! Bounds of the Redis server.

use std::time::Duration;

use flotilla_gateway::Pace;

/// Bounds of the Redis server. [`ServerConfig::default`] suits a node with a few hundred MB to spare.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerConfig {
    /// Open connections; a further one gets an error reply and is closed. 1 to 65,536. Raise it with the
    /// number of clients.
    pub connections_max: usize,
    /// The same, from one address; an IPv6 network of 64 bits is one address. 1 to 65,536. Behind a proxy all
    /// clients have one address.
    pub connections_per_address_max: usize,
    /// Requests of one connection that have been read and not yet answered. 1 to 4,096. A higher limit makes
    /// long pipelines faster, and lets one connection use a larger share of the node.
    pub in_flight_max: usize,
    /// Bytes of one connection's requests in flight, of their expected replies and of replies not yet sent;
    /// at this limit, no further requests are read. 64 KiB to 1 GiB. Replies are expected to be as large as
    /// recent ones, so a connection exceeds the limit when they suddenly grow.
    pub buffered_bytes_max: usize,
    /// The same for all connections together: above it, each connection has one request in flight. 1 MiB to 1
    /// TiB. What is really held, not only expected, is also bounded by the node's budget.
    pub buffered_bytes_total_max: usize,
    /// How long a request may take, from when it was read. 100 ms to 10 min.
    pub request_timeout: Duration,
    /// How long a connection may take to send its first byte. 100 ms to 10 min.
    pub first_byte_timeout: Duration,
    /// How long a request may take to arrive. 100 ms to 10 min; the largest one on the slowest line.
    pub arrival_timeout: Duration,
    /// The slowest pace at which replies may be read.
    pub reply_pace: Pace,
    /// How long connections may still take to end when the server stops. At most 10 min; longer than a
    /// request, so that each is answered.
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
            connections_per_address_max: 3_072,
            in_flight_max: 256,
            buffered_bytes_max: 16 << 20,
            buffered_bytes_total_max: 256 << 20,
            request_timeout: Duration::from_secs(5),
            first_byte_timeout: Duration::from_secs(60),
            arrival_timeout: Duration::from_secs(30),
            reply_pace: Pace { grace: Duration::from_secs(10), bytes_per_second_min: 16 << 10 },
            stop_grace: Duration::from_secs(6),
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
            ((1..=65_536).contains(&self.connections_per_address_max), "connections_per_address_max", "1 to 65,536"),
            ((1..=4_096).contains(&self.in_flight_max), "in_flight_max", "1 to 4,096"),
            ((64 << 10..=1 << 30).contains(&self.buffered_bytes_max), "buffered_bytes_max", "64 KiB to 1 GiB"),
            (
                (1 << 20..=1 << 40).contains(&self.buffered_bytes_total_max),
                "buffered_bytes_total_max",
                "1 MiB to 1 TiB",
            ),
            (timeouts.contains(&self.request_timeout), "request_timeout", "100 ms to 10 min"),
            (timeouts.contains(&self.first_byte_timeout), "first_byte_timeout", "100 ms to 10 min"),
            (timeouts.contains(&self.arrival_timeout), "arrival_timeout", "100 ms to 10 min"),
            (self.reply_pace.is_valid(), "reply_pace", "100 ms to 10 min, and at least 1 byte per second"),
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
