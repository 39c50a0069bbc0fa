//! Commands about the connection and the server.

use bytes::Bytes;
use flotilla_kv::parse_integer;

use super::{Arguments, database, integer};
use crate::{
    ClientCommand, ClientFilter, ClientInfo, Command, CommandError, CommandFilter, Glob, Hello, Introspection,
    Protocol, ReplyMode,
};

pub(crate) fn ping(mut arguments: Arguments) -> Result<Command, CommandError> {
    if arguments.len() > 1 {
        return Err(CommandError::Arity { command: arguments.command });
    }
    Ok(Command::Ping(arguments.next()))
}

pub(crate) fn echo(mut arguments: Arguments) -> Result<Command, CommandError> {
    Ok(Command::Echo(arguments.required()?))
}

pub(crate) fn quit(_: Arguments) -> Result<Command, CommandError> {
    Ok(Command::Quit)
}

pub(crate) fn reset(_: Arguments) -> Result<Command, CommandError> {
    Ok(Command::Reset)
}

pub(crate) fn select(mut arguments: Arguments) -> Result<Command, CommandError> {
    Ok(Command::Select(database(&arguments.required()?)?))
}

pub(crate) fn auth(mut arguments: Arguments) -> Result<Command, CommandError> {
    let first = arguments.required()?;
    match (arguments.next(), arguments.next()) {
        (None, _) => Ok(Command::Auth { user: None, password: first }),
        (Some(password), None) => Ok(Command::Auth { user: Some(first), password }),
        (Some(_), Some(_)) => Err(CommandError::Syntax),
    }
}

pub(crate) fn hello(mut arguments: Arguments) -> Result<Command, CommandError> {
    let mut hello = Hello::default();
    let Some(version) = arguments.next() else { return Ok(Command::Hello(hello)) };
    hello.protocol = match parse_integer(&version).ok_or(CommandError::ProtocolVersion)? {
        2 => Some(Protocol::Resp2),
        3 => Some(Protocol::Resp3),
        _ => return Err(CommandError::UnsupportedProtocol),
    };
    while let Some(option) = arguments.next() {
        if option.eq_ignore_ascii_case(b"auth") && arguments.len() >= 2 {
            hello.auth = arguments.next().zip(arguments.next());
        } else if option.eq_ignore_ascii_case(b"setname") && arguments.len() >= 1 {
            hello.name = arguments.next().map(client_name).transpose()?;
        } else {
            return Err(CommandError::HelloOption(option));
        }
    }
    Ok(Command::Hello(hello))
}

pub(crate) fn client(mut arguments: Arguments) -> Result<Command, CommandError> {
    let name = arguments.required()?;
    let command = match name.to_ascii_lowercase().as_slice() {
        b"setname" => {
            arguments.exactly(1, "client|setname")?;
            ClientCommand::SetName(client_name(arguments.required()?)?)
        }
        b"setinfo" => {
            arguments.exactly(2, "client|setinfo")?;
            set_info(arguments.required()?, arguments.required()?)?
        }
        b"getname" => arguments.exactly(0, "client|getname").map(|()| ClientCommand::GetName)?,
        b"id" => arguments.exactly(0, "client|id").map(|()| ClientCommand::Id)?,
        b"info" => arguments.exactly(0, "client|info").map(|()| ClientCommand::Info)?,
        b"list" => ClientCommand::List(list_filter(arguments)?.into()),
        b"kill" => kill(arguments)?,
        b"pause" => pause(arguments)?,
        b"unpause" => arguments.exactly(0, "client|unpause").map(|()| ClientCommand::Unpause)?,
        b"getredir" => arguments.exactly(0, "client|getredir").map(|()| ClientCommand::GetRedirection)?,
        b"reply" => {
            arguments.exactly(1, "client|reply")?;
            ClientCommand::Reply(match arguments.required()?.to_ascii_lowercase().as_slice() {
                b"on" => ReplyMode::On,
                b"off" => ReplyMode::Off,
                b"skip" => ReplyMode::Skip,
                _ => return Err(CommandError::Syntax),
            })
        }
        b"help" => return arguments.exactly(0, "client|help").map(|()| Command::Help("client")),
        b"no-evict" => on_or_off(arguments, "client|no-evict")?,
        b"no-touch" => on_or_off(arguments, "client|no-touch")?,
        _ => return Err(CommandError::UnknownSubcommand { command: arguments.command, name }),
    };
    Ok(Command::Client(command))
}

fn client_id(text: &[u8]) -> Result<u64, CommandError> {
    let id = parse_integer(text).and_then(|id| u64::try_from(id).ok()).filter(|id| *id > 0);
    id.ok_or(CommandError::Invalid("ERR client-id should be greater than 0"))
}

fn is_normal(kind: &Bytes) -> Result<bool, CommandError> {
    match kind.to_ascii_lowercase().as_slice() {
        b"normal" => Ok(true),
        b"master" | b"replica" | b"slave" | b"pubsub" => Ok(false),
        _ => Err(CommandError::ClientType(kind.clone())),
    }
}

fn list_filter(mut arguments: Arguments) -> Result<ClientFilter, CommandError> {
    let mut filter = ClientFilter::default();
    let Some(option) = arguments.next() else { return Ok(filter) };
    match option.to_ascii_lowercase().as_slice() {
        b"type" if arguments.len() == 1 => filter.is_normal = is_normal(&arguments.required()?)?,
        b"id" if arguments.len() > 0 => {
            let ids = arguments.remaining();
            filter.ids = Some(ids.iter().map(|id| client_id(id)).collect::<Result<_, _>>()?);
        }
        _ => return Err(CommandError::Syntax),
    }
    Ok(filter)
}

fn kill(mut arguments: Arguments) -> Result<ClientCommand, CommandError> {
    let mut filter = ClientFilter::default();
    if arguments.len() == 1 {
        filter.address = arguments.next();
        return Ok(ClientCommand::Kill { filter: filter.into(), also_own: true, by_address: true });
    }
    if arguments.len() == 0 {
        return Err(CommandError::Arity { command: "client|kill" });
    }
    let mut also_own = false;
    while let Some(option) = arguments.next() {
        let value = arguments.option_value()?;
        match option.to_ascii_lowercase().as_slice() {
            b"id" => filter.ids = Some(vec![client_id(&value)?]),
            b"addr" => filter.address = Some(value),
            b"laddr" => filter.local_address = Some(value),
            b"user" => filter.user = Some(value),
            b"type" => filter.is_normal = is_normal(&value)?,
            b"maxage" => filter.age_s = u64::try_from(integer(&value)?).ok(),
            b"skipme" if value.eq_ignore_ascii_case(b"yes") => also_own = false,
            b"skipme" if value.eq_ignore_ascii_case(b"no") => also_own = true,
            _ => return Err(CommandError::Syntax),
        }
    }
    Ok(ClientCommand::Kill { filter: filter.into(), also_own, by_address: false })
}

fn pause(mut arguments: Arguments) -> Result<ClientCommand, CommandError> {
    const TIMEOUT: CommandError = CommandError::Invalid("ERR timeout is not an integer or out of range");
    let Some(for_ms) = arguments.next() else { return Err(CommandError::Arity { command: "client|pause" }) };
    let only_writes = match (arguments.next().map(|mode| mode.to_ascii_lowercase()).as_deref(), arguments.len()) {
        (None | Some(b"all"), 0) => false,
        (Some(b"write"), 0) => true,
        _ => return Err(CommandError::Syntax),
    };
    let for_ms = parse_integer(&for_ms).ok_or(TIMEOUT)?;
    let for_ms = u64::try_from(for_ms).map_err(|_| CommandError::Invalid("ERR timeout is negative"))?;
    Ok(ClientCommand::Pause { for_ms, only_writes })
}

fn set_info(option: Bytes, value: Bytes) -> Result<ClientCommand, CommandError> {
    let (info, name) = match option.to_ascii_lowercase().as_slice() {
        b"lib-name" => (ClientInfo::LibraryName, "lib-name"),
        b"lib-ver" => (ClientInfo::LibraryVersion, "lib-ver"),
        _ => return Err(CommandError::ClientOption(option)),
    };
    if !is_printable(&value) {
        return Err(CommandError::ClientOptionValue(name));
    }
    Ok(ClientCommand::SetInfo(info, value))
}

fn on_or_off(mut arguments: Arguments, command: &'static str) -> Result<ClientCommand, CommandError> {
    arguments.exactly(1, command)?;
    match arguments.required()?.to_ascii_lowercase().as_slice() {
        b"on" | b"off" => Ok(ClientCommand::NoEffect),
        _ => Err(CommandError::Syntax),
    }
}

fn is_printable(text: &[u8]) -> bool {
    text.iter().all(u8::is_ascii_graphic)
}

fn client_name(name: Bytes) -> Result<Bytes, CommandError> {
    if is_printable(&name) { Ok(name) } else { Err(CommandError::ClientName) }
}

pub(crate) fn introspection(mut arguments: Arguments) -> Result<Command, CommandError> {
    let Some(name) = arguments.next() else {
        return Ok(Command::Introspection(Introspection::Info(Vec::new())));
    };
    Ok(Command::Introspection(match name.to_ascii_lowercase().as_slice() {
        b"info" => Introspection::Info(arguments.remaining()),
        b"docs" => Introspection::Docs(arguments.remaining()),
        b"count" => arguments.exactly(0, "command|count").map(|()| Introspection::Count)?,
        b"list" => Introspection::List(command_filter(arguments)?),
        b"getkeys" | b"getkeysandflags" if arguments.len() == 0 => {
            return Err(CommandError::Arity { command: "command|getkeys" });
        }
        b"getkeys" => Introspection::GetKeys { request: arguments.remaining(), with_flags: false },
        b"getkeysandflags" => Introspection::GetKeys { request: arguments.remaining(), with_flags: true },
        b"help" => return arguments.exactly(0, "command|help").map(|()| Command::Help("command")),
        _ => return Err(CommandError::UnknownSubcommand { command: arguments.command, name }),
    }))
}

fn command_filter(mut arguments: Arguments) -> Result<CommandFilter, CommandError> {
    let Some(option) = arguments.next() else { return Ok(CommandFilter::All) };
    if !option.eq_ignore_ascii_case(b"filterby") || arguments.len() != 2 {
        return Err(CommandError::Syntax);
    }
    let (by, value) = (arguments.required()?, arguments.required()?);
    match by.to_ascii_lowercase().as_slice() {
        b"module" => Ok(CommandFilter::Module),
        b"aclcat" => Ok(CommandFilter::Category(value)),
        b"pattern" => Ok(CommandFilter::Pattern(Glob::new(value))),
        _ => Err(CommandError::Syntax),
    }
}

pub(crate) fn info(arguments: Arguments) -> Result<Command, CommandError> {
    Ok(Command::Info(arguments.remaining()))
}

pub(crate) fn config(mut arguments: Arguments) -> Result<Command, CommandError> {
    let name = arguments.required()?;
    if name.eq_ignore_ascii_case(b"help") {
        return arguments.exactly(0, "config|help").map(|()| Command::Help("config"));
    }
    if !name.eq_ignore_ascii_case(b"get") {
        return Err(CommandError::UnknownSubcommand { command: arguments.command, name });
    }
    if arguments.len() == 0 {
        return Err(CommandError::Arity { command: "config|get" });
    }
    Ok(Command::ConfigGet(arguments.remaining()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Database;
    use crate::parse::testing::{error, parsed};

    fn bytes(text: &'static str) -> Bytes {
        Bytes::from_static(text.as_bytes())
    }

    #[test]
    fn connection_commands_parse() {
        for (line, command) in [
            ("PING", Command::Ping(None)),
            ("ping hi", Command::Ping(Some(bytes("hi")))),
            ("ECHO hi", Command::Echo(bytes("hi"))),
            ("SELECT 0", Command::Select(Database::default())),
            ("SELECT 15", Command::Select(Database::new(15).expect("the last one"))),
            ("QUIT", Command::Quit),
            ("RESET", Command::Reset),
            ("AUTH p", Command::Auth { user: None, password: bytes("p") }),
            ("AUTH u p", Command::Auth { user: Some(bytes("u")), password: bytes("p") }),
            ("HELLO", Command::Hello(Hello::default())),
            (
                "HELLO 3 SETNAME me AUTH u p",
                Command::Hello(Hello {
                    protocol: Some(Protocol::Resp3),
                    auth: Some((bytes("u"), bytes("p"))),
                    name: Some(bytes("me")),
                }),
            ),
            ("CLIENT SETNAME me", Command::Client(ClientCommand::SetName(bytes("me")))),
            ("CLIENT GETNAME", Command::Client(ClientCommand::GetName)),
            ("CLIENT ID", Command::Client(ClientCommand::Id)),
            ("CLIENT INFO", Command::Client(ClientCommand::Info)),
            ("CLIENT LIST", Command::Client(ClientCommand::List(ClientFilter::default().into()))),
            ("CLIENT NO-EVICT on", Command::Client(ClientCommand::NoEffect)),
            ("CLIENT SETINFO lib-name x", Command::Client(ClientCommand::SetInfo(ClientInfo::LibraryName, bytes("x")))),
            ("COMMAND", Command::Introspection(Introspection::Info(vec![]))),
            ("COMMAND COUNT", Command::Introspection(Introspection::Count)),
            ("COMMAND DOCS get", Command::Introspection(Introspection::Docs(vec![bytes("get")]))),
            ("INFO server", Command::Info(vec![bytes("server")])),
            ("CONFIG GET save", Command::ConfigGet(vec![bytes("save")])),
        ] {
            assert_eq!(parsed(line), Ok(command), "{line}");
        }
    }

    #[test]
    fn connection_errors_have_the_texts_of_redis() {
        for (line, text) in [
            ("PING a b", "ERR wrong number of arguments for 'ping' command"),
            ("SELECT x", "ERR value is not an integer or out of range"),
            ("SELECT 16", "ERR DB index is out of range"),
            ("SELECT -1", "ERR DB index is out of range"),
            ("HELLO x", "ERR Protocol version is not an integer or out of range"),
            ("HELLO 4", "NOPROTO unsupported protocol version"),
            ("HELLO 3 AUTH u", "ERR Syntax error in HELLO option 'AUTH'"),
            ("AUTH a b c", "ERR syntax error"),
            ("CLIENT KILL", "ERR wrong number of arguments for 'client|kill' command"),
            ("CLIENT KILL ID x", "ERR client-id should be greater than 0"),
            ("CLIENT KILL TYPE x", "ERR Unknown client type 'x'"),
            ("CLIENT KILL SKIPME maybe", "ERR syntax error"),
            ("CLIENT PAUSE x", "ERR timeout is not an integer or out of range"),
            ("CLIENT PAUSE -1", "ERR timeout is negative"),
            ("CLIENT REPLY maybe", "ERR syntax error"),
            ("CLIENT LIST TYPE", "ERR syntax error"),
            ("CLIENT SETNAME", "ERR wrong number of arguments for 'client|setname' command"),
            ("CLIENT SETNAME \u{7f}", "ERR Client names cannot contain spaces, newlines or special characters."),
            ("CLIENT SETINFO x y", "ERR Unrecognized option 'x'"),
            ("CLIENT NO-EVICT maybe", "ERR syntax error"),
            ("COMMAND NOPE", "ERR unknown subcommand 'NOPE'. Try COMMAND HELP."),
            ("COMMAND GETKEYS", "ERR wrong number of arguments for 'command|getkeys' command"),
            ("CONFIG SET a b", "ERR unknown subcommand 'SET'. Try CONFIG HELP."),
            ("CONFIG GET", "ERR wrong number of arguments for 'config|get' command"),
        ] {
            assert_eq!(error(line), text, "{line}");
        }
    }
}
