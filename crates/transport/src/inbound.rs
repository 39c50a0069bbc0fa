//! Connections dialled to this node: authentication, admission, and their streams and datagrams.
//!
//! One connection per peer: a newer one replaces the older, which is most likely dead but not yet detected. A
//! malformed, oversize or truncated frame closes its connection and affects nothing else.

use std::{collections::HashMap, sync::Arc, time::Instant};

use bytes::{Buf, Bytes};
use flotilla_identity::{ALPN_JOIN, ALPN_PEER, peer_of};
use flotilla_types::{ClusterId, NodeId};
use parking_lot::Mutex;
use quinn::{Connection, Incoming, RecvStream, SendStream, crypto::rustls::HandshakeData};
use rustls_pki_types::CertificateDer;
use tokio::{sync::Semaphore, task::JoinSet, time::timeout};

use crate::{
    Class, Handler,
    endpoint::{CloseCode, close, connection_window},
    frame::{self, CALL_BYTES, CallKind, Decoder, FrameError, Head},
    join,
    transport::Shared,
    unauthenticated::{Rate, UnauthenticatedGuard, UnauthenticatedLimits},
    writer::{Outgoing, QueueLimits, SendQueue},
};

/// Largest chunk read from a stream, in bytes.
pub(crate) const READ_BYTES_MAX: usize = 256 * 1024;

/// A stream ended with an error.
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
    unauthenticated: Arc<UnauthenticatedLimits>,
    pub(crate) joins: Arc<UnauthenticatedLimits>,
    pub(crate) join_rate: Rate,
    peers: Mutex<HashMap<NodeId, InboundPeer>>,
}

/// State of a peer that outlives its connections, so that reconnecting does not reset its limits.
#[derive(Debug)]
struct InboundPeer {
    connection: Option<Connection>,
    call_limits: CallLimits,
}

/// How many requests of one peer may run concurrently.
#[derive(Debug, Clone)]
struct CallLimits {
    rpc: Arc<Semaphore>,
    objects: Arc<Semaphore>,
}

impl Inbound {
    pub(crate) fn new(config: &crate::Config) -> Self {
        Self {
            unauthenticated: UnauthenticatedLimits::new(
                config.unauthenticated_max,
                config.unauthenticated_per_address_max,
            ),
            joins: UnauthenticatedLimits::new(config.joins_max, config.joins_per_address_max),
            join_rate: Rate::new(config.joins_per_second_max, config.joins_per_second_per_address_max, Instant::now()),
            peers: Mutex::default(),
        }
    }

    /// Closes the connection of a peer that is no longer admitted.
    pub(crate) fn disconnect(&self, node: NodeId) {
        if let Some(connection) = self.peers.lock().get_mut(&node).and_then(|peer| peer.connection.take()) {
            close(&connection, CloseCode::Removed);
        }
    }

    /// Closes the connections of the peers that `is_refused` names.
    pub(crate) fn disconnect_all(&self, is_refused: impl Fn(NodeId) -> bool) {
        let connected: Vec<_> = self.peers.lock().keys().copied().collect();
        // Without the lock: the handler may take its own.
        for node in connected.into_iter().filter(|node| is_refused(*node)) {
            self.disconnect(node);
        }
    }

    /// Registers a peer's new connection, replacing an older one. `None`: the limit of peers is reached.
    fn register(&self, node: NodeId, connection: &Connection, config: &crate::Config) -> Option<CallLimits> {
        let mut peers = self.peers.lock();
        if !peers.contains_key(&node) && peers.len() >= config.connections_max {
            peers.retain(|_, peer| peer.connection.is_some());
            if peers.len() >= config.connections_max {
                return None;
            }
        }
        let peer = peers.entry(node).or_insert_with(|| InboundPeer {
            connection: None,
            call_limits: CallLimits {
                rpc: Arc::new(Semaphore::new(config.calls_max)),
                objects: Arc::new(Semaphore::new(config.object_calls_max)),
            },
        });
        if let Some(older) = peer.connection.replace(connection.clone()) {
            close(&older, CloseCode::Replaced);
        }
        Some(peer.call_limits.clone())
    }

    fn unregister(&self, node: NodeId, connection: &Connection) {
        let mut peers = self.peers.lock();
        if let Some(peer) = peers.get_mut(&node)
            && peer.connection.as_ref().is_some_and(|current| current.stable_id() == connection.stable_id())
        {
            peer.connection = None;
        }
    }
}

/// Accepts connections until the endpoint is closed.
pub(crate) async fn accept(shared: Arc<Shared>) {
    while let Some(incoming) = shared.endpoint.accept().await {
        let limits = &shared.inbound.unauthenticated;
        let Some(guard) = limits.enter(incoming.remote_address().ip()) else {
            shared.meter.refused.increment(1);
            incoming.refuse();
            continue;
        };
        if limits.is_crowded() && !incoming.remote_address_validated() {
            // Never fails: an unvalidated address may be retried (see `Incoming::may_retry`).
            let _ = incoming.retry();
            continue;
        }
        tokio::spawn(serve(shared.clone(), incoming, guard));
    }
}

/// Serves one incoming connection, from its first packet to its end.
async fn serve(shared: Arc<Shared>, incoming: Incoming, guard: UnauthenticatedGuard) {
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
        Some(ALPN_PEER) => match authorize(&shared, &connection) {
            Ok((node, call_limits)) => {
                drop(guard);
                serve_peer(&shared, &connection, node, call_limits).await;
                shared.inbound.unregister(node, &connection);
            }
            Err(code) => {
                shared.meter.refused.increment(1);
                close(&connection, code);
            }
        },
        _ => close(&connection, CloseCode::Protocol),
    }
}

/// The authenticated peer of a connection, registered, if the handler admits it and the limit of peers allows
/// it.
fn authorize(shared: &Shared, connection: &Connection) -> Result<(NodeId, CallLimits), CloseCode> {
    let node = certified_node(connection, shared.cluster).ok_or(CloseCode::Identity)?;
    if node == shared.node {
        tracing::warn!(remote = %connection.remote_address(), "another process uses this node's identity");
        return Err(CloseCode::Identity);
    }
    if !shared.handler.admit(node) {
        return Err(CloseCode::Removed);
    }
    let call_limits = shared.inbound.register(node, connection, &shared.config).ok_or(CloseCode::Busy)?;
    Ok((node, call_limits))
}

/// The node in the certificate of the other side of a connection.
pub(crate) fn certified_node(connection: &Connection, cluster: ClusterId) -> Option<NodeId> {
    let chain = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    peer_of(chain.first()?, cluster).ok()
}

/// Welcomes a peer and serves its streams and datagrams until the connection ends.
async fn serve_peer(shared: &Arc<Shared>, connection: &Connection, node: NodeId, call_limits: CallLimits) {
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
    shared.learn_address(node, connection.remote_address());

    let mut streams = JoinSet::new();
    loop {
        tokio::select! {
            stream = connection.accept_uni() => match stream {
                Ok(stream) => drop(streams.spawn(serve_one_way(shared.clone(), node, stream))),
                Err(_) => break,
            },
            stream = connection.accept_bi() => match stream {
                Ok((send, receive)) => {
                    drop(streams.spawn(serve_calls(shared.clone(), node, call_limits.clone(), send, receive)));
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
                // The handler panicked: nothing reads the stream any more.
                Err(_) => close(connection, CloseCode::Protocol),
            },
        }
    }
    // The streams still deliver what arrived before the close; then each of them ends with an error.
    while streams.join_next().await.is_some() {}
}

fn receive_datagram(shared: &Shared, node: NodeId, mut packet: Bytes) {
    if packet.first() != Some(&frame::VERSION) {
        return shared.meter.datagrams_dropped.increment(1);
    }
    packet.advance(1);
    shared.meter.datagrams_received.increment(1);
    // Copied, because the packet is a slice of a receive buffer many times its size.
    shared.handler.on_datagram(node, Bytes::copy_from_slice(&packet));
}

/// Reads the header that opens every stream.
async fn read_class(stream: &mut RecvStream) -> Result<Class, StreamError> {
    let mut header = [0; 2];
    stream.read_exact(&mut header).await.map_err(|error| match error {
        quinn::ReadExactError::FinishedEarly(_) => FrameError::Truncated.into(),
        quinn::ReadExactError::ReadError(_) => StreamError::Lost,
    })?;
    let [version, tag] = header;
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
    call_limits: CallLimits,
    send: SendStream,
    mut receive: RecvStream,
) -> Result<(), StreamError> {
    let (class, call_limit, answers_max) = match read_class(&mut receive).await? {
        Class::Rpc => (Class::Rpc, call_limits.rpc, shared.config.calls_max),
        Class::Objects => (Class::Objects, call_limits.objects, shared.config.object_calls_max),
        Class::Urgent | Class::Bulk => return Err(FrameError::Class.into()),
    };
    // Fails only for a closed stream; the writer reports that.
    let _ = send.set_priority(class.priority());
    let meter = shared.meter.class(class).clone();
    let limits = QueueLimits { frames_max: answers_max, bytes_max: shared.config.queue_bytes_max };
    let (answers, writer) = SendQueue::new(limits, shared.closing.subscribe(), meter.clone());
    let bytes_max = shared.payload_bytes_max(class);
    let handler = shared.handler.clone();
    let read = async move {
        let answers = Arc::new(answers);
        let mut decoder = Decoder::new(bytes_max + CALL_BYTES);
        while let Some(chunk) = receive.read_chunk(READ_BYTES_MAX, true).await.map_err(|_| StreamError::Lost)? {
            let mut bytes = chunk.bytes;
            while let Some(body) = decoder.decode(&mut bytes)? {
                let (kind, id, request) = frame::split_call(body)?;
                if kind != CallKind::Request {
                    return Err(FrameError::Call.into());
                }
                meter.received(request.len());
                match call_limit.clone().try_acquire_owned() {
                    Ok(permit) => {
                        let (handler, answers) = (handler.clone(), answers.clone());
                        tokio::spawn(async move {
                            let mut answer = execute(&*handler, node, class, id, request, bytes_max).await;
                            answer.permit = Some(permit);
                            // Fails when the connection is gone, and with it the caller.
                            let _ = answers.push_wait(answer).await;
                        });
                    }
                    Err(_) => {
                        let head = Head::Call { kind: CallKind::Refused, id };
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
        return Outgoing::new(Head::Call { kind: CallKind::TooLarge, id }, Bytes::new());
    }
    Outgoing::new(Head::Call { kind: CallKind::Answer, id }, answer)
}
