//! Commands about the connection and the server.

use bytes::Bytes;
use flotilla_kv::parse_integer;

use super::{Arguments, integer};
use crate::{ClientCommand, ClientInfo, Command, CommandError, Hello, Introspection, Protocol};

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
    match integer(&arguments.required()?)? {
        0 => Ok(Command::Select),
        _ => Err(CommandError::Database),
    }
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
        b"list" if arguments.len() > 0 => return Err(CommandError::Syntax),
        b"list" => ClientCommand::List,
        b"no-evict" => on_or_off(arguments, "client|no-evict")?,
        b"no-touch" => on_or_off(arguments, "client|no-touch")?,
        _ => return Err(CommandError::UnknownSubcommand { command: arguments.command, name }),
    };
    Ok(Command::Client(command))
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
        b"list" if arguments.len() > 0 => return Err(CommandError::Syntax),
        b"list" => Introspection::List,
        _ => return Err(CommandError::UnknownSubcommand { command: arguments.command, name }),
    }))
}

pub(crate) fn info(arguments: Arguments) -> Result<Command, CommandError> {
    Ok(Command::Info(arguments.remaining()))
}

pub(crate) fn config(mut arguments: Arguments) -> Result<Command, CommandError> {
    let name = arguments.required()?;
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
            ("SELECT 0", Command::Select),
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
            ("CLIENT LIST", Command::Client(ClientCommand::List)),
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
            ("SELECT 1", "ERR DB index is out of range"),
            ("HELLO x", "ERR Protocol version is not an integer or out of range"),
            ("HELLO 4", "NOPROTO unsupported protocol version"),
            ("HELLO 3 AUTH u", "ERR Syntax error in HELLO option 'AUTH'"),
            ("AUTH a b c", "ERR syntax error"),
            ("CLIENT KILL x", "ERR unknown subcommand 'KILL'. Try CLIENT HELP."),
            ("CLIENT SETNAME", "ERR wrong number of arguments for 'client|setname' command"),
            ("CLIENT SETNAME \u{7f}", "ERR Client names cannot contain spaces, newlines or special characters."),
            ("CLIENT SETINFO x y", "ERR Unrecognized option 'x'"),
            ("CLIENT NO-EVICT maybe", "ERR syntax error"),
            ("COMMAND GETKEYS x", "ERR unknown subcommand 'GETKEYS'. Try COMMAND HELP."),
            ("CONFIG SET a b", "ERR unknown subcommand 'SET'. Try CONFIG HELP."),
            ("CONFIG GET", "ERR wrong number of arguments for 'config|get' command"),
        ] {
            assert_eq!(error(line), text, "{line}");
        }
    }
}
