//! The end of a connection whose client may still be sending.
//!
//! Closing a socket with unread input resets the connection, and the reset overtakes the last answer. So the
//! sending side is closed first, and input is discarded until the client has closed too, within bounds.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};

/// How long a client may go on sending after the last answer.
const LINGER_TIME: Duration = Duration::from_secs(2);
/// Bytes that are discarded after the last answer.
const LINGER_BYTES_MAX: usize = 64 << 20;
/// Bytes discarded at a time.
const SCRATCH_BYTES: usize = 16 << 10;

/// Closes a connection so that its last answer arrives.
pub struct Linger {
    timer: Pin<Box<Sleep>>,
    is_shut_down: bool,
    bytes_left: usize,
}

impl Default for Linger {
    fn default() -> Self {
        Self::within(LINGER_TIME)
    }
}

impl Linger {
    fn within(time: Duration) -> Self {
        Self { timer: Box::pin(sleep(time)), is_shut_down: false, bytes_left: LINGER_BYTES_MAX }
    }

    /// Shuts down the sending side, then discards input until its end or a bound.
    pub fn poll<S: AsyncRead + AsyncWrite + Unpin>(&mut self, stream: &mut S, context: &mut Context<'_>) -> Poll<()> {
        if self.timer.as_mut().poll(context).is_ready() {
            return Poll::Ready(());
        }
        if !self.is_shut_down {
            if ready!(Pin::new(&mut *stream).poll_shutdown(context)).is_err() {
                return Poll::Ready(());
            }
            self.is_shut_down = true;
        }
        let mut scratch = [0; SCRATCH_BYTES];
        while self.bytes_left > 0 {
            let mut buffer = ReadBuf::new(&mut scratch);
            match ready!(Pin::new(&mut *stream).poll_read(context, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => {
                    self.bytes_left = self.bytes_left.saturating_sub(buffer.filled().len());
                }
                Ok(()) | Err(_) => break,
            }
        }
        Poll::Ready(())
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    #[tokio::test]
    async fn the_last_answer_arrives_while_the_client_still_sends() {
        let (mut client, mut server) = duplex(1 << 10);
        server.write_all(b"no").await.expect("sent");
        let mut linger = Linger::default();
        let closes = poll_fn(|context| linger.poll(&mut server, context));
        let sends = async {
            client.write_all(&[0; 10 << 10]).await.expect("everything is taken");
            let mut answer = Vec::new();
            client.read_to_end(&mut answer).await.expect("an answer and an end");
            assert_eq!(answer, b"no");
            drop(client);
        };
        tokio::join!(closes, sends);
    }

    #[tokio::test]
    async fn a_client_that_never_closes_is_left() {
        let (_client, mut server) = duplex(1 << 10);
        let mut linger = Linger::within(Duration::from_millis(50));
        poll_fn(|context| linger.poll(&mut server, context)).await;
    }
}
