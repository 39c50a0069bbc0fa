//! Encodes replies in the protocol version of the connection.
//!
//! Types that RESP2 lacks are replaced by those that a RESP2 client expects: maps by flat arrays, sets and
//! pushes by arrays, booleans by integers, verbatim texts by bulk strings. Texts that a line end terminates
//! never contain one.

use std::{borrow::Cow, fmt::Write};

use bytes::{BufMut, Bytes, BytesMut};

/// The protocol version.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// The version at the start of a connection.
    #[default]
    Resp2,
    /// Chosen by `HELLO 3`.
    Resp3,
}

impl Protocol {
    /// The number, as in `HELLO 3`.
    #[must_use]
    pub const fn number(self) -> i64 {
        match self {
            Self::Resp2 => 2,
            Self::Resp3 => 3,
        }
    }
}

/// One reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// A short text of the server's own, like `OK`.
    Simple(&'static str),
    /// A short text of a script's. Line ends in it are replaced by blanks.
    Status(String),
    /// An error; the text starts with its code, like `ERR`. Line ends in it are replaced by blanks.
    Error(Cow<'static, str>),
    /// A number.
    Integer(i64),
    /// Any bytes.
    Bulk(Bytes),
    /// Human-readable text, like that of `INFO`.
    Verbatim(String),
    /// No value.
    Null,
    /// No list.
    NullArray,
    /// A boolean; 1 or 0 in RESP2.
    Boolean(bool),
    /// A list.
    Array(Vec<Reply>),
    /// Pairs; a flat list in RESP2.
    Map(Vec<(Reply, Reply)>),
    /// A list without order or duplicates.
    Set(Vec<Reply>),
    /// A message that the client did not request.
    Push(Vec<Reply>),
}

impl Reply {
    /// The reply `OK`.
    pub const OK: Self = Self::Simple("OK");

    /// A bulk string of this text.
    #[must_use]
    pub fn text(text: impl Into<String>) -> Self {
        Self::Bulk(text.into().into())
    }

    /// An error with this text, which starts with its code.
    #[must_use]
    pub fn error(error: impl std::fmt::Display) -> Self {
        Self::Error(error.to_string().into())
    }

    /// A bulk string, or [`Reply::Null`].
    #[must_use]
    pub fn bulk_or_null(bytes: Option<Bytes>) -> Self {
        bytes.map_or(Self::Null, Self::Bulk)
    }

    /// Appends the reply's bytes to `output`.
    pub fn encode(&self, protocol: Protocol, output: &mut BytesMut) {
        let resp3 = protocol == Protocol::Resp3;
        match self {
            Self::Simple(text) => put_line(output, b'+', text),
            Self::Status(text) => put_line(output, b'+', text),
            Self::Error(text) => put_line(output, b'-', text),
            Self::Integer(number) => put_number(output, b':', *number),
            Self::Bulk(bytes) => put_bulk(output, bytes),
            Self::Verbatim(text) if resp3 => {
                put_number(output, b'=', text.len() as i64 + 4);
                output.extend_from_slice(b"txt:");
                output.extend_from_slice(text.as_bytes());
                output.extend_from_slice(b"\r\n");
            }
            Self::Verbatim(text) => put_bulk(output, text.as_bytes()),
            Self::Null => output.extend_from_slice(if resp3 { b"_\r\n" } else { b"$-1\r\n" }),
            Self::NullArray => output.extend_from_slice(if resp3 { b"_\r\n" } else { b"*-1\r\n" }),
            Self::Boolean(yes) if resp3 => output.extend_from_slice(if *yes { b"#t\r\n" } else { b"#f\r\n" }),
            Self::Boolean(yes) => put_number(output, b':', (*yes).into()),
            Self::Array(items) => put_items(output, b'*', items, protocol),
            Self::Set(items) => put_items(output, if resp3 { b'~' } else { b'*' }, items, protocol),
            Self::Push(items) => put_items(output, if resp3 { b'>' } else { b'*' }, items, protocol),
            Self::Map(pairs) => {
                let (kind, length) = if resp3 { (b'%', pairs.len()) } else { (b'*', 2 * pairs.len()) };
                put_number(output, kind, length as i64);
                for (key, value) in pairs {
                    key.encode(protocol, output);
                    value.encode(protocol, output);
                }
            }
        }
    }
}

fn put_items(output: &mut BytesMut, kind: u8, items: &[Reply], protocol: Protocol) {
    put_number(output, kind, items.len() as i64);
    for item in items {
        item.encode(protocol, output);
    }
}

/// Bytes of a bulk string besides its content, at most.
const HEADER_BYTES_MAX: usize = 32;

fn put_bulk(output: &mut BytesMut, bytes: &[u8]) {
    // For all at once: the end would double a long buffer.
    output.reserve(bytes.len() + HEADER_BYTES_MAX);
    put_number(output, b'$', bytes.len() as i64);
    output.extend_from_slice(bytes);
    output.extend_from_slice(b"\r\n");
}

fn put_number(output: &mut BytesMut, kind: u8, number: i64) {
    output.put_u8(kind);
    write!(output, "{number}\r\n").expect("writing to a growing buffer cannot fail");
}

fn put_line(output: &mut BytesMut, kind: u8, text: &str) {
    output.put_u8(kind);
    output.extend(text.bytes().map(|byte| if matches!(byte, b'\r' | b'\n') { b' ' } else { byte }));
    output.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(reply: &Reply, protocol: Protocol) -> String {
        let mut output = BytesMut::new();
        reply.encode(protocol, &mut output);
        String::from_utf8(output.to_vec()).unwrap()
    }

    #[test]
    fn every_type_is_encoded_for_both_versions() {
        let list = || vec![Reply::Integer(1), Reply::Null];
        for (reply, resp2, resp3) in [
            (Reply::OK, "+OK\r\n", "+OK\r\n"),
            (Reply::Status("a\r\nb".into()), "+a  b\r\n", "+a  b\r\n"),
            (Reply::error("ERR no"), "-ERR no\r\n", "-ERR no\r\n"),
            (Reply::Integer(i64::MIN), ":-9223372036854775808\r\n", ":-9223372036854775808\r\n"),
            (Reply::text("a\r\nb"), "$4\r\na\r\nb\r\n", "$4\r\na\r\nb\r\n"),
            (Reply::text(""), "$0\r\n\r\n", "$0\r\n\r\n"),
            (Reply::bulk_or_null(None), "$-1\r\n", "_\r\n"),
            (Reply::NullArray, "*-1\r\n", "_\r\n"),
            (Reply::Boolean(true), ":1\r\n", "#t\r\n"),
            (Reply::Boolean(false), ":0\r\n", "#f\r\n"),
            (Reply::Verbatim("hi".into()), "$2\r\nhi\r\n", "=6\r\ntxt:hi\r\n"),
            (Reply::Array(list()), "*2\r\n:1\r\n$-1\r\n", "*2\r\n:1\r\n_\r\n"),
            (Reply::Set(list()), "*2\r\n:1\r\n$-1\r\n", "~2\r\n:1\r\n_\r\n"),
            (Reply::Push(list()), "*2\r\n:1\r\n$-1\r\n", ">2\r\n:1\r\n_\r\n"),
            (Reply::Map(vec![(Reply::text("k"), Reply::Null)]), "*2\r\n$1\r\nk\r\n$-1\r\n", "%1\r\n$1\r\nk\r\n_\r\n"),
        ] {
            assert_eq!(encoded(&reply, Protocol::Resp2), resp2);
            assert_eq!(encoded(&reply, Protocol::Resp3), resp3);
        }
    }

    #[test]
    fn an_error_cannot_start_another_reply() {
        assert_eq!(encoded(&Reply::error("ERR x\r\n+OK"), Protocol::Resp2), "-ERR x  +OK\r\n");
    }
}
