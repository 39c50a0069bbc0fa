//! A minimal etcd client: unary gRPC calls, many in flight on one HTTP/2 connection, as etcd's own clients
//! send them.
//!
//! It implements only what the load needs, so that the client is as cheap for etcd as for the others: HTTP/2
//! frames (RFC 9113), headers that are the same in every call and therefore one byte each after the first
//! (RFC 7541), and two protobuf messages of three fields. It disables the server's dynamic header table, so
//! that decoding responses needs no state.

use std::collections::HashMap;

use anyhow::{Context, Result, bail, ensure};

use super::{
    hpack::{Headers, Method, grpc_status},
    protocol::{Admission, OnAnswer, Protocol, Request, Ticket},
    workload::Operation,
};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const FRAME_HEAD_BYTES: usize = 9;
/// Longest frame that a server may send by default (RFC 9113).
const FRAME_BYTES_MAX: usize = 16 << 10;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GO_AWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

const ACK: u8 = 0x1;
const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED_OR_PRIORITY: u8 = 0x28;

const SETTING_HEADER_TABLE_BYTES: u16 = 1;
const SETTING_STREAMS_MAX: u16 = 3;
const SETTING_INITIAL_WINDOW: u16 = 4;

const WINDOW_INITIAL: i64 = 65_535;
const WINDOW_MAX: u32 = (1 << 31) - 1;
/// Received bytes after which a window update is sent.
const WINDOW_UPDATE_BYTES: u32 = 1 << 20;

/// One connection.
#[derive(Debug)]
pub(super) struct Grpc {
    headers: Headers,
    streams: HashMap<u32, Stream>,
    next_stream: u32,
    streams_max: usize,
    /// Bytes that the server's flow control allows us to send.
    window: i64,
    /// Bytes received since the last window update.
    unacknowledged: u32,
    value_bytes: usize,
}

#[derive(Debug)]
struct Stream {
    ticket: Ticket,
    /// Bytes of the response so far.
    bytes: usize,
}

struct Frame<'a> {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: &'a [u8],
}

impl Grpc {
    /// A client that treats reads of less than `value_bytes` as refusals, because every key was filled in.
    pub(super) fn new(value_bytes: usize) -> Self {
        Self {
            headers: Headers::default(),
            streams: HashMap::new(),
            next_stream: 1,
            streams_max: usize::MAX,
            window: WINDOW_INITIAL,
            unacknowledged: 0,
            value_bytes,
        }
    }

    fn frame(&mut self, frame: &Frame<'_>, out: &mut Vec<u8>, on_answer: OnAnswer<'_>) -> Result<()> {
        match frame.kind {
            DATA => {
                if let Some(stream) = self.streams.get_mut(&frame.stream) {
                    stream.bytes += frame.payload.len();
                }
                self.unacknowledged += frame.payload.len() as u32;
                if self.unacknowledged >= WINDOW_UPDATE_BYTES {
                    put_frame(out, WINDOW_UPDATE, 0, 0, &self.unacknowledged.to_be_bytes());
                    self.unacknowledged = 0;
                }
                // The status follows the body in trailers, so data never ends a stream.
                ensure!(frame.flags & END_STREAM == 0, "a response without a status");
            }
            HEADERS => {
                ensure!(
                    frame.flags & END_HEADERS != 0 && frame.flags & PADDED_OR_PRIORITY == 0,
                    "unsupported header flags"
                );
                if frame.flags & END_STREAM != 0 {
                    let refusal = grpc_status(frame.payload)?;
                    self.end(frame.stream, refusal, on_answer)?;
                }
            }
            // A reset after the response is ignored: the server may not have seen the end of the request.
            RESET if self.streams.contains_key(&frame.stream) => {
                self.end(frame.stream, Some("the stream was reset".to_owned()), on_answer)?
            }
            SETTINGS if frame.flags & ACK == 0 => {
                self.settings(frame.payload)?;
                put_frame(out, SETTINGS, ACK, 0, &[]);
            }
            PING if frame.flags & ACK == 0 => put_frame(out, PING, ACK, 0, frame.payload),
            WINDOW_UPDATE if frame.stream == 0 => {
                let more: [u8; 4] = frame.payload.try_into().context("a malformed window update")?;
                self.window += i64::from(u32::from_be_bytes(more) & WINDOW_MAX);
            }
            GO_AWAY => bail!("the server closes the connection: {}", String::from_utf8_lossy(frame.payload)),
            CONTINUATION => bail!("headers longer than a frame"),
            _ => {}
        }
        Ok(())
    }

    fn end(&mut self, stream: u32, refusal: Option<String>, on_answer: OnAnswer<'_>) -> Result<()> {
        let Stream { ticket, bytes } = self.streams.remove(&stream).context("a response without a request")?;
        let is_missing = ticket.operation != Operation::Set && bytes < self.value_bytes;
        on_answer(ticket, refusal.or_else(|| is_missing.then(|| "no such key".to_owned())));
        Ok(())
    }

    fn settings(&mut self, payload: &[u8]) -> Result<()> {
        for setting in payload.chunks_exact(6) {
            let id = u16::from_be_bytes([setting[0], setting[1]]);
            let value = u32::from_be_bytes([setting[2], setting[3], setting[4], setting[5]]);
            match id {
                SETTING_STREAMS_MAX => self.streams_max = value as usize,
                SETTING_HEADER_TABLE_BYTES => ensure!(value >= 4_096, "a header table of {value} bytes"),
                SETTING_INITIAL_WINDOW => ensure!(value >= 1 << 15, "a window of {value} bytes"),
                _ => {}
            }
        }
        Ok(())
    }
}

impl Protocol for Grpc {
    fn begin(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(PREFACE);
        let mut settings = Vec::new();
        for (id, value) in [(SETTING_HEADER_TABLE_BYTES, 0), (SETTING_INITIAL_WINDOW, WINDOW_MAX)] {
            settings.extend_from_slice(&id.to_be_bytes());
            settings.extend_from_slice(&value.to_be_bytes());
        }
        put_frame(out, SETTINGS, 0, 0, &settings);
        put_frame(out, WINDOW_UPDATE, 0, 0, &(WINDOW_MAX - WINDOW_INITIAL as u32).to_be_bytes());
    }

    fn request(&mut self, request: &Request<'_>, out: &mut Vec<u8>) -> Admission {
        let bytes = message_bytes(request);
        if self.streams.len() >= self.streams_max || self.window < bytes as i64 {
            return Admission::Blocked;
        }
        self.window -= bytes as i64;
        let (stream, ticket) = (self.next_stream, request.ticket);
        self.next_stream += 2;
        self.streams.insert(stream, Stream { ticket, bytes: 0 });
        let method = if ticket.operation == Operation::Set { Method::Put } else { Method::Range };
        put_framed(out, HEADERS, END_HEADERS, stream, |out| self.headers.put(method, out));
        put_framed(out, DATA, END_STREAM, stream, |out| put_message(request, out));
        Admission::Sent
    }

    fn answers(&mut self, input: &[u8], out: &mut Vec<u8>, on_answer: OnAnswer<'_>) -> Result<usize> {
        let mut used = 0;
        while let Some((head, rest)) = input[used..].split_at_checked(FRAME_HEAD_BYTES) {
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            ensure!(length <= FRAME_BYTES_MAX, "a frame of {length} bytes");
            let Some(payload) = rest.get(..length) else { break };
            let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]) & WINDOW_MAX;
            self.frame(&Frame { kind: head[3], flags: head[4], stream, payload }, out, on_answer)?;
            used += FRAME_HEAD_BYTES + length;
        }
        Ok(used)
    }
}

fn put_frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    put_framed(out, kind, flags, stream, |out| out.extend_from_slice(payload));
}

fn put_framed(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: impl FnOnce(&mut Vec<u8>)) {
    let head = out.len();
    out.extend_from_slice(&[0, 0, 0, kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    payload(out);
    let length = (out.len() - head - FRAME_HEAD_BYTES) as u32;
    out[head..head + 3].copy_from_slice(&length.to_be_bytes()[1..]);
}

/// `PutRequest { key = 1, value = 2 }` or `RangeRequest { key = 1, serializable = 7 }`, prefixed by the
/// compression flag and the length.
fn put_message(request: &Request<'_>, out: &mut Vec<u8>) {
    out.push(0);
    out.extend_from_slice(&(message_bytes(request) as u32 - 5).to_be_bytes());
    put_field(out, 0x0a, &request.key);
    match request.ticket.operation {
        Operation::Set => put_field(out, 0x12, request.value),
        Operation::Get => {}
        Operation::GetLocal => out.extend_from_slice(&[0x38, 1]),
    }
}

fn message_bytes(request: &Request<'_>) -> usize {
    let field = |bytes: usize| 1 + varint_bytes(bytes) + bytes;
    let rest = match request.ticket.operation {
        Operation::Set => field(request.value.len()),
        Operation::Get => 0,
        Operation::GetLocal => 2,
    };
    5 + field(request.key.len()) + rest
}

fn put_field(out: &mut Vec<u8>, tag: u8, bytes: &[u8]) {
    out.push(tag);
    let mut rest = bytes.len();
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
    out.extend_from_slice(bytes);
}

fn varint_bytes(number: usize) -> usize {
    (number.max(1).ilog2() / 7 + 1) as usize
}

#[cfg(test)]
#[path = "grpc_tests.rs"]
mod tests;
