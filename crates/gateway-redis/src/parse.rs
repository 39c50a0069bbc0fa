//! Parses requests into commands, exactly as strictly as Redis does.
//!
//! Checks are made in Redis's order (name, number of arguments, options, numbers), because the tests of
//! client libraries depend on which error is reported first. Nothing is executed and no clock is read:
//! relative times stay relative.

mod compute;
mod connection;
mod data;
mod script;

use std::vec::IntoIter;

use bytes::Bytes;
use flotilla_kv::parse_integer;

pub(crate) use compute::{
    bit_count, bit_field, bit_field_ro, bit_op, bit_pos, copy, dump, expire_time, get_bit, get_range, incr_by_float,
    lcs, memory, mset_nx, object, pexpire_time, rename, rename_nx, restore, set_bit, set_range,
};
pub(crate) use connection::{auth, client, config, echo, hello, info, introspection, ping, quit, reset, select};
pub(crate) use data::{
    append, db_size, decr, decr_by, del, discard, exec, exists, expire, expire_at, flush_all, flush_db, get, get_del,
    get_ex, get_set, incr, incr_by, keys, mget, move_key, mset, multi, persist, pexpire, pexpire_at, pset_ex, pttl,
    random_key, scan, set, set_ex, set_nx, str_len, swap_db, time, ttl, type_of, unwatch, watch,
};
pub(crate) use script::{eval, eval_ro, eval_sha, eval_sha_ro, script};

use crate::{Command, CommandError, Database, Request, Spec};

/// Parses a request into a command.
///
/// # Errors
/// There is no such command, or its arguments are not valid. The error's text is the reply.
pub fn parse(request: Request) -> Result<Command, CommandError> {
    let spec = request.first().and_then(|name| Spec::find(name));
    parse_as(spec, request)
}

/// Parses a request of the command that its name was found to be.
pub(crate) fn parse_as(spec: Option<&'static Spec>, request: Request) -> Result<Command, CommandError> {
    let count = request.len();
    let mut rest = request.into_iter();
    let name = rest.next().unwrap_or_default();
    let Some(spec) = spec else {
        return Err(CommandError::UnknownCommand { name, arguments: rest.collect() });
    };
    if !spec.accepts(count) {
        return Err(CommandError::Arity { command: spec.name });
    }
    (spec.parse)(Arguments { command: spec.name, rest })
}

/// The arguments after the name.
pub(crate) struct Arguments {
    /// The command, for errors.
    pub(crate) command: &'static str,
    rest: IntoIter<Bytes>,
}

impl Arguments {
    /// Arguments left.
    pub(crate) fn len(&self) -> usize {
        self.rest.len()
    }

    /// The next argument, if there is one.
    pub(crate) fn next(&mut self) -> Option<Bytes> {
        self.rest.next()
    }

    /// The next argument of a command whose number of arguments was checked.
    pub(crate) fn required(&mut self) -> Result<Bytes, CommandError> {
        self.next().ok_or(CommandError::Arity { command: self.command })
    }

    /// The value of an option.
    pub(crate) fn option_value(&mut self) -> Result<Bytes, CommandError> {
        self.next().ok_or(CommandError::Syntax)
    }

    /// All remaining arguments.
    pub(crate) fn remaining(self) -> Vec<Bytes> {
        self.rest.collect()
    }

    /// Checks the number of arguments left, for subcommands.
    pub(crate) fn exactly(&self, count: usize, command: &'static str) -> Result<(), CommandError> {
        if self.len() == count { Ok(()) } else { Err(CommandError::Arity { command }) }
    }
}

/// Parses the number of a database.
pub(crate) fn database(text: &[u8]) -> Result<Database, CommandError> {
    Database::parse(text).ok_or(CommandError::NotAnInteger)?.ok_or(CommandError::Database)
}

/// Parses a number as Redis does.
pub(crate) fn integer(text: &[u8]) -> Result<i64, CommandError> {
    parse_integer(text).ok_or(CommandError::NotAnInteger)
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// Parses a line split at blanks.
    pub(crate) fn parsed(line: &str) -> Result<Command, CommandError> {
        parse(line.split(' ').map(|word| Bytes::copy_from_slice(word.as_bytes())).collect())
    }

    /// The error reply to a line.
    pub(crate) fn error(line: &str) -> String {
        parsed(line).map_or_else(|error| error.to_string(), |command| panic!("{command:?}"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{testing::error, *};
    use crate::TABLE;

    #[test]
    fn unknown_commands_and_wrong_arity_have_the_texts_of_redis() {
        assert_eq!(error("foo a b"), "ERR unknown command 'foo', with args beginning with: 'a' 'b' ");
        assert_eq!(error("GET"), "ERR wrong number of arguments for 'get' command");
        assert_eq!(error("get a b"), "ERR wrong number of arguments for 'get' command");
        assert_eq!(error("MSET a"), "ERR wrong number of arguments for 'mset' command");
    }

    proptest! {
        #[test]
        fn no_request_panics(
            spec in proptest::sample::select(TABLE),
            arguments in proptest::collection::vec(
                prop_oneof![
                    proptest::sample::select(vec![
                        "EX", "PX", "NX", "XX", "GT", "LT", "GET", "KEEPTTL", "EXAT", "PXAT", "PERSIST", "MATCH", "COUNT",
                        "TYPE", "AUTH", "SETNAME", "SETINFO", "LIB-NAME", "INFO", "DOCS", "LIST", "ON", "string", "2", "3",
                        "0", "-1", "9223372036854775807", "-9223372036854775808", "",
                    ]).prop_map(|text| Bytes::from_static(text.as_bytes())),
                    proptest::collection::vec(any::<u8>(), 0..8).prop_map(Bytes::from),
                ],
                0..7,
            )
        ) {
            let request = [vec![Bytes::from_static(spec.name.as_bytes())], arguments].concat();
            if let Err(error) = parse(request) {
                prop_assert!(error.to_string().split(' ').next().is_some_and(|code| code.bytes().all(|byte| byte.is_ascii_uppercase())));
            }
        }

        #[test]
        fn random_names_never_panic(request in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 0..5)) {
            let _ = parse(request.into_iter().map(Bytes::from).collect()).map_err(|error| error.to_string());
        }
    }
}
