//! The byte stream of a client connection under its deadlines: first byte, head, and the pace at which answers
//! are read. It also counts what has arrived of a head, and lingers where the client may still be sending.
//!
//! It wraps any stream, so that it does not matter whether the stream is encrypted.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Duration, Instant, Sleep, sleep_until},
};

use super::{
    HttpConfig,
    client::{ClientConnection, Phase},
};
use crate::{Linger, Pace};

/// Bytes that are read before other tasks have their turn: a client that sends without a pause must not keep
/// the thread from other connections and peers.
const FAIR_BYTES: usize = 64 << 10;

pub(super) struct ClientStream<S> {
    stream: S,
    /// Bytes read since other tasks last had their turn.
    unyielded_bytes: usize,
    client: Arc<ClientConnection>,
    head_timeout: Duration,
    answer_pace: Pace,
    /// The deadline of the first byte, or of the head that is arriving.
    reading: Option<Pin<Box<Sleep>>>,
    has_first_byte: bool,
    writing: Option<Blocked>,
    linger: Option<Linger>,
}

/// Answers that the client does not read as fast as they are written.
struct Blocked {
    since: Instant,
    written: usize,
    timer: Pin<Box<Sleep>>,
}

impl<S> ClientStream<S> {
    /// `opened`: when the connection was accepted, before a handshake.
    pub(super) fn new(stream: S, opened: Instant, client: Arc<ClientConnection>, config: &HttpConfig) -> Self {
        let first_byte = opened + config.first_byte_timeout;
        Self {
            stream,
            unyielded_bytes: 0,
            client,
            head_timeout: config.head_timeout,
            answer_pace: config.answer_pace,
            reading: Some(Box::pin(sleep_until(first_byte))),
            has_first_byte: false,
            writing: None,
            linger: None,
        }
    }

    /// Fails when the first byte or the head is overdue.
    fn poll_reading(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        if self.has_first_byte {
            if !self.client.is_mid_head() {
                self.reading = None;
            } else if self.reading.is_none() {
                self.reading = Some(Box::pin(sleep_until(Instant::now() + self.head_timeout)));
            }
        }
        let Some(timer) = &mut self.reading else { return Poll::Pending };
        ready!(timer.as_mut().poll(context));
        Poll::Ready(io::ErrorKind::TimedOut.into())
    }

    /// Counts what was written, and fails when the client reads too slowly.
    fn poll_written(&mut self, context: &mut Context<'_>, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match written {
            Poll::Ready(Ok(bytes)) => {
                if let Some(blocked) = &mut self.writing {
                    blocked.written += bytes;
                }
                Poll::Ready(Ok(bytes))
            }
            Poll::Ready(error) => Poll::Ready(error),
            Poll::Pending => {
                let blocked = self.writing.get_or_insert_with(|| {
                    let since = Instant::now();
                    Blocked { since, written: 0, timer: Box::pin(sleep_until(since)) }
                });
                let deadline = self.answer_pace.deadline(blocked.since, blocked.written);
                if blocked.timer.deadline() != deadline {
                    blocked.timer.as_mut().reset(deadline);
                }
                ready!(blocked.timer.as_mut().poll(context));
                tracing::debug!(written = blocked.written, "a client does not read its answer");
                Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ClientStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.unyielded_bytes >= FAIR_BYTES {
            this.unyielded_bytes = 0;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        match Pin::new(&mut this.stream).poll_read(context, buffer) {
            Poll::Ready(Ok(())) => {
                let bytes = buffer.filled().len() - before;
                this.unyielded_bytes += bytes;
                if !this.has_first_byte && bytes > 0 {
                    (this.has_first_byte, this.reading) = (true, None);
                }
                if this.client.is(Phase::Head) {
                    this.client.head_grows(bytes);
                }
                Poll::Ready(Ok(()))
            }
            Poll::Ready(error) => Poll::Ready(error),
            Poll::Pending => {
                this.unyielded_bytes = 0;
                Poll::Ready(Err(ready!(this.poll_reading(context))))
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for ClientStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let written = Pin::new(&mut this.stream).poll_write(context, bytes);
        this.poll_written(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let written = Pin::new(&mut this.stream).poll_write_vectored(context, slices);
        this.poll_written(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// Called when everything was written. A stream that encrypts may still hold some of it.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let flushed = Pin::new(&mut this.stream).poll_flush(context);
        if flushed.is_ready() {
            this.writing = None;
            return flushed;
        }
        this.poll_written(context, Poll::Pending).map_ok(drop)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.linger.is_none() && !this.client.lingers() {
            let shut_down = Pin::new(&mut this.stream).poll_shutdown(context);
            if shut_down.is_ready() {
                return shut_down;
            }
            return this.poll_written(context, Poll::Pending).map_ok(drop);
        }
        this.linger.get_or_insert_default().poll(&mut this.stream, context).map(Ok)
    }
}
