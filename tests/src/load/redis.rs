//! A minimal Redis client for the two commands that the load needs.

use std::{io, net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
    time::timeout,
};

/// Timeout of a reply: longer than the gateway's own deadline.
const ANSWER_WITHIN: Duration = Duration::from_secs(8);

/// A reply of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reply {
    Number(i64),
    Value(Option<String>),
    Error(String),
}

/// A connection that is opened on demand and closed after the first error.
#[derive(Debug)]
pub(super) struct Redis {
    at: SocketAddr,
    stream: Option<BufReader<TcpStream>>,
}

impl Redis {
    pub(super) fn new(at: SocketAddr) -> Self {
        Self { at, stream: None }
    }

    /// Sends a command and waits for the reply. `Ok(None)`: it was not sent. An error: the outcome is
    /// unknown.
    pub(super) async fn call(&mut self, words: &[&str]) -> io::Result<Option<Reply>> {
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => match timeout(ANSWER_WITHIN, TcpStream::connect(self.at)).await {
                Ok(Ok(stream)) => BufReader::new(stream),
                Ok(Err(_)) | Err(_) => return Ok(None),
            },
        };
        let reply = timeout(ANSWER_WITHIN, exchange(&mut stream, words)).await??;
        self.stream = Some(stream);
        Ok(Some(reply))
    }
}

async fn exchange(stream: &mut BufReader<TcpStream>, words: &[&str]) -> io::Result<Reply> {
    let mut command = format!("*{}\r\n", words.len());
    for word in words {
        command.push_str(&format!("${}\r\n{word}\r\n", word.len()));
    }
    stream.get_mut().write_all(command.as_bytes()).await?;
    let mut line = String::new();
    if stream.read_line(&mut line).await? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let line = line.trim_end();
    let rest = line.get(1..).unwrap_or_default();
    let number = || rest.parse::<i64>().map_err(io::Error::other);
    match line.as_bytes().first() {
        Some(b':') => Ok(Reply::Number(number()?)),
        Some(b'-') => Ok(Reply::Error(rest.to_owned())),
        Some(b'$') if rest == "-1" => Ok(Reply::Value(None)),
        Some(b'$') => {
            let mut value = vec![0; usize::try_from(number()?).map_err(io::Error::other)? + 2];
            stream.read_exact(&mut value).await?;
            value.truncate(value.len() - 2);
            Ok(Reply::Value(Some(String::from_utf8(value).map_err(io::Error::other)?)))
        }
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}
