//! The least of an HTTP/1.1 client: one request at a time on a connection that stays open.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};

use super::load::{Client, Operation};

/// Longest wait for an answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// Longest body, in bytes. Values are ours, so this is only a guard.
const BODY_BYTES_MAX: usize = 16 << 20;
/// Longest line of a head, in bytes, and most lines.
const LINE_BYTES_MAX: u64 = 16 << 10;
const LINES_MAX: usize = 100;

/// One connection.
pub(super) struct HttpClient {
    reader: BufReader<TcpStream>,
    addr: SocketAddr,
    request: Vec<u8>,
    body: Vec<u8>,
}

impl HttpClient {
    pub(super) fn connect(addr: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(addr).with_context(|| format!("cannot connect to {addr}"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWER_WITHIN))?;
        Ok(Self { reader: BufReader::new(stream), addr, request: Vec::new(), body: Vec::new() })
    }

    /// Reads one answer; its status and body when it is a refusal.
    fn read_answer(&mut self) -> Result<Option<String>> {
        let status: u16 = self.line()?.split(' ').nth(1).context("no status in the answer")?.parse()?;
        let mut length = None;
        for _ in 0..LINES_MAX {
            let line = self.line()?;
            let Some((name, value)) = line.split_once(':') else { break };
            if name.eq_ignore_ascii_case("content-length") {
                length = Some(value.trim().parse::<usize>()?);
            }
        }
        let length = length.context("an answer without content-length")?;
        ensure!(length <= BODY_BYTES_MAX, "an answer of {length} bytes");
        self.body.resize(length, 0);
        self.reader.read_exact(&mut self.body)?;
        let is_refusal = !(200..300).contains(&status) && status != 404;
        Ok(is_refusal.then(|| format!("{status} {}", String::from_utf8_lossy(&self.body))))
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        if self.reader.by_ref().take(LINE_BYTES_MAX).read_line(&mut line)? == 0 {
            bail!("the server closed the connection");
        }
        Ok(line.trim_end().to_owned())
    }
}

impl Client for HttpClient {
    fn batch(
        &mut self,
        operation: Operation,
        keys: &[u64],
        value: &[u8],
        on_answer: &mut dyn FnMut(Option<String>),
    ) -> Result<()> {
        for key in keys {
            let (method, body) = match operation {
                Operation::Set => ("PUT", value),
                Operation::Get => ("GET", &[][..]),
                Operation::Increment => bail!("HTTP has no counters"),
            };
            self.request.clear();
            let (path, length) = (operation.key(*key).replace(':', "%3A"), body.len());
            write!(self.request, "{method} /v1/kv/default/{path} HTTP/1.1\r\nhost: {}\r\n", self.addr)?;
            write!(self.request, "content-length: {length}\r\n\r\n")?;
            self.request.extend_from_slice(body);
            self.reader.get_mut().write_all(&self.request)?;
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
    fn refusals_are_told_from_answers_and_from_absent_keys() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let addr = listener.local_addr().expect("a bound port");
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a connection");
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi").expect("an open connection");
            stream.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n").expect("an open connection");
            stream.write_all(b"HTTP/1.1 503 Busy\r\ncontent-length: 4\r\n\r\nbusy").expect("an open connection");
            std::io::copy(&mut stream, &mut std::io::sink()).expect("an open connection");
        });
        let mut client = HttpClient::connect(addr).expect("a server");
        let mut refusals = Vec::new();
        client.batch(Operation::Get, &[1, 2, 3], b"", &mut |refusal| refusals.push(refusal)).expect("answers");
        assert_eq!(refusals, [None, None, Some("503 busy".to_owned())]);
        drop(client);
        server.join().expect("no panic");
    }
}
