//! Where a node is reached: a host and a port. The host may be a name, which is resolved whenever it is used.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

/// Longest host name, in bytes (RFC 1035).
const NAME_BYTES_MAX: usize = 253;

/// A host and a port: `10.0.0.1:7110`, `[fd00::1]:7110` or `db-1.example.com:7110`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HostPort {
    /// An address.
    Address(SocketAddr),
    /// A name.
    Name {
        /// Letters, digits, `-`, `_` and dots; not an address.
        host: String,
        /// The port.
        port: u16,
    },
}

/// A text is no host and port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParseHostPortError;

impl HostPort {
    /// The port.
    #[must_use]
    pub fn port(&self) -> u16 {
        match self {
            Self::Address(address) => address.port(),
            Self::Name { port, .. } => *port,
        }
    }

    /// The address, if it is one.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Address(address) => Some(*address),
            Self::Name { .. } => None,
        }
    }

    /// The host's IP address, if it is one.
    #[must_use]
    pub fn ip(&self) -> Option<IpAddr> {
        self.address().map(|address| address.ip())
    }

    /// Whether another node could dial it: neither every address of a machine, nor port 0, which means any.
    #[must_use]
    pub fn is_reachable(&self) -> bool {
        self.port() != 0 && !self.ip().is_some_and(|ip| ip.to_canonical().is_unspecified())
    }
}

impl From<SocketAddr> for HostPort {
    fn from(address: SocketAddr) -> Self {
        Self::Address(address)
    }
}

impl FromStr for HostPort {
    type Err = ParseHostPortError;

    fn from_str(text: &str) -> Result<Self, ParseHostPortError> {
        if let Ok(address) = text.parse() {
            return Ok(Self::Address(address));
        }
        let (host, port) = text.rsplit_once(':').ok_or(ParseHostPortError)?;
        let is_number = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
        if !is_name(host) || !is_number {
            return Err(ParseHostPortError);
        }
        Ok(Self::Name { host: host.to_owned(), port: port.parse().map_err(|_| ParseHostPortError)? })
    }
}

/// Whether this is a host name. The last label of one is no number, so that no mistyped address is resolved.
fn is_name(host: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let labels = host.strip_suffix('.').unwrap_or(host);
    let last = labels.rsplit('.').next().unwrap_or_default();
    (1..=NAME_BYTES_MAX).contains(&host.len())
        && host.bytes().all(plain)
        && labels.split('.').all(|label| !label.is_empty())
        && !last.bytes().all(|byte| byte.is_ascii_digit())
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Name { host, port } => write!(f, "{host}:{port}"),
        }
    }
}

impl fmt::Display for ParseHostPortError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("expected host:port, such as 10.0.0.1:7110, [fd00::1]:7110 or db-1.example.com:7110")
    }
}

impl std::error::Error for ParseHostPortError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_names_parse_and_print_alike() {
        for text in ["10.0.0.1:7110", "[fd00::1]:7110", "localhost:1", "db-1.example.com:65535", "a_b:7", "x.:80"] {
            let parsed: HostPort = text.parse().expect(text);
            assert_eq!(parsed.to_string(), text);
            assert_eq!(parsed.address().is_some(), text.starts_with(['1', '[']), "{text}");
        }
    }

    #[test]
    fn what_names_no_host_and_port_is_refused() {
        let long = format!("{}:1", "a".repeat(254));
        for text in [
            "",
            ":",
            "host",
            "host:",
            ":7110",
            "host:65536",
            "host:+1",
            "300.1.1.1:7",
            "10.0.0:7",
            "a b:7",
            "fd00::1:7",
            "a..b:7",
            ".a:7",
            "http://a:7",
            "a\u{1b}[2J:7",
            long.as_str(),
        ] {
            assert_eq!(text.parse::<HostPort>(), Err(ParseHostPortError), "{text}");
        }
    }

    #[test]
    fn wildcards_and_port_zero_reach_nothing() {
        for (text, reachable) in [
            ("0.0.0.0:7110", false),
            ("[::]:7110", false),
            ("[::ffff:0.0.0.0]:7110", false),
            ("10.0.0.1:0", false),
            ("db-1:0", false),
            ("10.0.0.1:7110", true),
            ("db-1:7110", true),
        ] {
            assert_eq!(text.parse::<HostPort>().expect(text).is_reachable(), reachable, "{text}");
        }
    }
}
