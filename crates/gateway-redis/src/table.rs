//! The table of all commands: name, number of arguments, position of keys, parser.
//!
//! Sorted by name. A command that is not in it is unknown.

use flotilla_gateway::Right;

use crate::{
    Command, CommandError,
    parse::{self, Arguments},
};

/// One command of the table.
#[derive(Debug, Clone, Copy)]
pub struct Spec {
    /// Its name, in lower case.
    pub name: &'static str,
    /// Number of arguments including the name; negative for a minimum, as in Redis.
    pub arity: i32,
    /// Flags as in `COMMAND INFO`.
    pub flags: &'static [&'static str],
    /// First key, last key (-1 for the last argument) and step; zeros without keys.
    pub keys: (i32, i32, i32),
    /// A one-line summary.
    pub summary: &'static str,
    pub(crate) parse: fn(Arguments) -> Result<Command, CommandError>,
}

impl Spec {
    /// Finds the command with this name, ignoring case.
    #[must_use]
    pub fn find(name: &[u8]) -> Option<&'static Self> {
        let lower = |byte: &u8| byte.to_ascii_lowercase();
        let found = TABLE.binary_search_by(|spec| spec.name.bytes().cmp(name.iter().map(lower)));
        found.ok().map(|at| &TABLE[at])
    }

    /// The right that a client's key needs for this command, by its flags.
    #[must_use]
    pub fn right(&self) -> Right {
        if self.flags.contains(&"write") {
            Right::Write
        } else if self.flags.contains(&"readonly") {
            Right::Read
        } else {
            Right::Inspect
        }
    }

    /// Whether the command accepts this number of arguments, including the name.
    pub(crate) fn accepts(&self, arguments: usize) -> bool {
        let least = self.arity.unsigned_abs() as usize;
        if self.arity < 0 { arguments >= least } else { arguments == least }
    }
}

const READ: &[&str] = &["readonly", "fast"];
const WRITE: &[&str] = &["write", "denyoom", "fast"];
const REMOVE: &[&str] = &["write", "fast"];
const CONNECTION: &[&str] = &["noscript", "loading", "stale", "fast"];
const ADMIN: &[&str] = &["loading", "stale"];

const NO_KEYS: (i32, i32, i32) = (0, 0, 0);
const ONE_KEY: (i32, i32, i32) = (1, 1, 1);
const ALL_KEYS: (i32, i32, i32) = (1, -1, 1);

type Parse = fn(Arguments) -> Result<Command, CommandError>;

const fn spec(
    name: &'static str,
    arity: i32,
    flags: &'static [&'static str],
    keys: (i32, i32, i32),
    summary: &'static str,
    parse: Parse,
) -> Spec {
    Spec { name, arity, flags, keys, summary, parse }
}

/// Every command, sorted by name.
pub const TABLE: &[Spec] = &[
    spec("append", 3, WRITE, ONE_KEY, "Appends to a value.", parse::append),
    spec("auth", -2, CONNECTION, NO_KEYS, "Authenticates the connection.", parse::auth),
    spec("client", -2, CONNECTION, NO_KEYS, "Inspects and configures connections.", parse::client),
    spec("command", -1, ADMIN, NO_KEYS, "Describes the commands.", parse::introspection),
    spec("config", -2, ADMIN, NO_KEYS, "Reads settings.", parse::config),
    spec("dbsize", 1, READ, NO_KEYS, "Counts the keys.", parse::db_size),
    spec("decr", 2, WRITE, ONE_KEY, "Subtracts one from a number.", parse::decr),
    spec("decrby", 3, WRITE, ONE_KEY, "Subtracts from a number.", parse::decr_by),
    spec("del", -2, REMOVE, ALL_KEYS, "Removes keys.", parse::del),
    spec("echo", 2, CONNECTION, NO_KEYS, "Answers with the message.", parse::echo),
    spec("exists", -2, READ, ALL_KEYS, "Counts which keys exist.", parse::exists),
    spec("expire", -3, REMOVE, ONE_KEY, "Sets an expiry in seconds.", parse::expire),
    spec("get", 2, READ, ONE_KEY, "Reads a value.", parse::get),
    spec("getdel", 2, REMOVE, ONE_KEY, "Reads a value and removes its key.", parse::get_del),
    spec("getex", -2, REMOVE, ONE_KEY, "Reads a value and sets its expiry.", parse::get_ex),
    spec("getset", 3, WRITE, ONE_KEY, "Stores a value and answers with the old one.", parse::get_set),
    spec("hello", -1, CONNECTION, NO_KEYS, "Chooses the protocol.", parse::hello),
    spec("incr", 2, WRITE, ONE_KEY, "Adds one to a number.", parse::incr),
    spec("incrby", 3, WRITE, ONE_KEY, "Adds to a number.", parse::incr_by),
    spec("info", -1, ADMIN, NO_KEYS, "Describes the server.", parse::info),
    spec("mget", -2, READ, ALL_KEYS, "Reads several values.", parse::mget),
    spec("mset", -3, WRITE, (1, -1, 2), "Stores several values at once.", parse::mset),
    spec("persist", 2, REMOVE, ONE_KEY, "Removes an expiry.", parse::persist),
    spec("pexpire", -3, REMOVE, ONE_KEY, "Sets an expiry in milliseconds.", parse::pexpire),
    spec("ping", -1, CONNECTION, NO_KEYS, "Answers PONG or the message.", parse::ping),
    spec("psetex", 4, WRITE, ONE_KEY, "Stores a value with an expiry in milliseconds.", parse::pset_ex),
    spec("pttl", 2, READ, ONE_KEY, "Milliseconds until a key expires.", parse::pttl),
    spec("quit", -1, CONNECTION, NO_KEYS, "Closes the connection.", parse::quit),
    spec("reset", 1, CONNECTION, NO_KEYS, "Resets the connection.", parse::reset),
    spec("scan", -2, &["readonly"], NO_KEYS, "Iterates over the keys.", parse::scan),
    spec("select", 2, CONNECTION, NO_KEYS, "Selects database 0.", parse::select),
    spec("set", -3, WRITE, ONE_KEY, "Stores a value.", parse::set),
    spec("setex", 4, WRITE, ONE_KEY, "Stores a value with an expiry in seconds.", parse::set_ex),
    spec("setnx", 3, WRITE, ONE_KEY, "Stores a value unless the key exists.", parse::set_nx),
    spec("strlen", 2, READ, ONE_KEY, "The length of a value.", parse::str_len),
    spec("ttl", 2, READ, ONE_KEY, "Seconds until a key expires.", parse::ttl),
    spec("type", 2, READ, ONE_KEY, "The type of a value.", parse::type_of),
    spec("unlink", -2, REMOVE, ALL_KEYS, "Removes keys.", parse::del),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_is_found_in_any_case() {
        assert!(TABLE.is_sorted_by(|one, next| one.name < next.name));
        for spec in TABLE {
            assert_eq!(Spec::find(spec.name.to_uppercase().as_bytes()).map(|found| found.name), Some(spec.name));
        }
        assert!(Spec::find(b"").is_none() && Spec::find(b"getx").is_none());
    }
}
