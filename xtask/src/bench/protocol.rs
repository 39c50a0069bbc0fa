//! What the loop needs of a protocol: requests into one buffer, answers out of another, no sockets.

use std::time::Instant;

use anyhow::Result;

use super::{grpc::Grpc, keys::KEY_BYTES, resp::Resp, web::Web, workload::Operation};

/// One request.
#[derive(Debug)]
pub(super) struct Request<'a> {
    pub(super) key: [u8; KEY_BYTES],
    pub(super) value: &'a [u8],
    pub(super) ticket: Ticket,
}

/// What is remembered of a request until its answer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ticket {
    pub(super) operation: Operation,
    pub(super) sent: Instant,
}

/// Whether a request could go out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Admission {
    Sent,
    /// The server's flow control allows none now; a later answer may.
    Held,
}

/// Told of each answer; with the reason when it is a refusal.
pub(super) type OnAnswer<'a> = &'a mut dyn FnMut(Ticket, Option<String>);

/// One connection's side of a protocol.
pub(super) trait Protocol {
    /// What goes out before the first request.
    fn begin(&mut self, _out: &mut Vec<u8>) {}

    /// Appends a request.
    fn request(&mut self, request: &Request<'_>, out: &mut Vec<u8>) -> Admission;

    /// Takes all whole answers from the front of `input`, and returns how many bytes they were. An error ends the run.
    fn answers(&mut self, input: &[u8], out: &mut Vec<u8>, on_answer: OnAnswer<'_>) -> Result<usize>;
}

/// Which one a server speaks.
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
            Self::Http => Box::new(Web::default()),
            Self::Grpc => Box::new(Grpc::new(value_bytes)),
        }
    }

    /// Whether many requests can be in flight on one connection.
    pub(super) const fn pipelines(self) -> bool {
        !matches!(self, Self::Http)
    }
}

/// Appends a number in decimal, without an allocation.
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
