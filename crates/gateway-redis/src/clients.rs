//! Who is connected: what `CLIENT LIST` shows, and how many there are.

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
    /// Connections so far; the last one's id.
    accepted: AtomicU64,
}

/// One connection, as others may see it.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) id: u64,
    peer: SocketAddr,
    local: SocketAddr,
    since: Instant,
    profile: Mutex<Profile>,
}

/// What a client said of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Profile {
    pub(crate) name: Bytes,
    pub(crate) library_name: Bytes,
    pub(crate) library_version: Bytes,
    pub(crate) protocol: Protocol,
}

impl Clients {
    /// A new connection.
    pub(crate) fn open(&self, peer: SocketAddr, local: SocketAddr, now: Instant) -> Arc<Client> {
        let id = self.accepted.fetch_add(1, Ordering::Relaxed) + 1;
        let client = Arc::new(Client { id, peer, local, since: now, profile: Mutex::default() });
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

    /// Connections so far.
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
    /// What the client said of itself.
    pub(crate) fn profile(&self) -> Profile {
        self.profile.lock().clone()
    }

    /// Changes it.
    pub(crate) fn update(&self, change: impl FnOnce(&mut Profile)) {
        change(&mut self.profile.lock());
    }

    /// One line of `CLIENT LIST`.
    pub(crate) fn describe(&self, now: Instant) -> String {
        let profile = self.profile();
        let mut line = format!("id={} addr={} laddr={} name=", self.id, self.peer, self.local);
        line.push_str(&String::from_utf8_lossy(&profile.name));
        let age = now.saturating_duration_since(self.since).as_secs();
        let protocol = profile.protocol.number();
        let (library, version) =
            (String::from_utf8_lossy(&profile.library_name), String::from_utf8_lossy(&profile.library_version));
        writeln!(
            line,
            " age={age} flags=N db=0 sub=0 psub=0 multi=-1 user=default resp={protocol} lib-name={library} lib-ver={version}",
        )
        .expect("a growing text takes any text");
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
