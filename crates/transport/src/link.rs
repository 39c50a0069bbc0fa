//! The sending side of one connection that this node dialled: one queue and one stream per class.

use std::{sync::Arc, time::Duration};

use bytes::{BufMut, Bytes, BytesMut};
use quinn::{Connection, RecvStream, SendStream};
use tokio::{sync::watch, task::JoinSet, time::timeout};

use crate::{
    Class, Config, NotSent, SendError,
    endpoint::{CloseCode, close},
    frame::{self, CALL_BYTES, CallKind, Decoder, FrameError, Head},
    inbound::{READ_BYTES_MAX, StreamError},
    meter::Meter,
    pending::{PendingCall, PendingCalls, Reply},
    writer::{Outgoing, QueueLimits, SendQueue, Writer},
};

/// How long the flush of queued frames and calls in flight may take before a connection is closed
/// deliberately.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(500);

/// Sends frames, datagrams and calls on one connection.
#[derive(Debug)]
pub(crate) struct Link {
    connection: Connection,
    urgent: SendQueue,
    bulk: SendQueue,
    rpc: Calls,
    objects: Calls,
    stop: watch::Sender<bool>,
}

#[derive(Debug)]
struct Calls {
    queue: SendQueue,
    pending: Arc<PendingCalls>,
}

impl Link {
    /// Opens the streams. Dropping the tasks ends them.
    pub(crate) fn open(connection: Connection, config: &Config, meter: &Meter) -> (Arc<Self>, JoinSet<()>) {
        let (stop, stopped) = watch::channel(false);
        let mut tasks = JoinSet::new();
        let limits = QueueLimits { frames_max: config.queue_frames_max, bytes_max: config.queue_bytes_max };

        let mut one_way = |class: Class| {
            let (queue, writer) = SendQueue::new(limits, stopped.clone(), meter.class(class).clone());
            spawn_or_close(&mut tasks, &connection, send_one_way(connection.clone(), class, writer));
            queue
        };
        let (urgent, bulk) = (one_way(Class::Urgent), one_way(Class::Bulk));

        let mut calls = |class: Class, calls_max: usize, payload_bytes_max: usize| {
            let pending = PendingCalls::new(calls_max);
            let meter = meter.class(class).clone();
            let (queue, writer) = SendQueue::new(limits, stopped.clone(), meter.clone());
            let writer = writer.with_pending_calls(pending.clone());
            let (resolved, opened_on) = (pending.clone(), connection.clone());
            spawn_or_close(&mut tasks, &connection, async move {
                let (mut send, receive) = opened_on.open_bi().await.map_err(|_| StreamError::Lost)?;
                write_header(&mut send, class).await?;
                let read =
                    read_answers(receive, payload_bytes_max, |answer: &Bytes| meter.received(answer.len()), &resolved);
                tokio::try_join!(writer.run(send), read).map(|_| ())
            });
            Calls { queue, pending }
        };
        let rpc = calls(Class::Rpc, config.calls_max, config.frame_bytes_max);
        let objects = calls(Class::Objects, config.object_calls_max, config.object_frame_bytes_max);
        (Arc::new(Self { connection, urgent, bulk, rpc, objects, stop }), tasks)
    }

    /// The connection, for its round-trip time.
    pub(crate) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Queues a one-way frame; the caller has checked its size.
    pub(crate) fn send(&self, class: Class, frame: Bytes) -> Result<(), SendError> {
        let queue = match class {
            Class::Urgent => &self.urgent,
            Class::Bulk => &self.bulk,
            Class::Rpc | Class::Objects => return Err(SendError::WrongClass),
        };
        queue.push(Outgoing::new(Head::OneWay, frame))
    }

    /// Queues a request; the caller has checked its size.
    pub(crate) fn begin_call(&self, class: Class, request: Bytes) -> Result<PendingCall, NotSent> {
        let calls = match class {
            Class::Rpc => &self.rpc,
            Class::Objects => &self.objects,
            Class::Urgent | Class::Bulk => return Err(NotSent::WrongClass),
        };
        let pending = calls.pending.register()?;
        let head = Head::Call { kind: CallKind::Request, id: pending.id() };
        match calls.queue.push(Outgoing::new(head, request)) {
            Ok(()) => Ok(pending),
            Err(SendError::Busy) => Err(NotSent::Busy),
            Err(_) => Err(NotSent::Down),
        }
    }

    /// Sends a datagram; the caller has checked its size. A full buffer drops its oldest datagrams.
    pub(crate) fn datagram(&self, packet: &[u8]) -> Result<(), SendError> {
        let mut framed = BytesMut::with_capacity(packet.len() + 1);
        framed.put_u8(frame::VERSION);
        framed.extend_from_slice(packet);
        self.connection.send_datagram(framed.freeze()).map_err(|error| match error {
            quinn::SendDatagramError::TooLarge => {
                SendError::TooLarge { bytes_max: self.connection.max_datagram_size().unwrap_or(1).saturating_sub(1) }
            }
            _ => SendError::Down,
        })
    }

    /// Closes after a bounded flush: queued frames are sent, and calls in flight may still be answered.
    pub(crate) async fn flush_and_close(&self, tasks: &mut JoinSet<()>) {
        self.stop.send_replace(true);
        let all = async { while tasks.join_next().await.is_some() {} };
        // At the timeout the rest is dropped; its callers get an error.
        let _ = timeout(FLUSH_TIMEOUT, all).await;
        close(&self.connection, CloseCode::Normal);
    }

    /// Fails every call in flight, because the connection is gone.
    pub(crate) fn fail_calls(&self) {
        self.rpc.pending.close();
        self.objects.pending.close();
    }
}

/// Spawns the task of a stream. If the stream fails, the connection is closed: nothing would reopen the
/// stream.
fn spawn_or_close(
    tasks: &mut JoinSet<()>,
    connection: &Connection,
    work: impl Future<Output = Result<(), StreamError>> + Send + 'static,
) {
    let connection = connection.clone();
    tasks.spawn(async move {
        if let Err(error) = work.await {
            tracing::debug!(%error, "a stream to a peer ended");
            close(&connection, CloseCode::Protocol);
        }
    });
}

/// Writes the header that opens every stream.
async fn write_header(stream: &mut SendStream, class: Class) -> Result<(), StreamError> {
    // Fails only for a closed stream; the write below reports that.
    let _ = stream.set_priority(class.priority());
    stream.write_all(&[frame::VERSION, class.tag()]).await.map_err(|_| StreamError::Lost)
}

async fn send_one_way(connection: Connection, class: Class, writer: Writer) -> Result<(), StreamError> {
    let mut stream = connection.open_uni().await.map_err(|_| StreamError::Lost)?;
    write_header(&mut stream, class).await?;
    writer.run(stream).await
}

/// Delivers answers to their pending calls, until the peer ends the stream.
async fn read_answers(
    mut stream: RecvStream,
    payload_bytes_max: usize,
    received: impl Fn(&Bytes),
    pending: &PendingCalls,
) -> Result<(), StreamError> {
    let mut decoder = Decoder::new(payload_bytes_max + CALL_BYTES);
    while let Some(chunk) = stream.read_chunk(READ_BYTES_MAX, true).await.map_err(|_| StreamError::Lost)? {
        let mut bytes = chunk.bytes;
        while let Some(body) = decoder.decode(&mut bytes)? {
            let (kind, id, answer) = frame::split_call(body)?;
            received(&answer);
            let reply = match kind {
                CallKind::Answer => Reply::Answer(answer),
                CallKind::Refused => Reply::Refused,
                CallKind::TooLarge => Reply::TooLarge,
                CallKind::Request => return Err(FrameError::Call.into()),
            };
            pending.resolve(id, reply);
        }
    }
    Ok(decoder.finish()?)
}
