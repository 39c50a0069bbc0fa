//! The table of all commands: name, number of arguments, position of keys, parser.
//!
//! Sorted by name. A command that is not in it is unknown.

use bytes::Bytes;
use flotilla_gateway::Right;
use flotilla_kv::parse_integer;

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
        Self::place_of(name).map(|place| &TABLE[place])
    }

    /// The place in the table of the command with this name, ignoring case.
    pub(crate) fn place_of(name: &[u8]) -> Option<usize> {
        let lower = |byte: &u8| byte.to_ascii_lowercase();
        TABLE.binary_search_by(|spec| spec.name.bytes().cmp(name.iter().map(lower))).ok()
    }

    /// The right that a client's key needs for this command, by its flags.
    #[must_use]
    pub fn right(&self) -> Right {
        // The commands of a transaction are checked one by one.
        if self.writes() && self.name != "exec" {
            Right::Write
        } else if self.flags.contains(&"readonly") || matches!(self.name, "eval_ro" | "evalsha_ro" | "watch") {
            // `WATCH` tells whether a key exists and changes.
            Right::Read
        } else {
            Right::Inspect
        }
    }

    /// Whether it may write.
    pub(crate) fn writes(&self) -> bool {
        self.flags.contains(&"write") || matches!(self.name, "exec" | "eval" | "evalsha")
    }

    /// The keys in a request of this command, by their positions.
    pub(crate) fn keys_in<'a>(&self, request: &'a [Bytes]) -> Vec<&'a Bytes> {
        if self.flags.contains(&"movablekeys") {
            let count =
                request.get(2).and_then(|count| parse_integer(count)).and_then(|count| usize::try_from(count).ok());
            return request.iter().skip(3).take(count.unwrap_or(0)).collect();
        }
        let (first, last, step) = self.keys;
        let (Ok(first), Ok(step)) = (usize::try_from(first), usize::try_from(step)) else { return Vec::new() };
        let end = usize::try_from(last).map_or(request.len(), |last| (last + 1).min(request.len()));
        if first == 0 || step == 0 || first >= end {
            return Vec::new();
        }
        request[first..end].iter().step_by(step).collect()
    }

    /// Its categories, as access control lists name them.
    pub(crate) fn categories(&self) -> Vec<&'static str> {
        let has = |flag| self.flags.contains(&flag);
        let group = match self.name {
            "multi" | "exec" | "discard" | "watch" | "unwatch" => "@transaction",
            "eval" | "eval_ro" | "evalsha" | "evalsha_ro" | "script" => "@scripting",
            name if name.contains("bit") => "@bitmap",
            _ if self.group() == "connection" => "@connection",
            _ if self.group() == "generic" => "@keyspace",
            _ => "@string",
        };
        let dangerous = matches!(self.name, "flushall" | "flushdb" | "keys" | "config" | "client" | "info" | "swapdb");
        [
            (has("write"), "@write"),
            (has("readonly"), "@read"),
            (true, group),
            (has("fast"), "@fast"),
            (!has("fast"), "@slow"),
            (dangerous, "@dangerous"),
        ]
        .into_iter()
        .filter_map(|(holds, category)| holds.then_some(category))
        .collect()
    }

    /// The group under which Redis documents it.
    pub(crate) fn group(&self) -> &'static str {
        match self.name {
            "multi" | "exec" | "discard" | "watch" | "unwatch" => "transactions",
            "eval" | "eval_ro" | "evalsha" | "evalsha_ro" | "script" => "scripting",
            "command" | "config" | "dbsize" | "flushall" | "flushdb" | "info" | "memory" | "swapdb" | "time" => {
                "server"
            }
            "auth" | "client" | "echo" | "hello" | "ping" | "quit" | "reset" | "select" => "connection",
            "copy" | "del" | "dump" | "exists" | "expire" | "expireat" | "expiretime" | "keys" | "object"
            | "persist" | "pexpire" | "pexpireat" | "pexpiretime" | "pttl" | "randomkey" | "rename" | "renamenx"
            | "move" | "restore" | "scan" | "touch" | "ttl" | "type" | "unlink" => "generic",
            name if name.contains("bit") => "bitmap",
            _ => "string",
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
const TRANSACTION: &[&str] = &["noscript", "loading", "stale", "fast"];
const SCRIPT: &[&str] = &["noscript", "stale", "skip_monitor", "no_mandatory_keys", "movablekeys"];
const SCRIPT_RO: &[&str] = &["readonly", "noscript", "stale", "skip_monitor", "no_mandatory_keys", "movablekeys"];
const ADMIN: &[&str] = &["loading", "stale"];

const NO_KEYS: (i32, i32, i32) = (0, 0, 0);
const ONE_KEY: (i32, i32, i32) = (1, 1, 1);
const TWO_KEYS: (i32, i32, i32) = (1, 2, 1);
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
    spec("bitcount", -2, READ, ONE_KEY, "Counts the bits that are set.", parse::bit_count),
    spec("bitfield", -2, WRITE, ONE_KEY, "Reads and writes integers of any number of bits.", parse::bit_field),
    spec("bitfield_ro", -2, READ, ONE_KEY, "Reads integers of any number of bits.", parse::bit_field_ro),
    spec("bitop", -4, WRITE, (2, -1, 1), "Combines the bits of values.", parse::bit_op),
    spec("bitpos", -3, READ, ONE_KEY, "Finds the first bit that is set or not.", parse::bit_pos),
    spec("client", -2, CONNECTION, NO_KEYS, "Inspects and configures connections.", parse::client),
    spec("command", -1, ADMIN, NO_KEYS, "Describes the commands.", parse::introspection),
    spec("config", -2, ADMIN, NO_KEYS, "Reads settings.", parse::config),
    spec("copy", -3, WRITE, TWO_KEYS, "Copies a key.", parse::copy),
    spec("dbsize", 1, READ, NO_KEYS, "Counts the keys.", parse::db_size),
    spec("decr", 2, WRITE, ONE_KEY, "Subtracts one from a number.", parse::decr),
    spec("decrby", 3, WRITE, ONE_KEY, "Subtracts from a number.", parse::decr_by),
    spec("del", -2, REMOVE, ALL_KEYS, "Removes keys.", parse::del),
    spec("discard", 1, TRANSACTION, NO_KEYS, "Forgets the queued commands.", parse::discard),
    spec("dump", 2, &["readonly"], ONE_KEY, "The value in the format of RESTORE.", parse::dump),
    spec("echo", 2, CONNECTION, NO_KEYS, "Answers with the message.", parse::echo),
    spec("eval", -3, SCRIPT, NO_KEYS, "Runs a script.", parse::eval),
    spec("eval_ro", -3, SCRIPT_RO, NO_KEYS, "Runs a script that only reads.", parse::eval_ro),
    spec("evalsha", -3, SCRIPT, NO_KEYS, "Runs a script by its digest.", parse::eval_sha),
    spec("evalsha_ro", -3, SCRIPT_RO, NO_KEYS, "Runs a script that only reads by its digest.", parse::eval_sha_ro),
    spec("exec", 1, &["noscript", "loading", "stale"], NO_KEYS, "Runs the queued commands.", parse::exec),
    spec("exists", -2, READ, ALL_KEYS, "Counts which keys exist.", parse::exists),
    spec("expire", -3, REMOVE, ONE_KEY, "Sets an expiry in seconds.", parse::expire),
    spec("expireat", -3, REMOVE, ONE_KEY, "Sets an expiry in Unix seconds.", parse::expire_at),
    spec("expiretime", 2, READ, ONE_KEY, "Unix seconds at which a key expires.", parse::expire_time),
    spec("flushall", -1, &["write"], NO_KEYS, "Removes all keys of all databases.", parse::flush_all),
    spec("flushdb", -1, &["write"], NO_KEYS, "Removes all keys of the database.", parse::flush_db),
    spec("get", 2, READ, ONE_KEY, "Reads a value.", parse::get),
    spec("getbit", 3, READ, ONE_KEY, "Reads a bit of a value.", parse::get_bit),
    spec("getdel", 2, REMOVE, ONE_KEY, "Reads a value and removes its key.", parse::get_del),
    spec("getex", -2, REMOVE, ONE_KEY, "Reads a value and sets its expiry.", parse::get_ex),
    spec("getrange", 4, READ, ONE_KEY, "Reads a part of a value.", parse::get_range),
    spec("getset", 3, WRITE, ONE_KEY, "Stores a value and answers with the old one.", parse::get_set),
    spec("hello", -1, CONNECTION, NO_KEYS, "Chooses the protocol.", parse::hello),
    spec("incr", 2, WRITE, ONE_KEY, "Adds one to a number.", parse::incr),
    spec("incrby", 3, WRITE, ONE_KEY, "Adds to a number.", parse::incr_by),
    spec("incrbyfloat", 3, WRITE, ONE_KEY, "Adds to a number with decimals.", parse::incr_by_float),
    spec("info", -1, ADMIN, NO_KEYS, "Describes the server.", parse::info),
    spec("keys", 2, &["readonly"], NO_KEYS, "Lists the keys that match a pattern.", parse::keys),
    spec("lcs", -3, &["readonly"], TWO_KEYS, "The longest common subsequence of two values.", parse::lcs),
    spec("memory", -2, &["readonly"], (2, 2, 1), "Bytes that a key takes.", parse::memory),
    spec("mget", -2, READ, ALL_KEYS, "Reads several values.", parse::mget),
    spec("move", 3, REMOVE, ONE_KEY, "Refused: nothing is atomic in two databases.", parse::move_key),
    spec("mset", -3, WRITE, (1, -1, 2), "Stores several values at once.", parse::mset),
    spec("msetnx", -3, WRITE, (1, -1, 2), "Stores several values if none of the keys exists.", parse::mset_nx),
    spec("multi", 1, TRANSACTION, NO_KEYS, "Queues the commands that follow.", parse::multi),
    spec("object", -2, &["readonly"], (2, 2, 1), "Describes a value.", parse::object),
    spec("persist", 2, REMOVE, ONE_KEY, "Removes an expiry.", parse::persist),
    spec("pexpire", -3, REMOVE, ONE_KEY, "Sets an expiry in milliseconds.", parse::pexpire),
    spec("pexpireat", -3, REMOVE, ONE_KEY, "Sets an expiry in Unix milliseconds.", parse::pexpire_at),
    spec("pexpiretime", 2, READ, ONE_KEY, "Unix milliseconds at which a key expires.", parse::pexpire_time),
    spec("ping", -1, CONNECTION, NO_KEYS, "Answers PONG or the message.", parse::ping),
    spec("psetex", 4, WRITE, ONE_KEY, "Stores a value with an expiry in milliseconds.", parse::pset_ex),
    spec("pttl", 2, READ, ONE_KEY, "Milliseconds until a key expires.", parse::pttl),
    spec("quit", -1, CONNECTION, NO_KEYS, "Closes the connection.", parse::quit),
    spec("randomkey", 1, &["readonly"], NO_KEYS, "Answers with some key.", parse::random_key),
    spec("rename", 3, &["write"], TWO_KEYS, "Renames a key.", parse::rename),
    spec("renamenx", 3, REMOVE, TWO_KEYS, "Renames a key unless the new name exists.", parse::rename_nx),
    spec("reset", 1, CONNECTION, NO_KEYS, "Resets the connection.", parse::reset),
    spec("restore", -4, &["write", "denyoom"], ONE_KEY, "Stores a value from the format of DUMP.", parse::restore),
    spec("scan", -2, &["readonly"], NO_KEYS, "Iterates over the keys.", parse::scan),
    spec("script", -2, &["noscript"], NO_KEYS, "Remembers and forgets scripts.", parse::script),
    spec("select", 2, CONNECTION, NO_KEYS, "Selects a database.", parse::select),
    spec("set", -3, WRITE, ONE_KEY, "Stores a value.", parse::set),
    spec("setbit", 4, WRITE, ONE_KEY, "Sets a bit of a value.", parse::set_bit),
    spec("setex", 4, WRITE, ONE_KEY, "Stores a value with an expiry in seconds.", parse::set_ex),
    spec("setnx", 3, WRITE, ONE_KEY, "Stores a value unless the key exists.", parse::set_nx),
    spec("setrange", 4, WRITE, ONE_KEY, "Overwrites a part of a value.", parse::set_range),
    spec("strlen", 2, READ, ONE_KEY, "The length of a value.", parse::str_len),
    spec("substr", 4, READ, ONE_KEY, "Reads a part of a value.", parse::get_range),
    spec("swapdb", 3, REMOVE, NO_KEYS, "Refused: nothing is atomic in two databases.", parse::swap_db),
    spec("time", 1, CONNECTION, NO_KEYS, "The time of this node's clock.", parse::time),
    spec("touch", -2, READ, ALL_KEYS, "Counts which keys exist.", parse::exists),
    spec("ttl", 2, READ, ONE_KEY, "Seconds until a key expires.", parse::ttl),
    spec("type", 2, READ, ONE_KEY, "The type of a value.", parse::type_of),
    spec("unlink", -2, REMOVE, ALL_KEYS, "Removes keys.", parse::del),
    spec("unwatch", 1, TRANSACTION, NO_KEYS, "Forgets the watched keys.", parse::unwatch),
    spec("watch", -2, TRANSACTION, ALL_KEYS, "Makes EXEC depend on keys.", parse::watch),
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

    /// A request of each command that has keys: the table's positions and the parsed command name the same.
    #[test]
    fn positions_of_keys_agree_with_what_commands_touch() {
        let special = [
            ("bitfield", "a GET u8 0"),
            ("bitop", "AND a b c"),
            ("eval", "s 2 a b x"),
            ("eval_ro", "s 2 a b x"),
            ("evalsha", "s 1 a x"),
            ("evalsha_ro", "s 0 a x"),
            ("memory", "USAGE a"),
            ("object", "ENCODING a"),
            ("restore", "a 0 PAYLOAD"),
            ("setbit", "a 1 1"),
        ];
        let has_keys = |spec: &&Spec| spec.keys.0 > 0 || spec.flags.contains(&"movablekeys");
        // `MOVE` never becomes a command.
        for spec in TABLE.iter().filter(has_keys).filter(|spec| spec.name != "move") {
            let least = spec.arity.unsigned_abs() as usize - 1;
            let mut line = ["a", "1", "1"][..least].join(" ");
            if spec.keys.2 == 2 {
                line = "a 1 b 2".into();
            } else if spec.keys.1 != 1 || spec.keys == TWO_KEYS {
                line = "a b".into();
            }
            let arguments = special.iter().find(|(name, _)| *name == spec.name).map_or(&line[..], |(_, line)| line);
            let request: Vec<_> = format!("{} {arguments}", spec.name)
                .split(' ')
                .map(|word| match word {
                    "PAYLOAD" => crate::dump::dump(b"x"),
                    word => Bytes::copy_from_slice(word.as_bytes()),
                })
                .collect();
            let command =
                crate::parse(request.clone()).unwrap_or_else(|error| panic!("{} {arguments}: {error}", spec.name));
            let keys: Vec<Bytes> = spec.keys_in(&request).into_iter().cloned().collect();
            assert_eq!(command.keys(), keys, "{} {arguments}", spec.name);
        }
    }
}
