//! Which connections are open: general ones, in total and per address, and reserved ones.
//!
//! A reserved connection is one beyond these limits. It may only ask for what an operator or a supervisor
//! needs ([`is_reserved_route`]), unless a general slot has become free meanwhile. While it has not sent a
//! request, it makes room for a newer one; so neither idle nor slow clients can keep probes out.

use std::{
    collections::VecDeque,
    net::IpAddr,
    sync::{Arc, Weak},
};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{HttpConfig, client::ClientConnection};
use crate::{AddressLimit, AddressSlot, ClientBudget};

/// The open connections of a server.
pub(super) struct Slots {
    general: Arc<Semaphore>,
    addresses: Arc<AddressLimit>,
    reserved_max: usize,
    /// Oldest first.
    reserved: Mutex<VecDeque<Weak<ClientConnection>>>,
}

/// The slot of a connection that may make any request.
pub(super) struct GeneralSlot {
    _permit: OwnedSemaphorePermit,
    _address: AddressSlot,
}

impl Slots {
    pub(super) fn new(config: &HttpConfig) -> Arc<Self> {
        Arc::new(Self {
            general: Arc::new(Semaphore::new(config.connections_max)),
            addresses: AddressLimit::new(config.connections_per_address_max),
            reserved_max: config.reserved_connections_max,
            reserved: Mutex::default(),
        })
    }

    /// A general slot, if there is one.
    pub(super) fn general(&self, address: IpAddr) -> Option<GeneralSlot> {
        let _permit = self.general.clone().try_acquire_owned().ok()?;
        let _address = self.addresses.enter(address)?;
        Some(GeneralSlot { _permit, _address })
    }

    /// Admits a connection; `None` if every reserved one is busy with its request.
    pub(super) fn admit(self: &Arc<Self>, budget: &ClientBudget, address: IpAddr) -> Option<Arc<ClientConnection>> {
        let slot = self.general(address);
        let is_reserved = slot.is_none();
        let connection = || Arc::new(ClientConnection::new(budget.open(), address, slot, self.clone()));
        if !is_reserved {
            return Some(connection());
        }
        let mut reserved = self.reserved.lock();
        reserved
            .retain(|other| other.upgrade().is_some_and(|other| other.is_reserved() && !other.account.is_closing()));
        if reserved.len() >= self.reserved_max {
            let silent = reserved.iter().position(|other| other.upgrade().is_some_and(|other| other.is_silent()))?;
            if let Some(other) = reserved.remove(silent).and_then(|other| other.upgrade()) {
                other.account.close();
            }
        }
        let connection = connection();
        reserved.push_back(Arc::downgrade(&connection));
        Some(connection)
    }
}

/// Whether a reserved connection may use this route: probes, metrics and the administration, but nothing that
/// reads records or stays open.
pub(super) fn is_reserved_route(route: &str) -> bool {
    const NOT_RESERVED: &[&str] = &["/v1/batch", "/v1/cluster/events", "/v1/cluster/audit", "/v1/cluster/digests"];
    !route.starts_with("/v1/kv/") && !NOT_RESERVED.contains(&route)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::{super::client::Phase, *};
    use crate::CLIENT_BYTES_MIN;

    const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
    const OTHER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2));

    #[tokio::test]
    async fn connections_beyond_the_limits_are_reserved_and_the_silent_ones_make_room() {
        let config = HttpConfig {
            connections_max: 2,
            connections_per_address_max: 1,
            reserved_connections_max: 2,
            ..HttpConfig::default()
        };
        let (slots, budget) = (Slots::new(&config), ClientBudget::new(CLIENT_BYTES_MIN));
        let admit = |address| slots.admit(&budget, address);
        let first = admit(CLIENT).expect("a connection");
        assert!(!first.is_reserved());
        let busy = admit(CLIENT).expect("a connection");
        assert!(busy.is_reserved(), "the address has its general connection");
        busy.set_phase(Phase::Working);
        let other = admit(OTHER).expect("a connection");
        assert!(!other.is_reserved());
        let silent = admit(OTHER).expect("a connection");
        let newer = admit(OTHER).expect("a connection");
        assert!(silent.account.is_closing() && !busy.account.is_closing() && !newer.account.is_closing());
        newer.set_phase(Phase::Body);
        assert!(admit(OTHER).is_none(), "all reserved connections are busy");
        drop(first);
        assert!(busy.takes_general_slot() && !busy.is_reserved());
        assert!(!newer.takes_general_slot(), "its address has no other slot");
        assert!(admit(OTHER).is_some_and(|admitted| admitted.is_reserved()));
    }

    #[test]
    fn reserved_connections_serve_no_records_and_no_streams() {
        for route in ["/health/live", "/metrics", "/v1/cluster/status", "/v1/cluster/nodes/{id}", "/v1/rpc", "/"] {
            assert!(is_reserved_route(route), "{route}");
        }
        for route in ["/v1/kv/{*rest}", "/v1/batch", "/v1/cluster/events", "/v1/cluster/audit", "/v1/cluster/digests"] {
            assert!(!is_reserved_route(route), "{route}");
        }
    }
}
