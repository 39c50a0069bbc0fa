//! Listen addresses of nodes: chosen by the operating system for tests, a fixed layout for `cluster-up`.

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
};

/// Distance between the port ranges of two nodes in a fixed layout.
pub const BASE_STEP: u16 = 10;

/// The addresses of one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ports {
    /// Peers (QUIC, so UDP).
    pub quic: SocketAddr,
    /// HTTP.
    pub http: SocketAddr,
    /// Redis protocol.
    pub redis: SocketAddr,
}

impl Ports {
    /// Free addresses for `count` nodes, all different, chosen by the operating system.
    ///
    /// They are free when this returns; another process could still bind one before the node does.
    ///
    /// # Errors
    /// No port could be bound.
    pub fn free(count: usize) -> io::Result<Vec<Self>> {
        let ip = loopback();
        // All sockets stay open until all ports are known, so that no port is returned twice.
        let mut held = Vec::with_capacity(count);
        for _ in 0..count {
            held.push((UdpSocket::bind((ip, 0))?, TcpListener::bind((ip, 0))?, TcpListener::bind((ip, 0))?));
        }
        let addrs = held.iter().map(|(quic, http, redis)| {
            Ok(Self { quic: quic.local_addr()?, http: http.local_addr()?, redis: redis.local_addr()? })
        });
        addrs.collect()
    }

    /// The fixed addresses of node `number` (from 1): `base + 10 × number`, then `+0` QUIC, `+1` HTTP, `+2`
    /// Redis.
    ///
    /// `None` if that exceeds port 65535.
    #[must_use]
    pub fn fixed(base: u16, number: usize) -> Option<Self> {
        let first = BASE_STEP.checked_mul(u16::try_from(number).ok()?)?.checked_add(base)?;
        let at = |offset| Some(SocketAddr::from((Ipv4Addr::LOCALHOST, first.checked_add(offset)?)));
        Some(Self { quic: at(0)?, http: at(1)?, redis: at(2)? })
    }
}

/// A loopback address that is unlikely to be in use by another process; 127.0.0.1 if the system has no other.
///
/// On 127.0.0.1 another test could get a port before the node it was meant for binds it, and an outgoing
/// connection could take the port of a node that is briefly down. On Linux every address in 127.0.0.0/8
/// works, so each call picks one of four million at random.
#[must_use]
pub fn loopback() -> IpAddr {
    // The standard library's only source of randomness.
    let [high, mid, low, ..] = RandomState::new().build_hasher().finish().to_be_bytes();
    let own = IpAddr::from([127, 64 | (high & 63), mid, low]);
    if UdpSocket::bind((own, 0)).is_ok() { own } else { IpAddr::from(Ipv4Addr::LOCALHOST) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn free_addresses_are_all_different() {
        let ports = Ports::free(5).expect("free ports on the loopback interface");
        let tcp: BTreeSet<_> = ports.iter().flat_map(|node| [node.http, node.redis]).collect();
        let udp: BTreeSet<_> = ports.iter().map(|node| node.quic).collect();
        assert_eq!((tcp.len(), udp.len()), (10, 5));
    }

    #[test]
    fn the_fixed_layout_is_ten_apart() {
        let second = Ports::fixed(7_100, 2).expect("ports below the last");
        assert_eq!(second.quic, ([127, 0, 0, 1], 7_120).into());
        assert_eq!(second.http, ([127, 0, 0, 1], 7_121).into());
        assert_eq!(second.redis, ([127, 0, 0, 1], 7_122).into());
        assert_eq!(Ports::fixed(65_500, 4), None);
    }
}
