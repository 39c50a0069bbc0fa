//! The join protocol for nodes without an identity: one request and one answer on one connection.
//!
//! The joiner does not authenticate; the server proves only that it belongs to the pinned cluster. In both
//! directions the stream carries a version byte and the payload, up to its end.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use flotilla_identity::{JOIN_SERVER_NAME, JoinTrust, join_client_config};
use flotilla_types::{ClusterId, NodeId};
use quinn::{ClientConfig, Connection, ConnectionError, TransportConfig, VarInt, crypto::rustls::QuicClientConfig};
use tokio::time::timeout;

use crate::{
    PeerError, TransportError,
    endpoint::{CloseCode, classify, close, joiner_endpoint},
    frame::VERSION,
    inbound::certified_node,
    transport::Shared,
    unauthenticated::UnauthenticatedGuard,
};

/// Largest join request, in bytes.
pub const JOIN_REQUEST_BYTES_MAX: usize = 64 * 1024;
/// Largest answer to a join request, in bytes.
pub const JOIN_ANSWER_BYTES_MAX: usize = 1024 * 1024;
/// How long the handshake of a join may take. An address where nothing answers costs as much.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long the close may take to reach the server.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(200);

/// Sends a join request to a node of the cluster whose authority is trusted. Needs no identity. Takes at most
/// `deadline` in total.
///
/// # Errors
/// [`TransportError::JoinTooLarge`], [`TransportError::JoinConnect`] (not executed),
/// [`TransportError::JoinLost`] (may have been executed), [`TransportError::Bind`].
pub async fn join_call(
    remote: SocketAddr,
    trust: impl Into<JoinTrust>,
    request: Bytes,
    deadline: Duration,
) -> Result<Bytes, TransportError> {
    if request.len() > JOIN_REQUEST_BYTES_MAX {
        return Err(TransportError::JoinTooLarge { bytes_max: JOIN_REQUEST_BYTES_MAX });
    }
    let deadline_at = Instant::now() + deadline;
    let client = trusting_client(trust.into())?;
    let endpoint = joiner_endpoint(remote)?;
    let connecting = endpoint
        .connect_with(client, remote, JOIN_SERVER_NAME)
        .map_err(|_| TransportError::JoinConnect(PeerError::Address))?;
    let connection = match timeout(deadline.min(CONNECT_TIMEOUT), connecting).await {
        Ok(connected) => connected.map_err(|error| TransportError::JoinConnect(classify(&error)))?,
        Err(_) => return Err(TransportError::JoinConnect(PeerError::TimedOut)),
    };
    let remaining = deadline_at.saturating_duration_since(Instant::now());
    let answer = timeout(remaining, exchange(&connection, request)).await.unwrap_or(Err(PeerError::TimedOut));
    close(&connection, CloseCode::Normal);
    // Deliver the close; otherwise the server would wait for its idle timeout.
    let _ = timeout(CLOSE_TIMEOUT, endpoint.wait_idle()).await;
    answer.map_err(TransportError::JoinLost)
}

/// Settings for dialling any node of the cluster whose authority is trusted, without a certificate.
pub(crate) fn trusting_client(trust: JoinTrust) -> Result<ClientConfig, TransportError> {
    let crypto = QuicClientConfig::try_from(join_client_config(trust)?).map_err(|_| TransportError::CipherSuite)?;
    let mut client = ClientConfig::new(Arc::new(crypto));
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .receive_window(VarInt::from_u32(JOIN_ANSWER_BYTES_MAX as u32 + 1))
        .keep_alive_interval(Some(Duration::from_secs(3)));
    client.transport_config(Arc::new(transport));
    Ok(client)
}

/// The node at an address, by the certificate that it shows in a handshake of this protocol. No request
/// follows, and any node answers, whether or not it knows this one.
pub(crate) async fn identify(
    endpoint: &quinn::Endpoint,
    client: ClientConfig,
    address: SocketAddr,
    cluster: ClusterId,
) -> Result<NodeId, PeerError> {
    let connecting = endpoint.connect_with(client, address, JOIN_SERVER_NAME).map_err(|_| PeerError::Address)?;
    let connection = connecting.await.map_err(|error| classify(&error))?;
    let node = certified_node(&connection, cluster);
    close(&connection, CloseCode::Normal);
    node.ok_or(PeerError::Protocol)
}

async fn exchange(connection: &Connection, request: Bytes) -> Result<Bytes, PeerError> {
    let lost = |error: ConnectionError| classify(&error);
    let reason = || connection.close_reason().as_ref().map_or(PeerError::Protocol, classify);
    let (mut send, mut receive) = connection.open_bi().await.map_err(lost)?;
    send.write_all(&with_version(&request)).await.map_err(|_| reason())?;
    send.finish().map_err(|_| reason())?;
    let answer = receive.read_to_end(JOIN_ANSWER_BYTES_MAX + 1).await.map_err(|_| reason())?;
    strip_version(answer).ok_or(PeerError::Protocol)
}

/// Serves one join connection within the limits of number, rate, size and time.
pub(crate) async fn serve(shared: &Shared, connection: &Connection, _guard: UnauthenticatedGuard) {
    let inbound = &shared.inbound;
    let address = connection.remote_address().ip();
    let Some(_slot) = inbound.joins.enter(address) else { return reject(shared, connection) };
    if !inbound.join_rate.allow(address, Instant::now()) {
        return reject(shared, connection);
    }
    shared.meter.joins.increment(1);
    let code = match timeout(shared.config.join_timeout, answer(shared, connection)).await {
        Ok(true) => CloseCode::Normal,
        Ok(false) => CloseCode::Protocol,
        Err(_) => CloseCode::Busy,
    };
    close(connection, code);
}

fn reject(shared: &Shared, connection: &Connection) {
    shared.meter.refused.increment(1);
    close(connection, CloseCode::Busy);
}

/// Answers one join request. `false`: the joiner violated the protocol, or the answer is too large. A joiner
/// that leaves before it has the answer is no error.
async fn answer(shared: &Shared, connection: &Connection) -> bool {
    let Ok((mut send, mut receive)) = connection.accept_bi().await else { return false };
    let Ok(request) = receive.read_to_end(JOIN_REQUEST_BYTES_MAX + 1).await else { return false };
    let Some(request) = strip_version(request) else { return false };
    let answer = shared.handler.on_join(connection.remote_address(), request).await;
    if answer.len() > JOIN_ANSWER_BYTES_MAX {
        tracing::error!(bytes = answer.len(), "the answer to a join request is too large");
        return false;
    }
    if send.write_all(&with_version(&answer)).await.is_ok() && send.finish().is_ok() {
        // Wait until the joiner has received everything or is gone.
        let _ = send.stopped().await;
    }
    true
}

fn with_version(payload: &[u8]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(payload.len() + 1);
    bytes.put_u8(VERSION);
    bytes.extend_from_slice(payload);
    bytes.freeze()
}

fn strip_version(bytes: Vec<u8>) -> Option<Bytes> {
    let mut bytes = Bytes::from(bytes);
    if bytes.first() != Some(&VERSION) {
        return None;
    }
    bytes.advance(1);
    Some(bytes)
}
