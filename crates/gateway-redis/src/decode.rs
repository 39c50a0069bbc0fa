//! Decodes requests from a byte stream: arrays of bulk strings, and inline commands as typed into telnet.
//!
//! Invariants: every length is checked against a limit before memory is reserved for it; a request that
//! arrives in many pieces is parsed once, not from its start with every piece; bulk strings are slices of the
//! input buffer. After an error the stream cannot be decoded any further: send the error and close.
//!
//! Written by hand because the available protocol crates restart with every read, recurse into nested arrays
//! without a bound, accept any length that a client states, and lack inline commands. Requests use none of
//! RESP's other types.

use bytes::{Buf, Bytes, BytesMut};
use flotilla_kv::parse_integer;

/// The arguments of one request, starting with the command's name. Never empty.
pub type Request = Vec<Bytes>;

/// Limits on one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecoderLimits {
    /// Arguments, including the name. At least 2,049 for an `MSET` of 1,024 pairs.
    pub arguments_max: usize,
    /// Bytes of one argument. Somewhat above the largest value, so that a value just over its limit gets an
    /// error reply rather than a closed connection.
    pub bulk_bytes_max: usize,
    /// Bytes of all arguments together; bounds what a connection holds for an unfinished request.
    pub request_bytes_max: usize,
}

impl Default for DecoderLimits {
    fn default() -> Self {
        Self { arguments_max: 1 << 20, bulk_bytes_max: (64 << 20) + (64 << 10), request_bytes_max: 66 << 20 }
    }
}

/// Arguments of a request before its client has authenticated, as in Redis.
const UNAUTHENTICATED_ARGUMENTS_MAX: usize = 10;

/// Bytes of one argument before its client has authenticated, as in Redis.
const UNAUTHENTICATED_BULK_BYTES_MAX: usize = 16 << 10;

/// Bytes of an inline command, as in Redis.
const INLINE_BYTES_MAX: usize = 64 << 10;

/// Bytes of `*<count>\r\n` or `$<length>\r\n`.
const HEADER_BYTES_MAX: usize = 32;

/// Capacity reserved for arguments before they arrive.
const ARGUMENTS_RESERVED: usize = 16;

/// Bytes that an argument counts for in addition to its content.
const ARGUMENT_OVERHEAD_BYTES: usize = size_of::<Bytes>();

/// Who sends the requests of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sender {
    /// A client that has authenticated, or need not.
    Authenticated,
    /// A client that has yet to authenticate. It may say who it is, which takes little room: nobody else holds
    /// memory of the node.
    Unauthenticated,
}

/// The bytes are not a valid request, and none of it was executed; earlier requests were. The text is Redis's
/// own error reply, after which the connection must be closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// The number of arguments is not a number, or above the limit.
    #[error("ERR Protocol error: invalid multibulk length")]
    ArrayLength,
    /// The number of arguments is above the limit of clients that have not authenticated.
    #[error("ERR Protocol error: unauthenticated multibulk length")]
    UnauthenticatedArrayLength,
    /// An argument is not a bulk string.
    #[error("ERR Protocol error: expected '$', got '{}'", .0.escape_ascii())]
    ExpectedBulk(u8),
    /// The length of an argument is not a number, or above the limit.
    #[error("ERR Protocol error: invalid bulk length")]
    BulkLength,
    /// The length of an argument is above the limit of clients that have not authenticated.
    #[error("ERR Protocol error: unauthenticated bulk length")]
    UnauthenticatedBulkLength,
    /// The arguments together are above the limit.
    #[error("ERR Protocol error: request too large")]
    RequestTooLarge,
    /// A header with a count or length is too long.
    #[error("ERR Protocol error: too big count string")]
    HeaderTooLong,
    /// A count, length or bulk string is not followed by CRLF.
    #[error("ERR Protocol error: expected CRLF")]
    ExpectedLineEnd,
    /// An inline command is too long.
    #[error("ERR Protocol error: too big inline request")]
    InlineTooLong,
    /// A quote in an inline command is not closed.
    #[error("ERR Protocol error: unbalanced quotes in request")]
    UnbalancedQuotes,
    /// The request is HTTP, perhaps from a browser that was tricked into sending it to this port.
    #[error("ERR Protocol error: this port does not speak HTTP")]
    Http,
}

/// Decodes the requests of one connection.
#[derive(Debug)]
pub struct Decoder {
    limits: DecoderLimits,
    sender: Sender,
    /// The array whose arguments are being received.
    partial: Option<Partial>,
    /// Bytes of an incomplete line that were already searched for its end.
    searched: usize,
}

#[derive(Debug)]
struct Partial {
    arguments: Request,
    missing: usize,
    /// Length of the argument whose bytes come next, once its header is read.
    bulk_bytes: Option<usize>,
    request_bytes: usize,
    /// The same, of the arguments that have arrived.
    taken_bytes: usize,
}

impl Decoder {
    /// Creates a decoder for a new connection.
    #[must_use]
    pub fn new(limits: DecoderLimits) -> Self {
        Self { limits, sender: Sender::Unauthenticated, partial: None, searched: 0 }
    }

    /// Says who sends what is decoded next. Until then nobody has authenticated.
    pub fn set_sender(&mut self, sender: Sender) {
        self.sender = sender;
    }

    /// Whether part of a request has been decoded. More of it may still be in the input buffer.
    #[must_use]
    pub fn is_mid_request(&self) -> bool {
        self.partial.is_some()
    }

    /// Bytes of the arguments that were taken from the input for the request that is not complete.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.partial.as_ref().map_or(0, |partial| partial.taken_bytes)
    }

    /// How long the input must be for the argument that it begins with, if its length is known.
    #[must_use]
    pub fn awaited_bytes(&self) -> Option<usize> {
        self.partial.as_ref()?.bulk_bytes.map(|bytes| bytes + 2)
    }

    /// Takes the next request from the front of `input`; `None` when more bytes are needed. Call again until
    /// `None`.
    ///
    /// # Errors
    /// The input violates the protocol or a limit. Reply with the error's text and close the connection.
    pub fn decode(&mut self, input: &mut BytesMut) -> Result<Option<Request>, ProtocolError> {
        loop {
            if let Some(partial) = &mut self.partial {
                if !partial.fill(&self.limits, self.sender, input)? {
                    return Ok(None);
                }
                return Ok(self.partial.take().map(|partial| partial.arguments));
            }
            match input.first() {
                None => return Ok(None),
                Some(b'*') => {
                    let Some(count) = header(input, ProtocolError::ArrayLength)? else { return Ok(None) };
                    self.partial = self.start(count)?;
                }
                Some(_) => match self.inline(input)? {
                    Some(request) if request.is_empty() => {}
                    request => return Ok(request),
                },
            }
        }
    }

    /// Starts an array. An empty array is skipped, as in Redis.
    fn start(&self, count: i64) -> Result<Option<Partial>, ProtocolError> {
        let missing = usize::try_from(count).unwrap_or(0);
        if missing > self.limits.arguments_max {
            return Err(ProtocolError::ArrayLength);
        }
        if self.sender == Sender::Unauthenticated && missing > UNAUTHENTICATED_ARGUMENTS_MAX {
            return Err(ProtocolError::UnauthenticatedArrayLength);
        }
        let arguments = Vec::with_capacity(missing.min(ARGUMENTS_RESERVED));
        Ok((missing > 0).then_some(Partial { arguments, missing, bulk_bytes: None, request_bytes: 0, taken_bytes: 0 }))
    }

    fn inline(&mut self, input: &mut BytesMut) -> Result<Option<Request>, ProtocolError> {
        let window = &input[..input.len().min(INLINE_BYTES_MAX)];
        let Some(end) = window[self.searched..].iter().position(|byte| *byte == b'\n') else {
            if window.len() == INLINE_BYTES_MAX {
                return Err(ProtocolError::InlineTooLong);
            }
            self.searched = window.len();
            return Ok(None);
        };
        let end = self.searched + end;
        self.searched = 0;
        let line = input.split_to(end + 1);
        let line = line[..end].strip_suffix(b"\r").unwrap_or(&line[..end]);
        let request = split_line(line)?;
        match request.first() {
            Some(name) if name.eq_ignore_ascii_case(b"post") || name.eq_ignore_ascii_case(b"host:") => {
                Err(ProtocolError::Http)
            }
            _ => Ok(Some(request)),
        }
    }
}

impl Partial {
    /// Takes arguments from the input; true when the request is complete.
    fn fill(&mut self, limits: &DecoderLimits, sender: Sender, input: &mut BytesMut) -> Result<bool, ProtocolError> {
        while self.missing > 0 {
            let length = match self.bulk_bytes {
                Some(length) => length,
                None => match self.bulk_header(limits, sender, input)? {
                    Some(length) => *self.bulk_bytes.insert(length),
                    None => return Ok(false),
                },
            };
            if input.len() < length + 2 {
                return Ok(false);
            }
            if input[length..length + 2] != *b"\r\n" {
                return Err(ProtocolError::ExpectedLineEnd);
            }
            self.arguments.push(input.split_to(length).freeze());
            self.taken_bytes += length + ARGUMENT_OVERHEAD_BYTES;
            input.advance(2);
            self.bulk_bytes = None;
            self.missing -= 1;
        }
        Ok(true)
    }

    fn bulk_header(
        &mut self,
        limits: &DecoderLimits,
        sender: Sender,
        input: &mut BytesMut,
    ) -> Result<Option<usize>, ProtocolError> {
        match input.first() {
            None => return Ok(None),
            Some(b'$') => {}
            Some(other) => return Err(ProtocolError::ExpectedBulk(*other)),
        }
        let Some(length) = header(input, ProtocolError::BulkLength)? else { return Ok(None) };
        let length = usize::try_from(length).map_err(|_| ProtocolError::BulkLength)?;
        if length > limits.bulk_bytes_max {
            return Err(ProtocolError::BulkLength);
        }
        if sender == Sender::Unauthenticated && length > UNAUTHENTICATED_BULK_BYTES_MAX {
            return Err(ProtocolError::UnauthenticatedBulkLength);
        }
        self.request_bytes += length + ARGUMENT_OVERHEAD_BYTES;
        if self.request_bytes > limits.request_bytes_max {
            return Err(ProtocolError::RequestTooLarge);
        }
        Ok(Some(length))
    }
}

/// Takes a type byte, a number and CRLF from the front of the input; `None` while they are incomplete.
fn header(input: &mut BytesMut, invalid: ProtocolError) -> Result<Option<i64>, ProtocolError> {
    let window = &input[..input.len().min(HEADER_BYTES_MAX)];
    let Some(end) = window.iter().position(|byte| *byte == b'\r') else {
        return if window.len() == HEADER_BYTES_MAX { Err(ProtocolError::HeaderTooLong) } else { Ok(None) };
    };
    match input.get(end + 1) {
        None => return Ok(None),
        Some(b'\n') => {}
        Some(_) => return Err(ProtocolError::ExpectedLineEnd),
    }
    let number = parse_integer(&input[1..end]).ok_or(invalid)?;
    input.advance(end + 2);
    Ok(Some(number))
}

/// Splits an inline command as a shell would: blanks between arguments, `"…"` with `\n`, `\r`, `\t`, `\b`,
/// `\a`, `\xHH` and `\<any>`, `'…'` with `\'` only. A closing quote must be followed by a blank or the end.
fn split_line(line: &[u8]) -> Result<Request, ProtocolError> {
    let is_blank = |byte: &u8| byte.is_ascii_whitespace() || *byte == b'\x0b' || *byte == 0;
    let mut rest = line.iter().copied().peekable();
    let mut arguments = Vec::new();
    loop {
        while rest.next_if(is_blank).is_some() {}
        if rest.peek().is_none() {
            return Ok(arguments);
        }
        let mut argument = BytesMut::new();
        while let Some(byte) = rest.next_if(|byte| !is_blank(byte)) {
            match byte {
                b'"' => quoted(&mut rest, &mut argument)?,
                b'\'' => single_quoted(&mut rest, &mut argument)?,
                byte => {
                    argument.extend_from_slice(&[byte]);
                    continue;
                }
            }
            if !rest.peek().is_none_or(is_blank) {
                return Err(ProtocolError::UnbalancedQuotes);
            }
        }
        arguments.push(argument.freeze());
    }
}

fn quoted(rest: &mut (impl Iterator<Item = u8> + Clone), argument: &mut BytesMut) -> Result<(), ProtocolError> {
    loop {
        let byte = match rest.next().ok_or(ProtocolError::UnbalancedQuotes)? {
            b'"' => return Ok(()),
            b'\\' => match rest.next().ok_or(ProtocolError::UnbalancedQuotes)? {
                b'n' => b'\n',
                b'r' => b'\r',
                b't' => b'\t',
                b'b' => 8,
                b'a' => 7,
                b'x' => match hexadecimal(rest.clone()) {
                    Some(byte) => {
                        rest.nth(1);
                        byte
                    }
                    None => b'x',
                },
                other => other,
            },
            byte => byte,
        };
        argument.extend_from_slice(&[byte]);
    }
}

fn hexadecimal(mut digits: impl Iterator<Item = u8>) -> Option<u8> {
    let mut digit = || char::from(digits.next()?).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    Some(digit()? << 4 | digit()?)
}

fn single_quoted(
    rest: &mut std::iter::Peekable<impl Iterator<Item = u8>>,
    argument: &mut BytesMut,
) -> Result<(), ProtocolError> {
    loop {
        let byte = match rest.next().ok_or(ProtocolError::UnbalancedQuotes)? {
            b'\'' => return Ok(()),
            b'\\' if rest.next_if_eq(&b'\'').is_some() => b'\'',
            byte => byte,
        };
        argument.extend_from_slice(&[byte]);
    }
}

#[cfg(test)]
mod tests;
