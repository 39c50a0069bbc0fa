//! State of a connection: its protocol and its name. Commands about the connection are answered here, without
//! the store.
//!
//! A password is a client key, for the user `default`. While access is open there are no passwords: everybody
//! may do everything, as in Redis without `requirepass`.

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use flotilla_gateway::{Access, Denied, Grant, Right};

use super::REDIS_VERSION;
use crate::{
    ClientCommand, ClientInfo, Command, Hello, Protocol, Reply, Spec, answer::integer, clients::Client,
    clients::Clients, clients::Profile, config_reply, execute::COLLECTION, hello_reply, introspection_reply,
};

/// Longest name or version that a client may set, in bytes.
const CLIENT_TEXT_BYTES_MAX: usize = 256;

const TEXT_TOO_LONG: &str = "ERR names and versions of clients are limited to 256 bytes";
const NO_PASSWORD: &str = "ERR AUTH <password> called without any password configured for the default user. \
                           Are you sure your configuration is correct?";
const NO_AUTH: &str = "NOAUTH Authentication required.";
const HELLO_NO_AUTH: &str = "NOAUTH HELLO must be called with the client already authenticated, otherwise the HELLO \
                             <proto> AUTH <user> <pass> option can be used to authenticate the client and select the \
                             RESP protocol version at the same time";
const TOO_MANY_TRIES: &str = "ERR too many wrong keys came from this address; wait";
/// Commands that a client may send before it authenticates, as in Redis.
const NEEDS_NO_KEY: [&str; 4] = ["auth", "hello", "quit", "reset"];
const WRONG_PASSWORD: &str = "WRONGPASS invalid username-password pair or user is disabled.";

/// A connection's state.
pub(super) struct Session {
    client: Arc<Client>,
    /// Encodes the following replies.
    pub(super) protocol: Protocol,
    /// What the client's key allows; `None` before it authenticates.
    grant: Option<Grant>,
    /// The client sent `QUIT`: nothing further is read.
    pub(super) has_quit: bool,
}

impl Session {
    pub(super) fn new(client: Arc<Client>) -> Self {
        Self { client, protocol: Protocol::default(), grant: None, has_quit: false }
    }

    /// Whether the client may send this request: its key is still valid and has the right that the command
    /// needs. Otherwise the reply.
    pub(super) fn authorize(&mut self, request: &[Bytes], access: &Access, now_ms: u64) -> Result<(), Reply> {
        if !access.needs_key() {
            return Ok(());
        }
        let spec = request.first().and_then(|name| Spec::find(name));
        if spec.is_some_and(|spec| NEEDS_NO_KEY.contains(&spec.name)) {
            return Ok(());
        }
        self.grant.take_if(|grant| !access.is_current(grant, now_ms));
        let grant = self.grant.as_ref().ok_or_else(|| Reply::Error(NO_AUTH.into()))?;
        let checked = match spec.map_or(Right::Inspect, Spec::right) {
            right @ (Right::Read | Right::Write) => grant.check_collection(right, COLLECTION),
            right => grant.check(right),
        };
        checked.map_err(|denied| Reply::Error(format!("NOPERM {denied}").into()))
    }

    /// The reply to a command that does not use the store.
    pub(super) fn answer(
        &mut self,
        command: Command,
        clients: &Clients,
        access: &Access,
        now: Instant,
        now_ms: u64,
    ) -> Reply {
        match command {
            Command::Ping(None) => Reply::Simple("PONG"),
            Command::Ping(Some(message)) | Command::Echo(message) => Reply::Bulk(message),
            Command::Hello(hello) => self.hello(hello, access, now_ms),
            Command::Auth { user: None, .. } if !access.needs_key() => Reply::Error(NO_PASSWORD.into()),
            Command::Auth { user, password } => {
                self.authenticate(user.as_deref(), &password, access, now_ms).err().unwrap_or(Reply::OK)
            }
            Command::Select => Reply::OK,
            Command::Quit => {
                self.has_quit = true;
                Reply::OK
            }
            Command::Reset => {
                self.protocol = Protocol::default();
                self.grant = None;
                self.client.update(|profile| {
                    profile.name = Bytes::new();
                    profile.protocol = Protocol::default();
                });
                Reply::Simple("RESET")
            }
            Command::Client(command) => self.client(command, clients, now),
            Command::Introspection(query) => introspection_reply(&query),
            Command::ConfigGet(patterns) => config_reply(&patterns),
            // All other commands use the store and are never passed to a session.
            _ => Reply::Error("ERR not a command about the connection".into()),
        }
    }

    /// Changes nothing if any part of the command is refused.
    fn hello(&mut self, hello: Hello, access: &Access, now_ms: u64) -> Reply {
        if let Some((user, password)) = &hello.auth
            && let Err(refusal) = self.authenticate(Some(user), password, access, now_ms)
        {
            return refusal;
        }
        if access.needs_key() && self.grant.is_none() {
            return Reply::Error(HELLO_NO_AUTH.into());
        }
        if let Some(name) = hello.name {
            let reply = self.set_profile(name, |profile, name| profile.name = name);
            if reply != Reply::OK {
                return reply;
            }
        }
        self.protocol = hello.protocol.unwrap_or(self.protocol);
        self.client.update(|profile| profile.protocol = self.protocol);
        hello_reply(REDIS_VERSION, self.protocol, self.client.id)
    }

    /// Accepts a key as the password of the user `default`; while access is open, any password.
    fn authenticate(
        &mut self,
        user: Option<&[u8]>,
        password: &[u8],
        access: &Access,
        now_ms: u64,
    ) -> Result<(), Reply> {
        if user.is_some_and(|user| user != b"default") {
            return Err(Reply::Error(WRONG_PASSWORD.into()));
        }
        match access.authenticate(password, self.client.peer.ip(), now_ms) {
            Ok(grant) => {
                self.grant = Some(grant);
                Ok(())
            }
            Err(Denied::TooManyTries { .. }) => Err(Reply::Error(TOO_MANY_TRIES.into())),
            Err(_) => Err(Reply::Error(WRONG_PASSWORD.into())),
        }
    }

    fn client(&mut self, command: ClientCommand, clients: &Clients, now: Instant) -> Reply {
        match command {
            ClientCommand::SetName(name) => self.set_profile(name, |profile, name| profile.name = name),
            ClientCommand::SetInfo(ClientInfo::LibraryName, name) => {
                self.set_profile(name, |profile, name| profile.library_name = name)
            }
            ClientCommand::SetInfo(ClientInfo::LibraryVersion, version) => {
                self.set_profile(version, |profile, version| profile.library_version = version)
            }
            ClientCommand::GetName => {
                Reply::bulk_or_null(Some(self.client.profile().name).filter(|name| !name.is_empty()))
            }
            ClientCommand::Id => Reply::Integer(integer(self.client.id)),
            ClientCommand::Info => Reply::Verbatim(self.client.describe(now)),
            ClientCommand::List => Reply::Verbatim(clients.list(now)),
            ClientCommand::NoEffect => Reply::OK,
        }
    }

    fn set_profile(&self, text: Bytes, set: impl FnOnce(&mut Profile, Bytes)) -> Reply {
        if text.len() > CLIENT_TEXT_BYTES_MAX {
            return Reply::Error(TEXT_TOO_LONG.into());
        }
        // Copies the text, which is a slice of an input buffer that it would keep in memory.
        let text = Bytes::copy_from_slice(&text);
        self.client.update(|profile| set(profile, text));
        Reply::OK
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::parse::testing::parsed;

    struct Server {
        access: Access,
        clients: Clients,
        session: Session,
    }

    impl Server {
        fn new() -> Self {
            let clients = Clients::default();
            let address = SocketAddr::from(([127, 0, 0, 1], 1));
            let session = Session::new(clients.open(address, address, Instant::now()));
            Self { access: Access::open(), clients, session }
        }

        fn answer(&mut self, line: &str) -> Reply {
            self.session.answer(parsed(line).unwrap(), &self.clients, &self.access, Instant::now(), 0)
        }
    }

    #[test]
    fn a_connection_has_a_protocol_and_a_name_until_it_is_reset() {
        let mut server = Server::new();
        assert_eq!(server.answer("CLIENT GETNAME"), Reply::Null);
        assert!(matches!(server.answer("HELLO 3 SETNAME me"), Reply::Map(_)));
        assert_eq!(server.session.protocol, Protocol::Resp3);
        assert_eq!(server.answer("CLIENT GETNAME"), Reply::text("me"));
        assert_eq!(server.answer("CLIENT SETINFO lib-name x"), Reply::OK);
        let info = server.answer("CLIENT INFO");
        assert!(
            matches!(&info, Reply::Verbatim(text) if text.contains("name=me ") && text.contains("resp=3 lib-name=x"))
        );
        assert_eq!(server.answer("CLIENT LIST"), info);
        assert_eq!(server.answer("RESET"), Reply::Simple("RESET"));
        assert_eq!((server.session.protocol, server.answer("CLIENT GETNAME")), (Protocol::Resp2, Reply::Null));
    }

    #[test]
    fn a_refused_hello_changes_nothing() {
        let mut server = Server::new();
        assert_eq!(server.answer("HELLO 3 AUTH other p"), Reply::Error(WRONG_PASSWORD.into()));
        let long = "x".repeat(CLIENT_TEXT_BYTES_MAX + 1);
        assert_eq!(server.answer(&format!("HELLO 3 SETNAME {long}")), Reply::Error(TEXT_TOO_LONG.into()));
        assert_eq!(server.session.protocol, Protocol::Resp2);
    }

    #[test]
    fn there_is_no_password() {
        let mut server = Server::new();
        assert_eq!(server.answer("AUTH p"), Reply::Error(NO_PASSWORD.into()));
        assert_eq!(server.answer("AUTH default p"), Reply::OK);
        assert_eq!(server.answer("AUTH other p"), Reply::Error(WRONG_PASSWORD.into()));
    }

    #[test]
    fn quit_is_answered_and_ends_the_session() {
        let mut server = Server::new();
        assert_eq!(server.answer("PING"), Reply::Simple("PONG"));
        assert_eq!(server.answer("ECHO hi"), Reply::text("hi"));
        assert!(!server.session.has_quit);
        assert_eq!(server.answer("QUIT"), Reply::OK);
        assert!(server.session.has_quit);
    }
}
