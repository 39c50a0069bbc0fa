//! The client side of a protocol as the load loop needs it: encodes requests into one buffer, decodes
//! responses from another, no sockets.

use std::time::Instant;

use anyhow::Result;

use super::{grpc::Grpc, http::Http, keys::KEY_BYTES, resp::Resp, workload::Operation};

/// One request.
#[derive(Debug)]
pub(super) struct Request<'a> {
    pub(super) key: [u8; KEY_BYTES],
    pub(super) value: &'a [u8],
    pub(super) ticket: Ticket,
}

/// State kept for a request until its response.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ticket {
    pub(super) operation: Operation,
    pub(super) sent: Instant,
}

/// Whether a request was accepted for sending.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Admission {
    Sent,
    /// The server's flow control forbids it now; a later response may allow it.
    Blocked,
}

/// Called for each response, with the reason if it is a refusal.
pub(super) type OnAnswer<'a> = &'a mut dyn FnMut(Ticket, Option<String>);

/// The client's state of one connection.
pub(super) trait Protocol {
    /// Appends what must be sent before the first request.
    fn begin(&mut self, _out: &mut Vec<u8>) {}

    /// Encodes a request, unless it is blocked.
    fn request(&mut self, request: &Request<'_>, out: &mut Vec<u8>) -> Admission;

    /// Decodes all complete responses at the start of `input`, and returns their length in bytes. An error
    /// ends the run.
    fn answers(&mut self, input: &[u8], out: &mut Vec<u8>, on_answer: OnAnswer<'_>) -> Result<usize>;
}

/// The protocol that a server speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wire {
    Redis,
    Http,
    Grpc,
}

impl Wire {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Redis => "redis",
            Self::Http => "http",
            Self::Grpc => "grpc",
        }
    }

    pub(super) fn open(self, value_bytes: usize) -> Box<dyn Protocol> {
        match self {
            Self::Redis => Box::new(Resp::default()),
            Self::Http => Box::new(Http::default()),
            Self::Grpc => Box::new(Grpc::new(value_bytes)),
        }
    }

    /// Whether many requests can be in flight on one connection.
    pub(super) const fn pipelines(self) -> bool {
        !matches!(self, Self::Http)
    }
}

/// Appends a number in decimal, without allocating.
pub(super) fn put_decimal(out: &mut Vec<u8>, number: usize) {
    let mut digits = [0; 20];
    let (mut first, mut rest) = (digits.len(), number);
    loop {
        first -= 1;
        digits[first] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[first..]);
}
