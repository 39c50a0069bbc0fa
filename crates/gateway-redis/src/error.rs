//! Requests that are not commands, with the texts of Redis that client libraries and their tests look for.

use std::fmt;

use bytes::Bytes;

/// A request is not a command that can be run. Nothing was executed, and the connection goes on. The text is the whole
/// error reply, code first.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// There is no such command here.
    #[error("ERR unknown command '{}', with args beginning with: {}", Shown(.name), Beginning(.arguments))]
    UnknownCommand {
        /// What was asked for.
        name: Bytes,
        /// What came with it.
        arguments: Vec<Bytes>,
    },
    /// The command has no such subcommand here.
    #[error("ERR unknown subcommand '{}'. Try {} HELP.", Shown(.name), .command.to_ascii_uppercase())]
    UnknownSubcommand {
        /// The command.
        command: &'static str,
        /// What was asked for.
        name: Bytes,
    },
    /// Too few or too many arguments.
    #[error("ERR wrong number of arguments for '{command}' command")]
    Arity {
        /// The command, for a subcommand as `command|subcommand`.
        command: &'static str,
    },
    /// Options that do not exist or exclude each other.
    #[error("ERR syntax error")]
    Syntax,
    /// A number is not one, or does not fit into 64 bits.
    #[error("ERR value is not an integer or out of range")]
    NotAnInteger,
    /// An expiry that is not positive or too far away.
    #[error("ERR invalid expire time in '{command}' command")]
    ExpireTime {
        /// The command.
        command: &'static str,
    },
    /// `DECRBY` by the one number that cannot be negated.
    #[error("ERR decrement would overflow")]
    DecrementOverflow,
    /// `EXPIRE` with options that exclude each other.
    #[error("ERR NX and XX, GT or LT options at the same time are not compatible")]
    ExpireNxWithOthers,
    /// `EXPIRE` with options that exclude each other.
    #[error("ERR GT and LT options at the same time are not compatible")]
    ExpireGtWithLt,
    /// `EXPIRE` with an option that does not exist.
    #[error("ERR Unsupported option {}", Shown(.0))]
    ExpireOption(Bytes),
    /// `SELECT` of a database other than 0.
    #[error("ERR DB index is out of range")]
    Database,
    /// `SCAN` with something that no `SCAN` returned.
    #[error("ERR invalid cursor")]
    Cursor,
    /// `SCAN` with a pattern above the limit.
    #[error("ERR pattern is too long")]
    PatternTooLong,
    /// `HELLO` with something that is no version.
    #[error("ERR Protocol version is not an integer or out of range")]
    ProtocolVersion,
    /// `HELLO` with a version that is not spoken here.
    #[error("NOPROTO unsupported protocol version")]
    UnsupportedProtocol,
    /// `HELLO` with an option that does not exist or is cut short.
    #[error("ERR Syntax error in HELLO option '{}'", Shown(.0))]
    HelloOption(Bytes),
    /// A client name that would break lists of clients.
    #[error("ERR Client names cannot contain spaces, newlines or special characters.")]
    ClientName,
    /// `CLIENT SETINFO` of something that does not exist.
    #[error("ERR Unrecognized option '{}'", Shown(.0))]
    ClientOption(Bytes),
    /// `CLIENT SETINFO` with a value that would break lists of clients.
    #[error("ERR {} cannot contain spaces, newlines or special characters.", .0)]
    ClientOptionValue(&'static str),
}

/// Bytes of a client's text that an error repeats at most.
const SHOWN_BYTES_MAX: usize = 128;

/// The beginning of a client's text.
struct Shown<'a>(&'a [u8]);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = self.0.len().min(SHOWN_BYTES_MAX);
        f.write_str(&String::from_utf8_lossy(&self.0[..end]))
    }
}

/// The beginning of a list of arguments, each quoted and followed by a blank.
struct Beginning<'a>(&'a [Bytes]);

impl fmt::Display for Beginning<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut left = SHOWN_BYTES_MAX;
        for argument in self.0 {
            if left == 0 {
                break;
            }
            let shown = &argument[..argument.len().min(left)];
            write!(f, "'{}' ", Shown(shown))?;
            left = left.saturating_sub(shown.len() + 3);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_commands_are_repeated_in_part() {
        let error = |arguments: &[&str]| {
            let arguments = arguments.iter().map(|one| Bytes::copy_from_slice(one.as_bytes())).collect();
            CommandError::UnknownCommand { name: Bytes::from_static(b"foo"), arguments }.to_string()
        };
        assert_eq!(error(&[]), "ERR unknown command 'foo', with args beginning with: ");
        assert_eq!(error(&["a", "b"]), "ERR unknown command 'foo', with args beginning with: 'a' 'b' ");
        assert!(error(&["x"; 10_000]).len() < 200);
        assert!(error(&[&"x".repeat(10_000)]).len() < 200);
    }
}
