//! Commands as plain types. Keys are the user's keys, without collection and bucket.

use bytes::Bytes;

use crate::{CommandError, Compute, Database, Eval, Glob, Protocol};

/// The refusal of what Redis does atomically in two databases.
pub(crate) const OTHER_DATABASE: &str = "ERR databases are collections of their own here, and nothing is atomic in two \
                                         of them: use DUMP, SELECT and RESTORE, or GET and SET";

pub(crate) const SAME_OBJECT: &str = "ERR source and destination objects are the same";

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
    /// `SELECT`: the database of the following commands.
    Select(Database),
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
    /// `EXPIRE`, `PEXPIRE`, `EXPIREAT` and `PEXPIREAT`.
    Expire {
        /// The key.
        key: Bytes,
        /// The expiry; the key is removed at once when it is in the past.
        when: When,
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
    /// `MULTI`: the following commands are queued.
    Multi,
    /// `EXEC`: runs the queued commands as one.
    Exec,
    /// `DISCARD`: forgets the queued commands.
    Discard,
    /// `WATCH key …`: `EXEC` does nothing if one of them has changed by then.
    Watch(Vec<Bytes>),
    /// `UNWATCH`.
    Unwatch,
    /// A command that is evaluated on the records of its keys.
    Compute(Compute),
    /// `EVAL` and its variants.
    Eval(Eval),
    /// `SCRIPT …`.
    Script(ScriptCommand),
    /// `KEYS pattern`.
    Keys(Glob),
    /// `RANDOMKEY`.
    RandomKey,
    /// `FLUSHDB`: removes all keys of the database.
    FlushDb,
    /// `FLUSHALL`: removes all keys of all databases.
    FlushAll,
    /// `TIME`: seconds and microseconds.
    Time,
    /// `HELP` of the command with this name.
    Help(&'static str),
}

impl Command {
    /// The keys that it reads or writes, as often as it names them; none for a command that is not about
    /// particular keys.
    #[must_use]
    pub fn keys(&self) -> Vec<Bytes> {
        match self {
            Self::Get(key)
            | Self::GetDel(key)
            | Self::StrLen(key)
            | Self::Persist(key)
            | Self::Type(key)
            | Self::Set(Set { key, .. })
            | Self::SetNx { key, .. }
            | Self::GetEx { key, .. }
            | Self::Append { key, .. }
            | Self::Add { key, .. }
            | Self::Expire { key, .. }
            | Self::Ttl { key, .. } => vec![key.clone()],
            Self::MGet(keys) | Self::Del(keys) | Self::Exists(keys) | Self::Watch(keys) => keys.clone(),
            Self::Compute(command) => command.keys(),
            Self::Eval(eval) => eval.keys.clone(),
            Self::MSet(pairs) => pairs.iter().map(|(key, _)| key.clone()).collect(),
            _ => Vec::new(),
        }
    }

    /// The command itself, if it concerns no other database than this one.
    pub(crate) fn within(self, database: Database) -> Result<Self, CommandError> {
        match &self {
            Self::Compute(Compute::Copy { to_database: Some(other), .. }) if *other != database => {
                Err(CommandError::Invalid(OTHER_DATABASE))
            }
            Self::Compute(Compute::Copy { from, to, .. }) if from == to => Err(CommandError::Invalid(SAME_OBJECT)),
            _ => Ok(self),
        }
    }

    /// Whether it never writes. Others may find that there is nothing to write.
    pub(crate) fn only_reads(&self) -> bool {
        let computes = matches!(self, Self::Compute(command) if command.only_reads());
        computes
            || matches!(
                self,
                Self::Get(_)
                    | Self::MGet(_)
                    | Self::StrLen(_)
                    | Self::Type(_)
                    | Self::Exists(_)
                    | Self::Ttl { .. }
                    | Self::GetEx { expiry: None, .. }
                    | Self::Eval(Eval { only_reads: true, .. })
            )
    }

    /// Whether it needs the values of its keys, rather than only their lengths and expiries.
    pub(crate) fn needs_values(&self) -> bool {
        if let Self::Compute(command) = self {
            return command.needs_values();
        }
        let attributes_only = matches!(
            self,
            Self::StrLen(_)
                | Self::Persist(_)
                | Self::Type(_)
                | Self::Expire { .. }
                | Self::Ttl { .. }
                | Self::Del(_)
                | Self::Exists(_)
        );
        !attributes_only
    }
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
    /// `LIST`: all connections that match.
    List(Box<ClientFilter>),
    /// `KILL`: ends the connections that match.
    Kill {
        /// Which.
        filter: Box<ClientFilter>,
        /// `SKIPME no`: this one too.
        also_own: bool,
        /// The form with an address alone, which replies `OK` or an error rather than a number.
        by_address: bool,
    },
    /// `PAUSE milliseconds [WRITE|ALL]`.
    Pause {
        /// How long.
        for_ms: u64,
        /// Whether only writes wait.
        only_writes: bool,
    },
    /// `UNPAUSE`.
    Unpause,
    /// `REPLY ON|OFF|SKIP`.
    Reply(ReplyMode),
    /// `GETREDIR`: -1, because nothing is tracked.
    GetRedirection,
    /// `NO-EVICT` and `NO-TOUCH`: nothing is ever evicted here, so there is nothing to do.
    NoEffect,
}

/// Which connections a `CLIENT` command is about. The default is all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientFilter {
    /// Those with one of these ids.
    pub ids: Option<Vec<u64>>,
    /// The one from this address.
    pub address: Option<Bytes>,
    /// Those to this address.
    pub local_address: Option<Bytes>,
    /// Those of this user.
    pub user: Option<Bytes>,
    /// Whether normal clients are meant; there are no others.
    pub is_normal: bool,
    /// Those of at least this age, in seconds.
    pub age_s: Option<u64>,
}

impl Default for ClientFilter {
    fn default() -> Self {
        Self { ids: None, address: None, local_address: None, user: None, is_normal: true, age_s: None }
    }
}

/// Which requests a connection answers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ReplyMode {
    /// All.
    #[default]
    On,
    /// None.
    Off,
    /// Not the next one.
    Skip,
}

/// An attribute that a client library sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientInfo {
    /// Its name.
    LibraryName,
    /// Its version.
    LibraryVersion,
}

/// `SCRIPT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ScriptCommand {
    /// `LOAD text`: remembers a script, and replies with its digest.
    Load(Bytes),
    /// `EXISTS digest …`.
    Exists(Vec<Bytes>),
    /// `FLUSH`: forgets all scripts.
    Flush,
    /// `KILL`: a script ends by itself.
    Kill,
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
    /// `COMMAND LIST [FILTERBY …]`.
    List(CommandFilter),
    /// `COMMAND GETKEYS command …`, and whether with flags.
    GetKeys {
        /// The request.
        request: Vec<Bytes>,
        /// `GETKEYSANDFLAGS`.
        with_flags: bool,
    },
}

/// Which commands `COMMAND LIST` lists.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum CommandFilter {
    /// All.
    #[default]
    All,
    /// Those of a module; there are none.
    Module,
    /// Those of a category.
    Category(Bytes),
    /// Those whose names match.
    Pattern(Glob),
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

/// The expiry of an `EXPIRE`: any number, in milliseconds of at most 2^62.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// From now.
    After(i64),
    /// Unix time.
    At(i64),
}

impl When {
    /// The Unix time in milliseconds, at `now_ms`; `None` in the past.
    pub(crate) fn at_ms(self, now_ms: u64) -> Option<u64> {
        let positive = |ms: i64| u64::try_from(ms).ok().filter(|ms| *ms > 0);
        match self {
            Self::After(after_ms) => positive(after_ms).map(|after_ms| now_ms.saturating_add(after_ms)),
            Self::At(at_ms) => positive(at_ms).filter(|at_ms| *at_ms > now_ms),
        }
    }
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
