//! The sending side of one connection that this node dialled: a queue and a stream for each class.

use std::{sync::Arc, time::Duration};

use bytes::{BufMut, Bytes, BytesMut};
use quinn::{Connection, RecvStream, SendStream};
use tokio::{sync::watch, task::JoinSet, time::timeout};

use crate::{
    Class, Config, NotSent, SendError,
    endpoint::{CloseCode, close},
    frame::{self, CALL_BYTES, Decoder, FrameError, Head, Kind},
    inbound::{READ_BYTES_MAX, StreamError},
    meter::Meter,
    pending::{Pending, Reply, Ticket},
    writer::{Lane, Outgoing, Writer},
};

/// How long queued frames and calls in flight may still take when a connection is closed on purpose.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(500);

/// What can be sent on one connection.
#[derive(Debug)]
pub(crate) struct Link {
    connection: Connection,
    urgent: Lane,
    bulk: Lane,
    rpc: Calls,
    objects: Calls,
    stop: watch::Sender<bool>,
}

#[derive(Debug)]
struct Calls {
    lane: Lane,
    pending: Arc<Pending>,
}

impl Link {
    /// Opens the streams. Dropping the tasks ends them.
    pub(crate) fn open(connection: Connection, config: &Config, meter: &Meter) -> (Arc<Self>, JoinSet<()>) {
        let (stop, stopped) = watch::channel(false);
        let mut tasks = JoinSet::new();
        let bounds = (config.queue_frames_max, config.queue_bytes_max);

        let mut one_way = |class: Class| {
            let (lane, writer) = Lane::new(bounds, stopped.clone(), meter.class(class).clone());
            spawn_guarded(&mut tasks, &connection, send_one_way(connection.clone(), class, writer));
            lane
        };
        let (urgent, bulk) = (one_way(Class::Urgent), one_way(Class::Bulk));

        let mut calls = |class: Class, calls_max: usize, payload_bytes_max: usize| {
            let pending = Pending::new(calls_max);
            let meter = meter.class(class).clone();
            let (lane, writer) = Lane::new(bounds, stopped.clone(), meter.clone());
            let writer = writer.with_pending(pending.clone());
            let waiting = pending.clone();
            let connection = connection.clone();
            let guarded = connection.clone();
            spawn_guarded(&mut tasks, &guarded, async move {
                let (mut send, receive) = connection.open_bi().await.map_err(|_| StreamError::Lost)?;
                begin(&mut send, class).await?;
                let read =
                    read_answers(receive, payload_bytes_max, |answer: &Bytes| meter.received(answer.len()), &waiting);
                tokio::try_join!(writer.run(send), read).map(|_| ())
            });
            Calls { lane, pending }
        };
        let rpc = calls(Class::Rpc, config.calls_max, config.frame_bytes_max);
        let objects = calls(Class::Objects, config.object_calls_max, config.object_frame_bytes_max);
        (Arc::new(Self { connection, urgent, bulk, rpc, objects, stop }), tasks)
    }

    /// The connection, for its round-trip time.
    pub(crate) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Queues a one-way frame whose size was checked.
    pub(crate) fn send(&self, class: Class, frame: Bytes) -> Result<(), SendError> {
        let lane = match class {
            Class::Urgent => &self.urgent,
            Class::Bulk => &self.bulk,
            Class::Rpc | Class::Objects => return Err(SendError::WrongClass),
        };
        lane.push(Outgoing::new(Head::OneWay, frame))
    }

    /// Queues a request whose size was checked.
    pub(crate) fn begin_call(&self, class: Class, request: Bytes) -> Result<Ticket, NotSent> {
        let calls = match class {
            Class::Rpc => &self.rpc,
            Class::Objects => &self.objects,
            Class::Urgent | Class::Bulk => return Err(NotSent::WrongClass),
        };
        let ticket = calls.pending.register()?;
        let head = Head::Call { kind: Kind::Request, id: ticket.id() };
        match calls.lane.push(Outgoing::new(head, request)) {
            Ok(()) => Ok(ticket),
            Err(SendError::Busy) => Err(NotSent::Busy),
            Err(_) => Err(NotSent::Down),
        }
    }

    /// Sends a datagram whose size was checked. When the buffer is full, older ones give way.
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

    /// Closes in good order: what is queued is still sent, and calls in flight may still be answered, within a bound.
    pub(crate) async fn finish(&self, tasks: &mut JoinSet<()>) {
        self.stop.send_replace(true);
        let all = async { while tasks.join_next().await.is_some() {} };
        // What is not done within the bound is given up; callers are told.
        let _ = timeout(FLUSH_TIMEOUT, all).await;
        close(&self.connection, CloseCode::Normal);
    }

    /// The connection is gone: every call in flight ends.
    pub(crate) fn abandon(&self) {
        self.rpc.pending.close();
        self.objects.pending.close();
    }
}

/// A stream that fails while the connection lives would stay silent for ever: then the connection goes too.
fn spawn_guarded(
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

/// Writes what every stream begins with.
async fn begin(stream: &mut SendStream, class: Class) -> Result<(), StreamError> {
    // Fails only for a stream that has ended.
    let _ = stream.set_priority(class.priority());
    stream.write_all(&[frame::VERSION, class.tag()]).await.map_err(|_| StreamError::Lost)
}

async fn send_one_way(connection: Connection, class: Class, writer: Writer) -> Result<(), StreamError> {
    let mut stream = connection.open_uni().await.map_err(|_| StreamError::Lost)?;
    begin(&mut stream, class).await?;
    writer.run(stream).await
}

/// Hands answers to the calls that wait for them, until the peer ends the stream.
async fn read_answers(
    mut stream: RecvStream,
    payload_bytes_max: usize,
    received: impl Fn(&Bytes),
    pending: &Pending,
) -> Result<(), StreamError> {
    let mut decoder = Decoder::new(payload_bytes_max + CALL_BYTES);
    while let Some(chunk) = stream.read_chunk(READ_BYTES_MAX, true).await.map_err(|_| StreamError::Lost)? {
        let mut bytes = chunk.bytes;
        while let Some(body) = decoder.decode(&mut bytes)? {
            let (kind, id, answer) = frame::split_call(body)?;
            received(&answer);
            pending.resolve(
                id,
                match kind {
                    Kind::Answer => Reply::Answer(answer),
                    Kind::Refused => Reply::Refused,
                    Kind::TooLarge => Reply::TooLarge,
                    Kind::Request => return Err(FrameError::Call.into()),
                },
            );
        }
    }
    Ok(decoder.finish()?)
}
