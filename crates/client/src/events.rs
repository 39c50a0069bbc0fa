//! Server-sent events: a bounded parser over an endless response.

use bytes::{Buf as _, BytesMut};
use flotilla_api::Event;
use reqwest::Response;

use crate::{
    Client, ClientError,
    call::{Kind, problem},
};

/// Longest line, and longest data of one event. An event usually has a few hundred bytes.
const LINE_BYTES_MAX: usize = 64 * 1024;

/// A stream of one node's events as they happen.
#[derive(Debug)]
pub struct EventStream {
    endpoint: String,
    response: Response,
    parser: Parser,
}

impl EventStream {
    pub(crate) async fn open(client: &Client, path: &str, after: Option<u64>) -> Result<Self, ClientError> {
        let mut last = ClientError::NoEndpoint;
        for (_, endpoint) in client.endpoints() {
            let mut request = client.http.get(format!("{endpoint}{path}"));
            if let Some(id) = after {
                request = request.header("last-event-id", id);
            }
            match request.send().await {
                Ok(response) if response.status().is_success() => {
                    return Ok(Self { endpoint: endpoint.clone(), response, parser: Parser::default() });
                }
                Ok(response) => {
                    let status = response.status();
                    let body = response.bytes().await.unwrap_or_default();
                    return Err(ClientError::Refused(Box::new(problem(Kind::Read, status, &body))));
                }
                Err(source) => last = ClientError::Unreachable { endpoint: endpoint.clone(), source },
            }
        }
        Err(last)
    }

    /// The next event; `None` when the node ended the stream because it stops or because events were lost.
    ///
    /// # Errors
    /// The connection broke, or the data is not an event.
    pub async fn next(&mut self) -> Result<Option<Event>, ClientError> {
        loop {
            let protocol = || ClientError::Protocol { endpoint: self.endpoint.clone() };
            match self.parser.next().map_err(|TooLong| protocol())? {
                Some(Frame { kind, data }) if kind == "event" => {
                    return serde_json::from_str(&data).map(Some).map_err(|_| protocol());
                }
                Some(Frame { kind, .. }) if kind == "gap" => return Ok(None),
                Some(_) => {}
                None => match self.response.chunk().await {
                    Ok(Some(chunk)) => self.parser.buffer.extend_from_slice(&chunk),
                    Ok(None) => return Ok(None),
                    Err(source) => return Err(ClientError::Unreachable { endpoint: self.endpoint.clone(), source }),
                },
            }
        }
    }
}

/// One server-sent event.
#[derive(Debug, PartialEq, Eq)]
struct Frame {
    kind: String,
    data: String,
}

/// A line exceeds [`LINE_BYTES_MAX`].
#[derive(Debug, PartialEq, Eq)]
struct TooLong;

#[derive(Debug, Default)]
struct Parser {
    buffer: BytesMut,
    kind: String,
    data: String,
}

impl Parser {
    /// The next complete event in the buffer.
    fn next(&mut self) -> Result<Option<Frame>, TooLong> {
        while let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
            let line = self.buffer.split_to(end);
            self.buffer.advance(1);
            let line = String::from_utf8_lossy(&line);
            let line = line.trim_end_matches('\r');
            if line.is_empty() {
                let (kind, data) = (std::mem::take(&mut self.kind), std::mem::take(&mut self.data));
                if !data.is_empty() {
                    return Ok(Some(Frame { kind, data }));
                }
                continue;
            }
            let (field, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "event" => value.clone_into(&mut self.kind),
                "data" if self.data.len() + value.len() <= LINE_BYTES_MAX => self.data.push_str(value),
                "data" => return Err(TooLong),
                _ => {}
            }
        }
        if self.buffer.len() > LINE_BYTES_MAX { Err(TooLong) } else { Ok(None) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_split_at_any_byte_are_parsed() {
        let text = b": hello\n\nid: 1\nevent: event\ndata: {\"id\":1}\n\nevent: gap\r\ndata: x\r\n\r\n";
        let mut parser = Parser::default();
        let mut frames = Vec::new();
        for byte in text {
            parser.buffer.extend_from_slice(&[*byte]);
            frames.extend(parser.next().expect("short lines"));
        }
        let frame = |kind: &str, data: &str| Frame { kind: kind.to_owned(), data: data.to_owned() };
        assert_eq!(frames, [frame("event", "{\"id\":1}"), frame("gap", "x")]);
    }

    #[test]
    fn an_overlong_line_is_refused() {
        let mut parser = Parser::default();
        parser.buffer.extend_from_slice(&vec![b'x'; LINE_BYTES_MAX + 1]);
        assert_eq!(parser.next(), Err(TooLong));
    }
}
