//! Where a node listens, where it says that it is, and where it looks for others.

use std::{
    net::{SocketAddr, ToSocketAddrs as _},
    str::FromStr,
};

use anyhow::{Context as _, bail};
use flotilla_types::{HostPort, ParseHostPortError};
use serde::Deserialize;

/// A host and port in the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Location(pub(crate) HostPort);

impl FromStr for Location {
    type Err = ParseHostPortError;

    fn from_str(text: &str) -> Result<Self, ParseHostPortError> {
        text.parse().map(Self)
    }
}

impl TryFrom<String> for Location {
    type Error = ParseHostPortError;

    fn try_from(text: String) -> Result<Self, ParseHostPortError> {
        text.parse()
    }
}

impl From<SocketAddr> for Location {
    fn from(address: SocketAddr) -> Self {
        Self(address.into())
    }
}

/// The address to bind for a place of this machine. Of the addresses of a name the first of IPv4 is taken:
/// nodes of one cluster must not differ by the order in which their machines resolve names.
pub(crate) fn to_bind(flag: &str, place: &HostPort) -> anyhow::Result<SocketAddr> {
    let HostPort::Name { host, port } = place else {
        return place.address().with_context(|| format!("{flag}: {place} is no address"));
    };
    let unresolved = || format!("{flag}: the name {host} does not resolve");
    let found: Vec<_> = (host.as_str(), *port).to_socket_addrs().with_context(unresolved)?.collect();
    found.iter().find(|address| address.is_ipv4()).or(found.first()).copied().with_context(unresolved)
}

/// Where other nodes reach this one.
pub(crate) fn advertised(listen: &HostPort, advertise: Option<HostPort>) -> anyhow::Result<HostPort> {
    match advertise {
        Some(place) if place.is_reachable() => Ok(place),
        Some(place) => bail!("--advertise: nobody can reach {place}; name a host and port of this machine"),
        None if listen.is_reachable() => Ok(listen.clone()),
        None if listen.port() == 0 => {
            bail!("--listen {listen} is any port; name the one at which other nodes reach this node with --advertise")
        }
        None => bail!(
            "--listen {listen} is every address of this machine; name the one at which other nodes reach it \
             with --advertise, such as --advertise db-1.example.com:{}",
            listen.port()
        ),
    }
}

/// Addresses at which other nodes may be.
pub(crate) fn hints(join: Option<Vec<Location>>) -> anyhow::Result<Vec<HostPort>> {
    let places: Vec<HostPort> = join.unwrap_or_default().into_iter().map(|place| place.0).collect();
    match places.iter().find(|place| !place.is_reachable()) {
        Some(place) => bail!("--join: nobody can be reached at {place}; name the --advertise addresses of nodes"),
        None => Ok(places),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(text: &str) -> HostPort {
        text.parse().expect(text)
    }

    #[test]
    fn a_wildcard_is_never_advertised() {
        for (listen, advertise, expected) in [
            ("10.0.0.1:7110", None, Some("10.0.0.1:7110")),
            ("db-1:7110", None, Some("db-1:7110")),
            ("0.0.0.0:7110", Some("db-1:7110"), Some("db-1:7110")),
            ("[::]:7110", Some("10.0.0.1:7199"), Some("10.0.0.1:7199")),
            ("0.0.0.0:7110", None, None),
            ("[::]:7110", None, None),
            ("127.0.0.1:0", None, None),
            ("10.0.0.1:7110", Some("0.0.0.0:7110"), None),
            ("10.0.0.1:7110", Some("db-1:0"), None),
        ] {
            let found = advertised(&place(listen), advertise.map(place));
            assert_eq!(found.ok(), expected.map(place), "{listen} {advertise:?}");
        }
    }

    #[test]
    fn names_to_listen_on_resolve() {
        let bound = to_bind("--listen", &place("localhost:7110")).expect("localhost");
        assert!(bound.ip().is_loopback() && bound.port() == 7110);
        assert!(to_bind("--listen", &place("missing.invalid:1")).unwrap_err().to_string().contains("missing.invalid"));
    }
}
