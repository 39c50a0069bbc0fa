//! State of a connection: its protocol and its name. Commands about the connection are answered here, without
//! the store.
//!
//! A password is a client key, for the user `default`. While access is open there are no passwords: everybody
//! may do everything, as in Redis without `requirepass`.

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use flotilla_gateway::{Access, Denied, Grant, Right};

use super::{REDIS_VERSION, pause::Pause};
use crate::{
    ClientCommand, ClientInfo, Command, CommandError, Database, Hello, Protocol, Reply, ReplyMode, ScriptCommand,
    Sender, Spec,
    answer::integer,
    clients::{Client, Clients, Profile},
    clock, config_reply,
    execute::time_reply,
    hello_reply, help_reply, introspection_reply,
    keyspace::Caller,
    script::{Scripts, check},
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
/// Commands that touch every key, and so need a key for all collections.
const NEEDS_ALL: [&str; 2] = ["flushall", "flushdb"];
const WRONG_PASSWORD: &str = "WRONGPASS invalid username-password pair or user is disabled.";

/// What a session may look at besides its own connection.
pub(super) struct Context<'a> {
    pub(super) clients: &'a Clients,
    pub(super) scripts: &'a Scripts,
    pub(super) pause: &'a Pause,
    pub(super) access: &'a Access,
    pub(super) now: Instant,
    /// Unix milliseconds.
    pub(super) now_ms: u64,
}

/// A connection's state.
pub(super) struct Session {
    client: Arc<Client>,
    /// Encodes the following replies.
    pub(super) protocol: Protocol,
    /// The database of the following commands.
    database: Database,
    /// What the client's key allows; `None` before it authenticates.
    grant: Option<Grant>,
    /// Which requests are answered.
    pub(super) reply_mode: ReplyMode,
    /// The client sent `QUIT`, or ended its own connection: nothing further is read.
    pub(super) has_quit: bool,
}

impl Session {
    pub(super) fn new(client: Arc<Client>) -> Self {
        let (protocol, database) = (Protocol::default(), Database::default());
        Self { client, protocol, database, grant: None, reply_mode: ReplyMode::On, has_quit: false }
    }

    pub(super) fn connection(&self) -> &Arc<Client> {
        &self.client
    }

    pub(super) fn database(&self) -> Database {
        self.database
    }

    pub(super) fn select(&mut self, database: Database) {
        self.database = database;
        self.client.update(|profile| profile.database = database);
    }

    /// Who sends what this connection receives. A key that was revoked counts until the next request is refused.
    pub(super) fn sender(&self, access: &Access) -> Sender {
        if access.needs_key() && self.grant.is_none() { Sender::Unauthenticated } else { Sender::Authenticated }
    }

    pub(super) fn caller(&self) -> Caller {
        Caller { key: self.grant.as_ref().and_then(Grant::key), address: self.client.peer.ip() }
    }

    /// Whether the client may send this request for this database: its key is still valid and has the right
    /// that the command needs, to that collection.
    pub(super) fn authorize(
        &mut self,
        spec: Option<&Spec>,
        request: &[Bytes],
        database: Database,
        access: &Access,
        now_ms: u64,
    ) -> Result<(), CommandError> {
        if !access.needs_key() {
            return Ok(());
        }
        if spec.is_some_and(|spec| NEEDS_NO_KEY.contains(&spec.name)) {
            return Ok(());
        }
        self.grant.take_if(|grant| !access.is_current(grant, now_ms));
        let grant = self.grant.as_ref().ok_or_else(|| CommandError::Denied(NO_AUTH.to_owned()))?;
        let needs_all = spec.is_some_and(|spec| NEEDS_ALL.contains(&spec.name));
        // Clients of others are not a client's own business.
        let ends_others = spec.is_some_and(|spec| spec.name == "client")
            && request.get(1).is_some_and(|name| {
                ["kill", "pause", "unpause"].iter().any(|other| name.eq_ignore_ascii_case(other.as_bytes()))
            });
        let right = if ends_others { Right::Operate } else { spec.map_or(Right::Inspect, Spec::right) };
        let checked = match right {
            right if needs_all => grant.check(right).and_then(|()| grant.check_all_collections()),
            right @ (Right::Read | Right::Write) => grant.check_collection(right, database.collection()),
            right => grant.check(right),
        };
        checked.map_err(|denied| CommandError::Denied(format!("NOPERM {denied}")))
    }

    /// The reply to a command that does not use the store.
    pub(super) fn answer(&mut self, command: Command, context: &Context<'_>) -> Reply {
        match command {
            Command::Ping(None) => Reply::Simple("PONG"),
            Command::Ping(Some(message)) | Command::Echo(message) => Reply::Bulk(message),
            Command::Hello(hello) => self.hello(hello, context),
            Command::Auth { user: None, .. } if !context.access.needs_key() => Reply::Error(NO_PASSWORD.into()),
            Command::Auth { user, password } => {
                self.authenticate(user.as_deref(), &password, context).err().unwrap_or(Reply::OK)
            }
            Command::Unwatch => Reply::OK,
            Command::Select(database) => {
                self.select(database);
                Reply::OK
            }
            Command::Time => time_reply(clock::wall_us()),
            Command::Help(command) => help_reply(command),
            Command::Script(command) => script(command, context.scripts),
            Command::Quit => {
                self.has_quit = true;
                Reply::OK
            }
            Command::Reset => {
                self.protocol = Protocol::default();
                self.reply_mode = ReplyMode::On;
                self.grant = None;
                self.select(Database::default());
                self.client.update(|profile| {
                    profile.name = Bytes::new();
                    profile.protocol = Protocol::default();
                });
                Reply::Simple("RESET")
            }
            Command::Client(command) => self.client(command, context),
            Command::Introspection(query) => introspection_reply(&query),
            Command::ConfigGet(patterns) => config_reply(&patterns),
            // All other commands use the store and are never passed to a session.
            _ => Reply::Error("ERR not a command about the connection".into()),
        }
    }

    /// Changes nothing if any part of the command is refused.
    fn hello(&mut self, hello: Hello, context: &Context<'_>) -> Reply {
        if let Some((user, password)) = &hello.auth
            && let Err(refusal) = self.authenticate(Some(user), password, context)
        {
            return refusal;
        }
        if context.access.needs_key() && self.grant.is_none() {
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
    fn authenticate(&mut self, user: Option<&[u8]>, password: &[u8], context: &Context<'_>) -> Result<(), Reply> {
        if user.is_some_and(|user| user != b"default") {
            return Err(Reply::Error(WRONG_PASSWORD.into()));
        }
        match context.access.authenticate(password, self.client.peer.ip(), context.now_ms) {
            Ok(grant) => {
                self.grant = Some(grant);
                Ok(())
            }
            Err(Denied::TooManyTries { .. }) => Err(Reply::Error(TOO_MANY_TRIES.into())),
            Err(_) => Err(Reply::Error(WRONG_PASSWORD.into())),
        }
    }

    fn client(&mut self, command: ClientCommand, context: &Context<'_>) -> Reply {
        let Context { clients, pause, now, .. } = *context;
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
            ClientCommand::List(filter) => Reply::Verbatim(clients.list(&filter, now)),
            ClientCommand::Kill { filter, also_own, by_address } => {
                let own = also_own && self.client.matches(&filter);
                self.has_quit |= own;
                match clients.kill(&filter, self.client.id) + usize::from(own) {
                    0 if by_address => Reply::Error("ERR No such client".into()),
                    _ if by_address => Reply::OK,
                    count => Reply::Integer(count as i64),
                }
            }
            ClientCommand::Pause { for_ms, only_writes } => {
                pause.begin(for_ms, only_writes, now);
                Reply::OK
            }
            ClientCommand::Unpause => {
                pause.end();
                Reply::OK
            }
            ClientCommand::Reply(ReplyMode::Skip) if self.reply_mode == ReplyMode::Off => Reply::OK,
            ClientCommand::Reply(mode) => {
                self.reply_mode = mode;
                Reply::OK
            }
            ClientCommand::GetRedirection => Reply::Integer(-1),
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

fn script(command: ScriptCommand, scripts: &Scripts) -> Reply {
    match command {
        ScriptCommand::Load(text) => match check(&text) {
            Ok(()) => Reply::text(scripts.insert(&text)),
            Err(refusal) => refusal,
        },
        ScriptCommand::Exists(digests) => {
            let known = |digest: &Bytes| Reply::Integer(scripts.find(digest).is_some().into());
            Reply::Array(digests.iter().map(known).collect())
        }
        ScriptCommand::Flush => {
            scripts.clear();
            Reply::OK
        }
        ScriptCommand::Kill => Reply::Error("NOTBUSY No scripts in execution right now.".into()),
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use flotilla_gateway::{KeyFacts, Keys};

    use super::*;
    use crate::parse::testing::parsed;

    struct Server {
        clients: Clients,
        session: Session,
    }

    impl Server {
        fn new() -> Self {
            let clients = Clients::default();
            let address = SocketAddr::from(([127, 0, 0, 1], 1));
            let session = Session::new(clients.open(address, address, Instant::now()));
            Self { clients, session }
        }

        fn answer(&mut self, line: &str) -> Reply {
            let (scripts, pause) = (Scripts::default(), Pause::default());
            let (now, access) = (Instant::now(), Access::open());
            let context =
                Context { clients: &self.clients, scripts: &scripts, pause: &pause, access: &access, now, now_ms: 0 };
            self.session.answer(parsed(line).unwrap(), &context)
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
        assert_eq!(server.answer("SELECT 15"), Reply::OK);
        assert!(matches!(server.answer("CLIENT INFO"), Reply::Verbatim(text) if text.contains(" db=15 ")));
        assert_eq!(server.answer("RESET"), Reply::Simple("RESET"));
        assert_eq!(server.session.database(), Database::default());
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
    fn a_client_ends_connections_and_its_own_only_when_asked() {
        let mut server = Server::new();
        let address = SocketAddr::from(([127, 0, 0, 1], 2));
        let other = server.clients.open(address, address, Instant::now());
        assert_eq!(server.answer("CLIENT KILL TYPE normal"), Reply::Integer(1));
        assert_eq!(server.answer("CLIENT KILL 127.0.0.1:9"), Reply::Error("ERR No such client".into()));
        assert_eq!(server.answer("CLIENT KILL 127.0.0.1:2"), Reply::OK);
        assert!(!server.session.has_quit);
        assert_eq!(server.answer("CLIENT KILL SKIPME no TYPE normal"), Reply::Integer(2));
        assert!(server.session.has_quit);
        let list = server.answer(&format!("CLIENT LIST ID {}", other.id));
        assert!(matches!(list, Reply::Verbatim(text) if text.lines().count() == 1));
    }

    #[test]
    fn who_sends_has_authenticated_if_access_is_open_or_a_key_was_given() {
        struct NoKeys;
        impl Keys for NoKeys {
            fn key(&self, _: u64) -> Option<KeyFacts> {
                None
            }
        }
        let mut server = Server::new();
        let closed = Access::by_keys(Arc::new(NoKeys));
        assert_eq!(server.session.sender(&Access::open()), Sender::Authenticated);
        assert_eq!(server.session.sender(&closed), Sender::Unauthenticated);
        // While access is open any password is a key.
        assert_eq!(server.answer("AUTH default p"), Reply::OK);
        assert_eq!(server.session.sender(&closed), Sender::Authenticated);
        assert_eq!(server.answer("RESET"), Reply::Simple("RESET"));
        assert_eq!(server.session.sender(&closed), Sender::Unauthenticated);
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
