//! Errors of command parsing, with Redis's texts, which client libraries and their tests check.

use std::fmt;

use bytes::Bytes;

use crate::PayloadError;

/// A request is not a valid command. Nothing was executed, and the connection stays open. The text is the
/// whole error reply, starting with its code.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// There is no such command.
    #[error("ERR unknown command '{}', with args beginning with: {}", Shown(.name), Beginning(.arguments))]
    UnknownCommand {
        /// The name in the request.
        name: Bytes,
        /// Its arguments.
        arguments: Vec<Bytes>,
    },
    /// The client's key does not allow the command, or there is none.
    #[error("{0}")]
    Denied(String),
    /// The command has no such subcommand.
    #[error("ERR unknown subcommand '{}'. Try {} HELP.", Shown(.name), .command.to_ascii_uppercase())]
    UnknownSubcommand {
        /// The command.
        command: &'static str,
        /// The name in the request.
        name: Bytes,
    },
    /// Too few or too many arguments.
    #[error("ERR wrong number of arguments for '{command}' command")]
    Arity {
        /// The command, for a subcommand as `command|subcommand`.
        command: &'static str,
    },
    /// Options do not exist or exclude each other.
    #[error("ERR syntax error")]
    Syntax,
    /// An argument is not a number, or does not fit into 64 bits.
    #[error("ERR value is not an integer or out of range")]
    NotAnInteger,
    /// An expiry is not positive, or too far in the future.
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
    /// `EVALSHA` of a script that this node does not know.
    #[error("NOSCRIPT No matching script. Please use EVAL.")]
    NoScript,
    /// `RESTORE` of something that is no payload of `DUMP`.
    #[error(transparent)]
    Payload(PayloadError),
    /// An argument or a combination that one command refuses, with the whole text.
    #[error("{0}")]
    Invalid(&'static str),
    /// A database that does not exist.
    #[error("ERR DB index is out of range")]
    Database,
    /// `SCAN` with a cursor that is not a number.
    #[error("ERR invalid cursor")]
    Cursor,
    /// `SCAN` with a pattern above the limit.
    #[error("ERR pattern is too long")]
    PatternTooLong,
    /// `HELLO` with a version that is not a number.
    #[error("ERR Protocol version is not an integer or out of range")]
    ProtocolVersion,
    /// `HELLO` with an unsupported version.
    #[error("NOPROTO unsupported protocol version")]
    UnsupportedProtocol,
    /// `HELLO` with an option that does not exist or lacks an argument.
    #[error("ERR Syntax error in HELLO option '{}'", Shown(.0))]
    HelloOption(Bytes),
    /// A client name that would break lists of clients.
    #[error("ERR Client names cannot contain spaces, newlines or special characters.")]
    ClientName,
    /// A kind of client that does not exist.
    #[error("ERR Unknown client type '{}'", Shown(.0))]
    ClientType(Bytes),
    /// `CLIENT SETINFO` of something that does not exist.
    #[error("ERR Unrecognized option '{}'", Shown(.0))]
    ClientOption(Bytes),
    /// `CLIENT SETINFO` with a value that would break lists of clients.
    #[error("ERR {} cannot contain spaces, newlines or special characters.", .0)]
    ClientOptionValue(&'static str),
}

impl CommandError {
    /// Whether there is no such command, not with this number of arguments, or not for this client. Other
    /// errors are about the values of arguments.
    pub(crate) fn is_about_the_command(&self) -> bool {
        matches!(
            self,
            Self::UnknownCommand { .. } | Self::UnknownSubcommand { .. } | Self::Arity { .. } | Self::Denied(_)
        )
    }
}

/// Bytes of a client's text that an error quotes at most.
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
    fn errors_quote_at_most_a_part_of_the_request() {
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
