//! What every listener needs: pauses after failed accepts, and a limit on the connections of one address.
//!
//! While file descriptors have run out, `accept` fails at once, again and again: without a pause its loop
//! would take a whole CPU, and without restraint the log would fill up.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::{Instant, sleep_until};

const PAUSE_FIRST: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// When a listener may accept again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AcceptBackoff {
    pause: Duration,
    resume_at: Option<Instant>,
}

impl AcceptBackoff {
    /// Waits until the next accept is due.
    pub async fn wait(self) {
        if let Some(at) = self.resume_at {
            sleep_until(at).await;
        }
    }

    /// An accept succeeded: the next one is due at once.
    pub fn accepted(&mut self) {
        if self.resume_at.is_some() {
            tracing::info!("connections can be accepted again");
        }
        *self = Self::default();
    }

    /// An accept failed: each pause is twice as long as the one before, up to a second. Only the first
    /// failure is logged. Connections that the client gave up before they were accepted need no pause.
    pub fn failed(&mut self, error: &io::Error, now: Instant) {
        if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) {
            return;
        }
        if self.resume_at.is_none() {
            tracing::warn!(%error, "no connection can be accepted; trying again and again");
        }
        self.pause = (self.pause * 2).clamp(PAUSE_FIRST, PAUSE_MAX);
        self.resume_at = Some(now + self.pause);
    }
}

/// Limits the open connections of each client address, so that one client cannot take them all.
///
/// An IPv6 client usually has a whole /64 network, which counts as one address.
#[derive(Debug)]
pub struct AddressLimit {
    connections_max: usize,
    open: Mutex<HashMap<IpAddr, usize>>,
}

impl AddressLimit {
    /// A limit of `connections_max` for each address.
    #[must_use]
    pub fn new(connections_max: usize) -> Arc<Self> {
        Arc::new(Self { connections_max, open: Mutex::default() })
    }

    /// Counts a connection from this address until the result is dropped; `None` at the limit.
    #[must_use]
    pub fn enter(self: &Arc<Self>, address: IpAddr) -> Option<AddressSlot> {
        let address = client_of(address);
        let mut open = self.open.lock();
        let count = open.entry(address).or_insert(0);
        // An entry is never left at zero, so a refusal does not leave one behind.
        if *count >= self.connections_max {
            return None;
        }
        *count += 1;
        Some(AddressSlot { limit: self.clone(), address })
    }
}

/// One counted connection.
#[derive(Debug)]
pub struct AddressSlot {
    limit: Arc<AddressLimit>,
    address: IpAddr,
}

impl Drop for AddressSlot {
    fn drop(&mut self) {
        let mut open = self.limit.open.lock();
        if let Some(count) = open.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.address);
            }
        }
    }
}

/// The address that stands for a client.
fn client_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let network = u128::from(address) >> 64 << 64;
            Ipv6Addr::from(network).into()
        }
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_connections_of_one_address_are_limited() {
        let limit = AddressLimit::new(2);
        let address = |text: &str| text.parse::<IpAddr>().expect("an address");
        let first = limit.enter(address("10.0.0.1"));
        let second = limit.enter(address("::ffff:10.0.0.1"));
        assert!(first.is_some() && second.is_some());
        assert!(limit.enter(address("10.0.0.1")).is_none());
        let six = [limit.enter(address("2001:db8::1")), limit.enter(address("2001:db8::ffff:2"))];
        assert!(six.iter().all(Option::is_some));
        assert!(limit.enter(address("2001:db8::3")).is_none(), "a /64 network is one client");
        assert!(limit.enter(address("2001:db8:0:1::3")).is_some());
        drop(first);
        assert!(limit.enter(address("10.0.0.1")).is_some());
        drop((second, six));
        assert!(limit.open.lock().is_empty());
    }

    #[test]
    fn pauses_grow_up_to_a_second_and_end_with_a_success() {
        let (mut backoff, now) = (AcceptBackoff::default(), Instant::now());
        let mut pauses = Vec::new();
        for _ in 0..8 {
            backoff.failed(&io::Error::other("no descriptors"), now);
            pauses.push(backoff.resume_at.map(|at| at - now));
        }
        assert_eq!(pauses[..3], [20, 40, 80].map(|ms| Some(Duration::from_millis(ms))));
        assert_eq!(pauses.last(), Some(&Some(PAUSE_MAX)));
        backoff.accepted();
        assert_eq!(backoff, AcceptBackoff::default());
    }

    #[test]
    fn a_client_that_gave_up_delays_nobody() {
        let mut backoff = AcceptBackoff::default();
        backoff.failed(&io::ErrorKind::ConnectionAborted.into(), Instant::now());
        assert_eq!(backoff, AcceptBackoff::default());
    }
}
