//! What a client may ask for, as plain types. Keys are the user's own, without collection and bucket.

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
        /// Missing for the default user.
        user: Option<Bytes>,
        /// The password.
        password: Bytes,
    },
    /// `SELECT 0`; there are no other databases.
    Select,
    /// `QUIT`: answer and close.
    Quit,
    /// `RESET`: the connection is as at its start.
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
    /// `SETNX key value`: 1 when set, 0 when the key was there.
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
        /// What becomes of its expiry; [`SetExpiry::Never`] is `PERSIST`.
        expiry: Option<SetExpiry>,
    },
    /// `MGET key …`.
    MGet(Vec<Bytes>),
    /// `MSET key value …`.
    MSet(Vec<(Bytes, Bytes)>),
    /// `DEL key …` and `UNLINK key …`.
    Del(Vec<Bytes>),
    /// `EXISTS key …`; a key named twice counts twice.
    Exists(Vec<Bytes>),
    /// `STRLEN key`.
    StrLen(Bytes),
    /// `APPEND key value`.
    Append {
        /// The key.
        key: Bytes,
        /// What to add at the end.
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
        /// When to do so.
        condition: ExpireCondition,
    },
    /// `TTL` and `PTTL`: -2 for no key, -1 for no expiry.
    Ttl {
        /// The key.
        key: Bytes,
        /// What to answer in.
        unit: TimeUnit,
    },
    /// `PERSIST key`: 1 when there was an expiry to remove.
    Persist(Bytes),
    /// `TYPE key`: `string` or `none`.
    Type(Bytes),
}

/// `HELLO`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hello {
    /// The protocol to speak from now on; unchanged when missing.
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

/// What a client library says of itself.
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
    /// 0 at the start, then what the last page said.
    pub cursor: u64,
    /// Which keys are wanted.
    pub pattern: Option<Glob>,
    /// About how many keys to look at; at least 1.
    pub count: u64,
    /// Whether the type asked for is one that keys have here: `string`, or none asked for.
    pub type_exists: bool,
}

/// `SET`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    /// The key.
    pub key: Bytes,
    /// Its value.
    pub value: Bytes,
    /// When to set it.
    pub condition: SetCondition,
    /// Whether to answer with the old value instead of `OK`.
    pub returns_old: bool,
    /// What becomes of its expiry.
    pub expiry: SetExpiry,
}

/// When `SET` sets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SetCondition {
    /// Always.
    #[default]
    Always,
    /// `NX`: when the key is not there.
    IfAbsent,
    /// `XX`: when it is there.
    IfPresent,
}

/// What becomes of an expiry.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SetExpiry {
    /// The key never expires.
    #[default]
    Never,
    /// `KEEPTTL`: as before.
    Keep,
    /// At this time.
    At(Deadline),
}

/// A moment that a client names; always positive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deadline {
    /// Milliseconds from now. At most 2^62, so that adding it to the clock does not overflow.
    After(u64),
    /// Unix milliseconds. At most 2^62.
    At(u64),
}

/// When `EXPIRE` changes an expiry.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ExpireCondition {
    /// Always.
    #[default]
    Always,
    /// `NX`: when there is none.
    IfNone,
    /// `XX`: when there is one.
    IfAny,
    /// `GT`, with or without `XX`: when the new one is later. No expiry counts as later than any.
    IfLater,
    /// `LT`: when the new one is earlier. No expiry counts as later than any.
    IfEarlier,
    /// `XX LT`: when there is one and the new one is earlier.
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
