//! Connections that others dialled to this node: who they are, whether they may, and what they send.
//!
//! One connection for each peer: a newer one takes the place of the older, which is most likely dead and not yet known to
//! be. Damaged, oversize or half frames close the connection they came on, and nothing else.

use std::{collections::HashMap, sync::Arc, time::Instant};

use bytes::{Buf, Bytes};
use flotilla_identity::{ALPN_JOIN, ALPN_PEER, peer_of};
use flotilla_types::NodeId;
use parking_lot::Mutex;
use quinn::{Connection, Incoming, RecvStream, SendStream, crypto::rustls::HandshakeData};
use rustls_pki_types::CertificateDer;
use tokio::{sync::Semaphore, task::JoinSet, time::timeout};

use crate::{
    Class, Handler,
    endpoint::{CloseCode, close, connection_window},
    frame::{self, CALL_BYTES, Decoder, FrameError, Head, Kind},
    join,
    strangers::{Rate, StrangerGuard, Strangers},
    transport::Shared,
    writer::{Lane, Outgoing},
};

/// Bytes taken from a stream at once.
pub(crate) const READ_BYTES_MAX: usize = 256 * 1024;

/// A stream ended otherwise than in good order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum StreamError {
    #[error("the connection is lost")]
    Lost,
    #[error(transparent)]
    Frame(#[from] FrameError),
}

/// The accepting side of a transport.
#[derive(Debug)]
pub(crate) struct Inbound {
    strangers: Arc<Strangers>,
    pub(crate) joins: Semaphore,
    pub(crate) join_rate: Rate,
    seats: Mutex<HashMap<NodeId, Seat>>,
}

/// What is kept for a peer from one of its connections to the next, so that reconnecting raises no bound.
#[derive(Debug)]
struct Seat {
    connection: Option<Connection>,
    gates: Gates,
}

/// How many requests of a peer may run at once.
#[derive(Debug, Clone)]
struct Gates {
    rpc: Arc<Semaphore>,
    objects: Arc<Semaphore>,
}

impl Inbound {
    pub(crate) fn new(config: &crate::Config) -> Self {
        Self {
            strangers: Strangers::new(config.strangers_max, config.strangers_per_address_max),
            joins: Semaphore::new(config.joins_max),
            join_rate: Rate::new(config.joins_per_second_max, Instant::now()),
            seats: Mutex::default(),
        }
    }

    /// Closes the connection of a peer that is no longer admitted.
    pub(crate) fn expel(&self, node: NodeId) {
        if let Some(connection) = self.seats.lock().get_mut(&node).and_then(|seat| seat.connection.take()) {
            close(&connection, CloseCode::Removed);
        }
    }

    /// Gives a peer's new connection its place, or `None` when all are taken.
    fn seat(&self, node: NodeId, connection: &Connection, config: &crate::Config) -> Option<Gates> {
        let mut seats = self.seats.lock();
        if !seats.contains_key(&node) && seats.len() >= config.connections_max {
            seats.retain(|_, seat| seat.connection.is_some());
            if seats.len() >= config.connections_max {
                return None;
            }
        }
        let seat = seats.entry(node).or_insert_with(|| Seat {
            connection: None,
            gates: Gates {
                rpc: Arc::new(Semaphore::new(config.calls_max)),
                objects: Arc::new(Semaphore::new(config.object_calls_max)),
            },
        });
        if let Some(older) = seat.connection.replace(connection.clone()) {
            close(&older, CloseCode::Replaced);
        }
        Some(seat.gates.clone())
    }

    fn leave(&self, node: NodeId, connection: &Connection) {
        let mut seats = self.seats.lock();
        if let Some(seat) = seats.get_mut(&node)
            && seat.connection.as_ref().is_some_and(|seated| seated.stable_id() == connection.stable_id())
        {
            seat.connection = None;
        }
    }
}

/// Accepts connections until the endpoint is closed.
pub(crate) async fn accept(shared: Arc<Shared>) {
    while let Some(incoming) = shared.endpoint.accept().await {
        let strangers = &shared.inbound.strangers;
        let Some(guard) = strangers.enter(incoming.remote_address().ip()) else {
            shared.meter.refused.increment(1);
            incoming.refuse();
            continue;
        };
        if strangers.is_crowded() && !incoming.remote_address_validated() {
            // An unproven address may always be told to try again (see `Incoming::may_retry`).
            let _ = incoming.retry();
            continue;
        }
        tokio::spawn(serve(shared.clone(), incoming, guard));
    }
}

/// One incoming connection, from its first packet to its end.
async fn serve(shared: Arc<Shared>, incoming: Incoming, guard: StrangerGuard) {
    let Ok(connecting) = incoming.accept() else { return };
    let connection = match timeout(shared.config.handshake_timeout, connecting).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => {
            tracing::debug!(%error, "an incoming handshake failed");
            return shared.meter.refused.increment(1);
        }
        Err(_) => return shared.meter.refused.increment(1),
    };
    let protocol = connection
        .handshake_data()
        .and_then(|data| data.downcast::<HandshakeData>().ok())
        .and_then(|data| data.protocol);
    match protocol.as_deref() {
        Some(ALPN_JOIN) => join::serve(&shared, &connection, guard).await,
        Some(ALPN_PEER) => match entitled(&shared, &connection) {
            Ok((node, gates)) => {
                drop(guard);
                serve_peer(&shared, &connection, node, gates).await;
                shared.inbound.leave(node, &connection);
            }
            Err(code) => {
                shared.meter.refused.increment(1);
                close(&connection, code);
            }
        },
        _ => close(&connection, CloseCode::Protocol),
    }
}

/// The peer at the other end, if it has proven to be one, belongs to the cluster and finds a place.
fn entitled(shared: &Shared, connection: &Connection) -> Result<(NodeId, Gates), CloseCode> {
    let chain = connection
        .peer_identity()
        .and_then(|identity| identity.downcast::<Vec<CertificateDer<'static>>>().ok())
        .ok_or(CloseCode::Identity)?;
    let cert = chain.first().ok_or(CloseCode::Identity)?;
    let node = peer_of(cert, shared.cluster).map_err(|_| CloseCode::Identity)?;
    if node == shared.node {
        tracing::warn!(remote = %connection.remote_address(), "someone else uses this node's identity");
        return Err(CloseCode::Identity);
    }
    if !shared.handler.admit(node) {
        return Err(CloseCode::Removed);
    }
    let gates = shared.inbound.seat(node, connection, &shared.config).ok_or(CloseCode::Busy)?;
    Ok((node, gates))
}

/// Welcomes a peer and serves its streams and datagrams until the connection ends.
async fn serve_peer(shared: &Arc<Shared>, connection: &Connection, node: NodeId, gates: Gates) {
    connection.set_receive_window(connection_window(&shared.config));
    let welcome = async {
        let mut stream = connection.open_uni().await.map_err(|_| StreamError::Lost)?;
        let bytes = [frame::VERSION, frame::WELCOME_TAG];
        stream.write_all(&bytes).await.map_err(|_| StreamError::Lost)?;
        stream.finish().map_err(|_| StreamError::Lost)
    };
    if !matches!(timeout(shared.config.handshake_timeout, welcome).await, Ok(Ok(()))) {
        return close(connection, CloseCode::Protocol);
    }
    shared.saw_alive(node);

    let mut streams = JoinSet::new();
    loop {
        tokio::select! {
            stream = connection.accept_uni() => match stream {
                Ok(stream) => drop(streams.spawn(serve_one_way(shared.clone(), node, stream))),
                Err(_) => break,
            },
            stream = connection.accept_bi() => match stream {
                Ok((send, receive)) => {
                    drop(streams.spawn(serve_calls(shared.clone(), node, gates.clone(), send, receive)));
                }
                Err(_) => break,
            },
            packet = connection.read_datagram() => match packet {
                Ok(packet) => receive_datagram(shared, node, packet),
                Err(_) => break,
            },
            Some(ended) = streams.join_next() => match ended {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::debug!(peer = %node, %error, "a stream from a peer ended");
                    close(connection, CloseCode::Protocol);
                }
                // The handler panicked: the stream would never be read again.
                Err(_) => close(connection, CloseCode::Protocol),
            },
        }
    }
    // What arrived before the end is still read; then every stream fails by itself.
    while streams.join_next().await.is_some() {}
}

fn receive_datagram(shared: &Shared, node: NodeId, mut packet: Bytes) {
    if packet.first() != Some(&frame::VERSION) {
        return shared.meter.datagrams_dropped.increment(1);
    }
    packet.advance(1);
    shared.meter.datagrams_received.increment(1);
    // A copy: the packet is a slice of a receive buffer many times its size.
    shared.handler.on_datagram(node, Bytes::copy_from_slice(&packet));
}

/// Reads what every stream begins with.
async fn read_class(stream: &mut RecvStream) -> Result<Class, StreamError> {
    let mut begin = [0; 2];
    stream.read_exact(&mut begin).await.map_err(|error| match error {
        quinn::ReadExactError::FinishedEarly(_) => FrameError::Cut.into(),
        quinn::ReadExactError::ReadError(_) => StreamError::Lost,
    })?;
    let [version, tag] = begin;
    if version != frame::VERSION {
        return Err(FrameError::Version { found: version }.into());
    }
    Class::of_tag(tag).ok_or(FrameError::Class.into())
}

async fn serve_one_way(shared: Arc<Shared>, node: NodeId, mut stream: RecvStream) -> Result<(), StreamError> {
    let class = match read_class(&mut stream).await? {
        class @ (Class::Urgent | Class::Bulk) => class,
        Class::Rpc | Class::Objects => return Err(FrameError::Class.into()),
    };
    let meter = shared.meter.class(class).clone();
    let mut decoder = Decoder::new(shared.payload_bytes_max(class));
    while let Some(chunk) = stream.read_chunk(READ_BYTES_MAX, true).await.map_err(|_| StreamError::Lost)? {
        let mut bytes = chunk.bytes;
        while let Some(frame) = decoder.decode(&mut bytes)? {
            meter.received(frame.len());
            shared.handler.on_frame(node, class, frame);
        }
    }
    Ok(decoder.finish()?)
}

async fn serve_calls(
    shared: Arc<Shared>,
    node: NodeId,
    gates: Gates,
    send: SendStream,
    mut receive: RecvStream,
) -> Result<(), StreamError> {
    let (class, gate, answers_max) = match read_class(&mut receive).await? {
        Class::Rpc => (Class::Rpc, gates.rpc, shared.config.calls_max),
        Class::Objects => (Class::Objects, gates.objects, shared.config.object_calls_max),
        Class::Urgent | Class::Bulk => return Err(FrameError::Class.into()),
    };
    // Fails only for a stream that has ended.
    let _ = send.set_priority(class.priority());
    let meter = shared.meter.class(class).clone();
    let (answers, writer) =
        Lane::new((answers_max, shared.config.queue_bytes_max), shared.closing.subscribe(), meter.clone());
    let bytes_max = shared.payload_bytes_max(class);
    let handler = shared.handler.clone();
    let read = async move {
        let answers = Arc::new(answers);
        let mut decoder = Decoder::new(bytes_max + CALL_BYTES);
        while let Some(chunk) = receive.read_chunk(READ_BYTES_MAX, true).await.map_err(|_| StreamError::Lost)? {
            let mut bytes = chunk.bytes;
            while let Some(body) = decoder.decode(&mut bytes)? {
                let (kind, id, request) = frame::split_call(body)?;
                if kind != Kind::Request {
                    return Err(FrameError::Call.into());
                }
                meter.received(request.len());
                match gate.clone().try_acquire_owned() {
                    Ok(permit) => {
                        let (handler, answers) = (handler.clone(), answers.clone());
                        tokio::spawn(async move {
                            let mut answer = execute(&*handler, node, class, id, request, bytes_max).await;
                            answer.permit = Some(permit);
                            // Fails when the connection is gone, and with it whoever asked.
                            let _ = answers.push_wait(answer).await;
                        });
                    }
                    Err(_) => {
                        let head = Head::Call { kind: Kind::Refused, id };
                        let refusal = Outgoing::new(head, Bytes::new());
                        answers.push_wait(refusal).await.map_err(|_| StreamError::Lost)?;
                    }
                }
            }
        }
        Ok(decoder.finish()?)
    };
    tokio::try_join!(read, writer.run(send)).map(|_| ())
}

async fn execute(
    handler: &dyn Handler,
    node: NodeId,
    class: Class,
    id: u64,
    request: Bytes,
    bytes_max: usize,
) -> Outgoing {
    let answer = handler.on_call(node, class, request).await;
    if answer.len() > bytes_max {
        return Outgoing::new(Head::Call { kind: Kind::TooLarge, id }, Bytes::new());
    }
    Outgoing::new(Head::Call { kind: Kind::Answer, id }, answer)
}
