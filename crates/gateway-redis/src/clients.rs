//! The registry of open connections: the text of `CLIENT LIST`, and counts.

use std::{
    collections::BTreeMap,
    fmt::Write,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering},
    },
    time::Instant,
};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::{ClientFilter, Database, Protocol, TABLE};

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
    /// Milliseconds after `connected_at` at which it last sent a request.
    active_ms: AtomicU64,
    /// Commands queued since `MULTI`; -1 outside a transaction.
    queued: AtomicI64,
    /// The last command, by its place in the table; beyond its end if there was none or it is unknown.
    command: AtomicUsize,
    profile: Mutex<Profile>,
    /// Another client ended this one.
    killed: Notify,
}

/// Attributes that a client sets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Profile {
    pub(crate) name: Bytes,
    pub(crate) library_name: Bytes,
    pub(crate) library_version: Bytes,
    pub(crate) protocol: Protocol,
    pub(crate) database: Database,
}

impl Clients {
    /// Registers a new connection.
    pub(crate) fn open(&self, peer: SocketAddr, local: SocketAddr, now: Instant) -> Arc<Client> {
        let id = self.accepted.fetch_add(1, Ordering::Relaxed) + 1;
        let client = Arc::new(Client {
            id,
            peer,
            local,
            connected_at: now,
            active_ms: AtomicU64::new(0),
            queued: AtomicI64::new(-1),
            command: AtomicUsize::new(usize::MAX),
            profile: Mutex::default(),
            killed: Notify::new(),
        });
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

    /// The text of `CLIENT LIST`: a line for each client that matches.
    pub(crate) fn list(&self, filter: &ClientFilter, now: Instant) -> String {
        self.matching(filter).iter().map(|client| client.describe(now)).collect()
    }

    /// Ends the connections of clients that match, except `own`. Returns how many.
    pub(crate) fn kill(&self, filter: &ClientFilter, own: u64) -> usize {
        let others: Vec<_> = self.matching(filter).into_iter().filter(|client| client.id != own).collect();
        others.iter().for_each(|client| client.killed.notify_one());
        others.len()
    }

    fn matching(&self, filter: &ClientFilter) -> Vec<Arc<Client>> {
        self.open.lock().values().filter(|client| client.matches(filter)).cloned().collect()
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

    /// Notes how many commands are queued.
    pub(crate) fn set_queued(&self, queued: i64) {
        self.queued.store(queued, Ordering::Relaxed);
    }

    /// Notes a request of the command at this place in the table.
    pub(crate) fn used(&self, command: Option<usize>, now: Instant) {
        let since = now.saturating_duration_since(self.connected_at).as_millis();
        self.active_ms.store(u64::try_from(since).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.command.store(command.unwrap_or(usize::MAX), Ordering::Relaxed);
    }

    /// Waits until another client ends this one.
    pub(crate) async fn killed(&self) {
        self.killed.notified().await;
    }

    pub(crate) fn matches(&self, filter: &ClientFilter) -> bool {
        let is = |text: &Bytes, address: SocketAddr| text[..] == *address.to_string().as_bytes();
        filter.ids.as_ref().is_none_or(|ids| ids.contains(&self.id))
            && filter.address.as_ref().is_none_or(|text| is(text, self.peer))
            && filter.local_address.as_ref().is_none_or(|text| is(text, self.local))
            && filter.user.as_ref().is_none_or(|user| user[..] == *b"default")
            && filter.is_normal
            && filter.age_s.is_none_or(|least| self.connected_at.elapsed().as_secs() >= least)
    }

    /// One line of `CLIENT LIST`.
    pub(crate) fn describe(&self, now: Instant) -> String {
        let profile = self.profile();
        let mut line = format!("id={} addr={} laddr={} name=", self.id, self.peer, self.local);
        line.push_str(&String::from_utf8_lossy(&profile.name));
        let age_ms = u64::try_from(now.saturating_duration_since(self.connected_at).as_millis()).unwrap_or(u64::MAX);
        let idle = age_ms.saturating_sub(self.active_ms.load(Ordering::Relaxed)) / 1_000;
        let (age, queued) = (age_ms / 1_000, self.queued.load(Ordering::Relaxed));
        let flags = if queued >= 0 { "x" } else { "N" };
        let command = TABLE.get(self.command.load(Ordering::Relaxed)).map_or("unknown", |spec| spec.name);
        let (protocol, database) = (profile.protocol.number(), profile.database);
        let (library, version) =
            (String::from_utf8_lossy(&profile.library_name), String::from_utf8_lossy(&profile.library_version));
        writeln!(
            line,
            " age={age} idle={idle} flags={flags} db={database} sub=0 psub=0 multi={queued} cmd={command} user=default \
             redir=-1 resp={protocol} lib-name={library} lib-ver={version}",
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
        two.set_queued(4);
        two.used(crate::Spec::place_of(b"get"), now + Duration::from_secs(1));
        let list = clients.list(&ClientFilter::default(), now + Duration::from_secs(3));
        let expected =
            "id=2 addr=127.0.0.1:5 laddr=127.0.0.1:5 name=me age=3 idle=2 flags=x db=0 sub=0 psub=0 multi=4 cmd=get ";
        assert!(list.starts_with(expected), "{list}");
        assert_eq!((list.lines().count(), clients.count(), clients.accepted()), (1, 1, 2));
    }

    #[tokio::test]
    async fn a_killed_client_is_told_and_the_killer_lives() {
        let clients = Clients::default();
        let (now, local) = (Instant::now(), SocketAddr::from(([127, 0, 0, 1], 5)));
        let open = |port| clients.open(SocketAddr::from(([127, 0, 0, 1], port)), local, now);
        let (one, two) = (open(7), open(8));
        let of = |address: &'static str| ClientFilter {
            address: Some(Bytes::from_static(address.as_bytes())),
            ..ClientFilter::default()
        };
        assert_eq!(clients.kill(&of("127.0.0.1:9"), one.id), 0);
        assert_eq!(clients.kill(&of("127.0.0.1:8"), one.id), 1);
        two.killed().await;
        assert_eq!(clients.kill(&ClientFilter::default(), one.id), 1);
        let replicas = ClientFilter { is_normal: false, ..ClientFilter::default() };
        assert_eq!(clients.kill(&replicas, 0), 0);
    }
}
