//! `redis.call`: one command of a script.

use bytes::Bytes;
use mlua::Value;

use super::Eval;
use crate::{Command, CommandError, Compute, Reply, evaluate::evaluate, parse, view::View};

/// The reply to a command that a script calls.
pub(super) fn call(words: &[Value], eval: &Eval, view: &mut View) -> Reply {
    let Some(request) = words.iter().map(word).collect::<Option<Vec<_>>>() else {
        return refuse("ERR Lua redis lib command arguments must be strings or integers");
    };
    if request.is_empty() {
        return refuse("ERR Please specify at least one argument for this redis.call() call");
    }
    let command = match parse(request) {
        Ok(command) => command,
        Err(CommandError::UnknownCommand { .. }) => return refuse("ERR Unknown Redis command called from script"),
        Err(CommandError::Arity { .. }) => return refuse("ERR Wrong number of args calling Redis command from script"),
        Err(error) => return Reply::error(error),
    };
    let keys = command.keys();
    let names_database = matches!(command, Command::Compute(Compute::Copy { to_database: Some(_), .. }));
    if keys.is_empty() || names_database || matches!(command, Command::Eval(_) | Command::Watch(_)) {
        return refuse("ERR This Redis command is not allowed from script");
    }
    if !keys.iter().all(|key| eval.keys.contains(key)) {
        return refuse("ERR Script attempted to access a key that is not among its KEYS");
    }
    if eval.only_reads && !command.only_reads() {
        return refuse("ERR Write commands are not allowed from read-only scripts.");
    }
    evaluate(&command, view)
}

fn word(value: &Value) -> Option<Bytes> {
    match value {
        Value::String(text) => Some(Bytes::copy_from_slice(&text.as_bytes())),
        Value::Integer(number) => Some(number.to_string().into()),
        // As Redis prints them, with 17 digits at most.
        Value::Number(number) if number.fract() == 0.0 && number.abs() < 1e17 => Some(format!("{number:.0}").into()),
        Value::Number(number) => Some(number.to_string().into()),
        _ => None,
    }
}

fn refuse(text: &'static str) -> Reply {
    Reply::Error(text.into())
}
