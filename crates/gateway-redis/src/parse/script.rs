//! Scripts.

use bytes::Bytes;

use super::Arguments;
use crate::{Command, CommandError, Eval, Script, ScriptCommand};

pub(crate) fn eval(arguments: Arguments) -> Result<Command, CommandError> {
    eval_of(arguments, Script::Text, false)
}

pub(crate) fn eval_ro(arguments: Arguments) -> Result<Command, CommandError> {
    eval_of(arguments, Script::Text, true)
}

pub(crate) fn eval_sha(arguments: Arguments) -> Result<Command, CommandError> {
    eval_of(arguments, Script::Digest, false)
}

pub(crate) fn eval_sha_ro(arguments: Arguments) -> Result<Command, CommandError> {
    eval_of(arguments, Script::Digest, true)
}

fn eval_of(mut arguments: Arguments, script: fn(Bytes) -> Script, only_reads: bool) -> Result<Command, CommandError> {
    let script = script(arguments.required()?);
    let count = super::integer(&arguments.required()?)?;
    let count = usize::try_from(count).map_err(|_| CommandError::Invalid("ERR Number of keys can't be negative"))?;
    if count > arguments.len() {
        return Err(CommandError::Invalid("ERR Number of keys can't be greater than number of args"));
    }
    let mut keys = arguments.remaining();
    let arguments = keys.split_off(count);
    Ok(Command::Eval(Eval { script, keys, arguments, only_reads }))
}

pub(crate) fn script(mut arguments: Arguments) -> Result<Command, CommandError> {
    let name = arguments.required()?;
    Ok(Command::Script(match name.to_ascii_lowercase().as_slice() {
        b"help" => return arguments.exactly(0, "script|help").map(|()| Command::Help("script")),
        b"load" => {
            arguments.exactly(1, "script|load")?;
            ScriptCommand::Load(arguments.required()?)
        }
        b"exists" if arguments.len() == 0 => return Err(CommandError::Arity { command: "script|exists" }),
        b"exists" => ScriptCommand::Exists(arguments.remaining()),
        b"flush" => match (arguments.next().map(|mode| mode.to_ascii_lowercase()), arguments.len()) {
            (None, _) => ScriptCommand::Flush,
            (Some(mode), 0) if mode == b"sync" || mode == b"async" => ScriptCommand::Flush,
            _ => return Err(CommandError::Invalid("ERR SCRIPT FLUSH only support SYNC|ASYNC option")),
        },
        b"kill" => {
            arguments.exactly(0, "script|kill")?;
            ScriptCommand::Kill
        }
        _ => return Err(CommandError::UnknownSubcommand { command: arguments.command, name }),
    }))
}

#[cfg(test)]
mod tests {
    use crate::parse::testing::error;

    #[test]
    fn errors_have_the_texts_of_redis() {
        for (line, text) in [
            ("EVAL s x", "ERR value is not an integer or out of range"),
            ("EVAL s -1", "ERR Number of keys can't be negative"),
            ("EVAL s 2 a", "ERR Number of keys can't be greater than number of args"),
            ("EVALSHA s", "ERR wrong number of arguments for 'evalsha' command"),
            ("SCRIPT NOPE", "ERR unknown subcommand 'NOPE'. Try SCRIPT HELP."),
            ("SCRIPT EXISTS", "ERR wrong number of arguments for 'script|exists' command"),
            ("SCRIPT FLUSH x", "ERR SCRIPT FLUSH only support SYNC|ASYNC option"),
        ] {
            assert_eq!(error(line), text, "{line}");
        }
    }
}
