//! The registry of open connections: the text of `CLIENT LIST`, and counts.

use std::{
    collections::BTreeMap,
    fmt::Write,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use bytes::Bytes;
use parking_lot::Mutex;

use crate::Protocol;

/// All connections of a server.
#[derive(Debug, Default)]
pub(crate) struct Clients {
    open: Mutex<BTreeMap<u64, Arc<Client>>>,
    /// Connections accepted so far, which is the id of the last one.
    accepted: AtomicU64,
}

/// One connection, as `CLIENT LIST` shows it.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) id: u64,
    pub(crate) peer: SocketAddr,
    local: SocketAddr,
    connected_at: Instant,
    profile: Mutex<Profile>,
}

/// Attributes that a client sets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Profile {
    pub(crate) name: Bytes,
    pub(crate) library_name: Bytes,
    pub(crate) library_version: Bytes,
    pub(crate) protocol: Protocol,
}

impl Clients {
    /// Registers a new connection.
    pub(crate) fn open(&self, peer: SocketAddr, local: SocketAddr, now: Instant) -> Arc<Client> {
        let id = self.accepted.fetch_add(1, Ordering::Relaxed) + 1;
        let client = Arc::new(Client { id, peer, local, connected_at: now, profile: Mutex::default() });
        self.open.lock().insert(id, client.clone());
        client
    }

    pub(crate) fn close(&self, id: u64) {
        self.open.lock().remove(&id);
    }

    /// Open connections.
    pub(crate) fn count(&self) -> usize {
        self.open.lock().len()
    }

    /// Connections accepted so far.
    pub(crate) fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    /// The text of `CLIENT LIST`.
    pub(crate) fn list(&self, now: Instant) -> String {
        let clients: Vec<_> = self.open.lock().values().cloned().collect();
        clients.iter().map(|client| client.describe(now)).collect()
    }
}

impl Client {
    /// A copy of the client's attributes.
    pub(crate) fn profile(&self) -> Profile {
        self.profile.lock().clone()
    }

    /// Changes the client's attributes.
    pub(crate) fn update(&self, change: impl FnOnce(&mut Profile)) {
        change(&mut self.profile.lock());
    }

    /// One line of `CLIENT LIST`.
    pub(crate) fn describe(&self, now: Instant) -> String {
        let profile = self.profile();
        let mut line = format!("id={} addr={} laddr={} name=", self.id, self.peer, self.local);
        line.push_str(&String::from_utf8_lossy(&profile.name));
        let age = now.saturating_duration_since(self.connected_at).as_secs();
        let protocol = profile.protocol.number();
        let (library, version) =
            (String::from_utf8_lossy(&profile.library_name), String::from_utf8_lossy(&profile.library_version));
        writeln!(
            line,
            " age={age} flags=N db=0 sub=0 psub=0 multi=-1 user=default resp={protocol} lib-name={library} lib-ver={version}",
        )
        .expect("writing to a string cannot fail");
        line
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn clients_are_listed_while_they_are_connected() {
        let clients = Clients::default();
        let now = Instant::now();
        let address = SocketAddr::from(([127, 0, 0, 1], 5));
        let (one, two) = (clients.open(address, address, now), clients.open(address, address, now));
        two.update(|profile| profile.name = Bytes::from_static(b"me"));
        clients.close(one.id);
        let list = clients.list(now + Duration::from_secs(3));
        assert!(list.starts_with("id=2 addr=127.0.0.1:5 laddr=127.0.0.1:5 name=me age=3 "), "{list}");
        assert_eq!((list.lines().count(), clients.count(), clients.accepted()), (1, 1, 2));
    }
}
