//! Commands as plain types. Keys are the user's keys, without collection and bucket.

use bytes::Bytes;

use crate::{Glob, Protocol};

/// One command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// `PING [message]`.
    Ping(Option<Bytes>),
    /// `ECHO message`.
    Echo(Bytes),
    /// `HELLO [version [AUTH user password] [SETNAME name]]`.
    Hello(Hello),
    /// `AUTH [user] password`.
    Auth {
        /// Absent for the default user.
        user: Option<Bytes>,
        /// The password.
        password: Bytes,
    },
    /// `SELECT 0`; there are no other databases.
    Select,
    /// `QUIT`: answer and close.
    Quit,
    /// `RESET`: the connection returns to its initial state.
    Reset,
    /// `CLIENT …`.
    Client(ClientCommand),
    /// `COMMAND …`.
    Introspection(Introspection),
    /// `INFO [section …]`.
    Info(Vec<Bytes>),
    /// `CONFIG GET pattern …`.
    ConfigGet(Vec<Bytes>),
    /// `DBSIZE`.
    DbSize,
    /// `SCAN`.
    Scan(Scan),
    /// `GET key`.
    Get(Bytes),
    /// `SET`, `SETEX`, `PSETEX` and `GETSET`.
    Set(Set),
    /// `SETNX key value`: 1 if set, 0 if the key existed.
    SetNx {
        /// The key.
        key: Bytes,
        /// Its value.
        value: Bytes,
    },
    /// `GETDEL key`.
    GetDel(Bytes),
    /// `GETEX key`; without a change it is `GET`.
    GetEx {
        /// The key.
        key: Bytes,
        /// The change of its expiry; [`SetExpiry::Never`] is `PERSIST`.
        expiry: Option<SetExpiry>,
    },
    /// `MGET key …`.
    MGet(Vec<Bytes>),
    /// `MSET key value …`.
    MSet(Vec<(Bytes, Bytes)>),
    /// `DEL key …` and `UNLINK key …`.
    Del(Vec<Bytes>),
    /// `EXISTS key …`; a repeated key counts each time.
    Exists(Vec<Bytes>),
    /// `STRLEN key`.
    StrLen(Bytes),
    /// `APPEND key value`.
    Append {
        /// The key.
        key: Bytes,
        /// The bytes to append.
        value: Bytes,
    },
    /// `INCR`, `INCRBY`, `DECR` and `DECRBY`.
    Add {
        /// The key.
        key: Bytes,
        /// What to add.
        delta: i64,
    },
    /// `EXPIRE` and `PEXPIRE`.
    Expire {
        /// The key.
        key: Bytes,
        /// Milliseconds from now; the key is removed at once when it is not positive.
        after_ms: i64,
        /// The condition for the change.
        condition: ExpireCondition,
    },
    /// `TTL` and `PTTL`: -2 for no key, -1 for no expiry.
    Ttl {
        /// The key.
        key: Bytes,
        /// The unit of the reply.
        unit: TimeUnit,
    },
    /// `PERSIST key`: 1 if it removed an expiry.
    Persist(Bytes),
    /// `TYPE key`: `string` or `none`.
    Type(Bytes),
}

/// `HELLO`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hello {
    /// The protocol to use from now on; unchanged when absent.
    pub protocol: Option<Protocol>,
    /// User and password.
    pub auth: Option<(Bytes, Bytes)>,
    /// The connection's name.
    pub name: Option<Bytes>,
}

/// `CLIENT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientCommand {
    /// `SETNAME name`; empty removes it.
    SetName(Bytes),
    /// `GETNAME`.
    GetName,
    /// `SETINFO LIB-NAME|LIB-VER value`.
    SetInfo(ClientInfo, Bytes),
    /// `ID`.
    Id,
    /// `INFO`: this connection.
    Info,
    /// `LIST`: all connections.
    List,
    /// `NO-EVICT` and `NO-TOUCH`: nothing is ever evicted here, so there is nothing to do.
    NoEffect,
}

/// An attribute that a client library sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientInfo {
    /// Its name.
    LibraryName,
    /// Its version.
    LibraryVersion,
}

/// `COMMAND`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Introspection {
    /// `COMMAND` and `COMMAND INFO [name …]`; no names mean all.
    Info(Vec<Bytes>),
    /// `COMMAND DOCS [name …]`; no names mean all.
    Docs(Vec<Bytes>),
    /// `COMMAND COUNT`.
    Count,
    /// `COMMAND LIST`.
    List,
}

/// `SCAN cursor [MATCH pattern] [COUNT count] [TYPE type]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scan {
    /// 0 at the start, then the cursor of the last page.
    pub cursor: u64,
    /// Which keys to return; all when absent.
    pub pattern: Option<Glob>,
    /// Approximate number of keys to examine; at least 1.
    pub count: u64,
    /// Whether keys of the requested type can exist: true for `string`, and when no type is requested.
    pub type_exists: bool,
}

/// `SET`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    /// The key.
    pub key: Bytes,
    /// Its value.
    pub value: Bytes,
    /// The condition for setting it.
    pub condition: SetCondition,
    /// Whether to reply with the old value instead of `OK`.
    pub returns_old: bool,
    /// The change of its expiry.
    pub expiry: SetExpiry,
}

/// The condition of a `SET`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SetCondition {
    /// Always.
    #[default]
    Always,
    /// `NX`: only if the key does not exist.
    IfAbsent,
    /// `XX`: only if the key exists.
    IfPresent,
}

/// The change of an expiry.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SetExpiry {
    /// The key never expires.
    #[default]
    Never,
    /// `KEEPTTL`: the expiry stays.
    Keep,
    /// The key expires at this time.
    At(Deadline),
}

/// A point in time that a client specifies; always positive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deadline {
    /// Milliseconds from now. At most 2^62, so that adding it to the clock does not overflow.
    After(u64),
    /// Unix milliseconds. At most 2^62.
    At(u64),
}

/// The condition of an `EXPIRE`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ExpireCondition {
    /// Always.
    #[default]
    Always,
    /// `NX`: only if there is no expiry.
    IfNone,
    /// `XX`: only if there is an expiry.
    IfAny,
    /// `GT`, with or without `XX`: only if the new expiry is later. No expiry counts as the latest.
    IfLater,
    /// `LT`: only if the new expiry is earlier. No expiry counts as the latest.
    IfEarlier,
    /// `XX LT`: only if there is an expiry and the new one is earlier.
    IfAnyAndEarlier,
}

/// A unit of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimeUnit {
    /// Seconds, rounded.
    Seconds,
    /// Milliseconds.
    Milliseconds,
}
