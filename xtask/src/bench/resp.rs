//! The least of a Redis client: pipelined requests, RESP2 answers.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};

use super::load::{Client, Operation};

/// Longest wait for an answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// Longest answer, in bytes. Values are ours, so this is only a guard.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// One connection.
pub(super) struct RespClient {
    reader: BufReader<TcpStream>,
    request: Vec<u8>,
    answer: Vec<u8>,
}

impl RespClient {
    pub(super) fn connect(addr: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(addr).with_context(|| format!("cannot connect to {addr}"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWER_WITHIN))?;
        Ok(Self { reader: BufReader::with_capacity(64 << 10, stream), request: Vec::new(), answer: Vec::new() })
    }

    fn add(&mut self, parts: &[&[u8]]) -> Result<()> {
        write!(self.request, "*{}\r\n", parts.len())?;
        for part in parts {
            write!(self.request, "${}\r\n", part.len())?;
            self.request.extend_from_slice(part);
            self.request.extend_from_slice(b"\r\n");
        }
        Ok(())
    }

    /// Reads one answer; the message when it is an error.
    fn read_answer(&mut self) -> Result<Option<String>> {
        self.answer.clear();
        self.reader.read_until(b'\n', &mut self.answer)?;
        let line = std::str::from_utf8(&self.answer)?.trim_end();
        match (line.as_bytes().first(), line.get(1..)) {
            (Some(b'+' | b':'), Some(_)) => Ok(None),
            (Some(b'-'), Some(message)) => Ok(Some(message.to_owned())),
            (Some(b'$'), Some("-1")) => Ok(None),
            (Some(b'$'), Some(length)) => {
                let length: usize = length.parse()?;
                ensure!(length <= ANSWER_BYTES_MAX, "an answer of {length} bytes");
                self.answer.resize(length + 2, 0);
                self.reader.read_exact(&mut self.answer)?;
                Ok(None)
            }
            (None, _) => bail!("the server closed the connection"),
            _ => bail!("unexpected answer {line:?}"),
        }
    }
}

impl Client for RespClient {
    fn batch(
        &mut self,
        operation: Operation,
        keys: &[u64],
        value: &[u8],
        on_answer: &mut dyn FnMut(Option<String>),
    ) -> Result<()> {
        self.request.clear();
        for key in keys {
            let (name, key) = (operation.name().as_bytes(), operation.key(*key));
            match operation {
                Operation::Set => self.add(&[name, key.as_bytes(), value])?,
                Operation::Get | Operation::Increment => self.add(&[name, key.as_bytes()])?,
            }
        }
        self.reader.get_mut().write_all(&self.request)?;
        for _ in keys {
            let refusal = self.read_answer()?;
            on_answer(refusal);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, thread};

    use super::*;

    #[test]
    fn pipelined_answers_of_every_kind_are_told_apart() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let addr = listener.local_addr().expect("a bound port");
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a connection");
            stream.write_all(b"+OK\r\n$3\r\nabc\r\n$-1\r\n-ERR no\r\n:7\r\n").expect("an open connection");
            // All of it: closing with unread bytes would reset the connection.
            let mut request = [0; 5 * 34];
            stream.read_exact(&mut request).expect("a request");
            request
        });
        let mut client = RespClient::connect(addr).expect("a server");
        let mut refusals = Vec::new();
        client.batch(Operation::Get, &[1, 2, 3, 4, 5], b"", &mut |refusal| refusals.push(refusal)).expect("answers");
        assert_eq!(refusals, [None, None, None, Some("ERR no".to_owned()), None]);
        assert!(server.join().expect("no panic").starts_with(b"*2\r\n$3\r\nGET\r\n$14\r\nbench:00000001\r\n*2\r\n"));
        assert!(client.read_answer().is_err(), "a closed connection is an error");
    }
}
