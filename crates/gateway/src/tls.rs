//! TLS on client ports.
//!
//! The configuration may change while the node runs: each new connection uses the latest one, so that a
//! certificate is renewed without a restart.

use std::{
    future::poll_fn,
    io::{self, Read as _, Write as _},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use bytes::BytesMut;
#[cfg(target_os = "linux")]
use socket2::SockRef;
use tokio::{
    io::{Interest, Ready},
    net::TcpStream,
    sync::watch,
    time::timeout,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{ServerConfig, ServerConnection},
    server::TlsStream,
};

use crate::Linger;

/// How long a handshake may take, the wait for a first certificate included.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Clear bytes that a connection encrypts ahead of its socket.
const WRITE_BUFFER_BYTES_MAX: usize = 64 << 10;
/// Clear bytes that one read moves.
const READ_BYTES: usize = 16 << 10;

/// The TLS configuration of client ports. `None` until the node has a certificate.
#[derive(Debug, Clone)]
pub struct Tls(watch::Receiver<Option<Arc<ServerConfig>>>);

impl Tls {
    /// Uses the latest configuration for each new connection.
    #[must_use]
    pub fn new(config: watch::Receiver<Option<Arc<ServerConfig>>>) -> Self {
        Self(config)
    }

    /// Performs the server's side of a handshake, which may take as long as `within` at most.
    ///
    /// # Errors
    /// The client does not speak TLS, refuses the certificate, or is too slow.
    pub async fn accept(mut self, stream: TcpStream, within: Duration) -> io::Result<TlsStream<TcpStream>> {
        let handshake = async {
            let config = self.0.wait_for(Option::is_some).await.map_err(io::Error::other)?.clone();
            let config = config.ok_or(io::ErrorKind::NotConnected)?;
            TlsAcceptor::from(config).accept(stream).await
        };
        let accepted = timeout(HANDSHAKE_TIMEOUT.min(within), handshake).await;
        let accepted = accepted.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        if accepted.is_err() {
            metrics::counter!("flotilla_tls_handshakes_failed_total").increment(1);
        }
        accepted
    }
}

/// A client's connection, with or without TLS, for a task that reads and writes only when it wants to.
#[derive(Debug)]
pub struct ClientStream {
    tcp: TcpStream,
    tls: Option<Box<ServerConnection>>,
}

impl From<TcpStream> for ClientStream {
    fn from(tcp: TcpStream) -> Self {
        Self { tcp, tls: None }
    }
}

impl From<TlsStream<TcpStream>> for ClientStream {
    fn from(stream: TlsStream<TcpStream>) -> Self {
        let (tcp, mut tls) = stream.into_inner();
        tls.set_buffer_limit(Some(WRITE_BUFFER_BYTES_MAX));
        Self { tcp, tls: Some(Box::new(tls)) }
    }
}

impl ClientStream {
    /// The client's address.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.tcp.peer_addr()
    }

    /// The address that the client has reached.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.tcp.local_addr()
    }

    /// Whether encrypted bytes wait for the socket.
    #[must_use]
    pub fn wants_write(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.wants_write())
    }

    /// Waits until a read or a write may succeed. Sends encrypted bytes that wait.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn ready(&mut self, interest: Interest) -> io::Result<Ready> {
        let Some(tls) = &mut self.tls else { return self.tcp.ready(interest).await };
        let state = tls.process_new_packets().map_err(io::Error::other)?;
        if interest.is_readable() && state.plaintext_bytes_to_read() > 0 {
            return Ok(Ready::READABLE);
        }
        let interest = if tls.wants_write() { interest | Interest::WRITABLE } else { interest };
        let ready = self.tcp.ready(interest).await?;
        unless_blocked(flush(tls, &self.tcp))?;
        Ok(ready)
    }

    /// Holds back what is written from now on until the end of the stream, which then arrives together with
    /// it. For the last bytes only, because what is held back waits for up to 200 ms. Does nothing where the
    /// system cannot.
    pub fn hold_back(&self) {
        #[cfg(target_os = "linux")]
        if let Err(error) = SockRef::from(&self.tcp).set_tcp_cork(true) {
            tracing::debug!(%error, "cannot set TCP_CORK");
        }
    }

    /// Ends the answers, and reads what the client still sends, for a while: closing at once would reset the
    /// connection, and the client might never see the last answer. What is read is not decrypted.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn linger(&mut self) -> io::Result<()> {
        if let Some(tls) = &mut self.tls {
            tls.send_close_notify();
            unless_blocked(flush(tls, &self.tcp))?;
        }
        let mut linger = Linger::default();
        poll_fn(|context| linger.poll(&mut self.tcp, context)).await;
        Ok(())
    }

    /// Bytes that wait inside of TLS: encrypted ones for the socket, clear ones to be read.
    pub fn held_bytes(&mut self) -> usize {
        let state = self.tls.as_mut().and_then(|tls| tls.process_new_packets().ok());
        state.map_or(0, |state| state.tls_bytes_to_write() + state.plaintext_bytes_to_read())
    }

    /// Writes what the socket takes.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`], or the connection broke.
    pub fn try_write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else { return self.tcp.try_write(bytes) };
        flush(tls, &self.tcp)?;
        let written = tls.writer().write(bytes)?;
        unless_blocked(flush(tls, &self.tcp))?;
        if written == 0 { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(written) }
    }

    /// Reads what has arrived; 0 at the end of the stream.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`], or the connection broke.
    pub fn try_read_buf(&mut self, buffer: &mut BytesMut) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else { return self.tcp.try_read_buf(buffer) };
        let mut clear = [0; READ_BYTES];
        loop {
            match tls.reader().read(&mut clear) {
                Ok(read) => {
                    buffer.extend_from_slice(&clear[..read]);
                    return Ok(read);
                }
                // Many clients close without saying so.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            if tls.read_tls(&mut Socket(&self.tcp))? == 0 {
                return Ok(0);
            }
            let processed = tls.process_new_packets();
            // Alerts and tickets.
            unless_blocked(flush(tls, &self.tcp))?;
            processed.map_err(io::Error::other)?;
        }
    }
}

impl Drop for ClientStream {
    /// Tells the client that nothing was cut off.
    fn drop(&mut self) {
        if let Some(tls) = &mut self.tls {
            tls.send_close_notify();
            let _ = flush(tls, &self.tcp);
        }
    }
}

fn flush(tls: &mut ServerConnection, tcp: &TcpStream) -> io::Result<()> {
    while tls.wants_write() {
        tls.write_tls(&mut Socket(tcp))?;
    }
    Ok(())
}

fn unless_blocked(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
        other => other,
    }
}

/// Blocking-style reads and writes that fail with [`io::ErrorKind::WouldBlock`].
struct Socket<'a>(&'a TcpStream);

impl io::Read for Socket<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.0.try_read(bytes)
    }
}

impl io::Write for Socket<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
