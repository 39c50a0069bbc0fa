//! The UDP socket, quinn's settings, and the codes with which connections are closed.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use flotilla_identity::{NodeIdentity, peer_client_config, server_config};
use quinn::{
    AckFrequencyConfig, ClientConfig, ConnectionError, ConnectionId, ConnectionIdGenerator, Endpoint, EndpointConfig,
    MtuDiscoveryConfig, ServerConfig, TokioRuntime, TransportConfig, VarInt,
    crypto::{
        CryptoError, HmacKey,
        rustls::{QuicClientConfig, QuicServerConfig},
    },
};
use socket2::{Domain, Protocol, Socket, Type};

use crate::{Config, PeerError, TransportError};

/// Receive window of an unauthenticated connection, in bytes: a join request and some slack. Widened for
/// peers.
const UNAUTHENTICATED_WINDOW_BYTES: u32 = 128 * 1024;
/// Datagrams buffered for reading or sending on one connection, in bytes. The oldest are dropped first.
const DATAGRAM_BUFFER_BYTES: usize = 64 * 1024;
/// The socket's kernel buffers, in bytes; best effort. The default overflows under bursts of bulk frames.
const SOCKET_BUFFER_BYTES: usize = 4 * 1024 * 1024;
/// Incoming connections that wait to be accepted.
const INCOMING_MAX: usize = 1024;
/// Bytes buffered for one such connection.
const INCOMING_BYTES_MAX: u64 = 64 * 1024;
/// Bytes buffered for all such connections together.
const INCOMING_BYTES_TOTAL_MAX: u64 = 8 * 1024 * 1024;
/// The assumed round-trip time before the first measurement; sets the retransmission of the first packets.
/// quinn's default of 333 ms is for the open internet: a lost first packet would cost a second.
const INITIAL_RTT: Duration = Duration::from_millis(100);

/// Most datagrams that quinn hands to the kernel in one call (its `MAX_TRANSMIT_SEGMENTS`).
const DATAGRAMS_PER_CALL: u16 = 10;
/// Most bytes that the kernel takes in one call: an IPv4 packet less its headers. It refuses more, and quinn
/// takes that for the loss of all of them, again and again.
const CALL_BYTES_MAX: u16 = 65_507;
/// Largest UDP payload that is tried, in bytes. The cost per packet outweighs the cost per byte. Where the path
/// takes less, MTU discovery finds the limit (RFC 8899).
const UDP_PAYLOAD_BYTES_MAX: u16 = CALL_BYTES_MAX / DATAGRAMS_PER_CALL;
/// Packets that a peer may receive before it must acknowledge at once; most acknowledgements are then
/// piggybacked on packets of the other direction.
const ACK_EVERY: u32 = 8;
/// How long a peer may delay the acknowledgement of fewer packets.
const ACK_DELAY_MAX: Duration = Duration::from_millis(5);
/// Shortest interval between two stateless resets, which answer packets of unknown connections. It bounds the
/// cost of random packets; a reset is always shorter than the packet it answers.
const RESET_INTERVAL: Duration = Duration::from_millis(20);

/// Why a connection was closed, as the code that the peer sees. The numbers are part of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CloseCode {
    Normal = 0,
    Removed = 1,
    Protocol = 2,
    Identity = 3,
    Busy = 4,
    Replaced = 5,
}

/// Closes a connection with a code and a readable reason. A connection that is already closed keeps its first
/// reason.
pub(crate) fn close(connection: &quinn::Connection, code: CloseCode) {
    if connection.close_reason().is_some() {
        return;
    }
    let reason: &[u8] = match code {
        CloseCode::Normal => b"",
        CloseCode::Removed => b"removed",
        CloseCode::Protocol => b"protocol violation",
        CloseCode::Identity => b"no acceptable certificate",
        CloseCode::Busy => b"busy",
        CloseCode::Replaced => b"replaced by a newer connection",
    };
    connection.close(VarInt::from_u32(code as u32), reason);
}

/// Converts quinn's error of a lost connection.
pub(crate) fn classify(error: &ConnectionError) -> PeerError {
    /// Codes from here to 0x1ff carry a TLS alert (RFC 9001, section 4.8).
    const CRYPTO_ERROR: u64 = 0x100;
    const CONNECTION_REFUSED: u64 = 0x2;
    match error {
        ConnectionError::TimedOut => PeerError::TimedOut,
        ConnectionError::Reset => PeerError::Restarted,
        ConnectionError::LocallyClosed => PeerError::Local,
        ConnectionError::TransportError(error) => match u64::from(error.code) {
            code @ CRYPTO_ERROR..=0x1ff => PeerError::Handshake { alert: (code - CRYPTO_ERROR) as u8 },
            _ => PeerError::Protocol,
        },
        ConnectionError::ConnectionClosed(close) => match u64::from(close.error_code) {
            code @ CRYPTO_ERROR..=0x1ff => PeerError::HandshakeRefused { alert: (code - CRYPTO_ERROR) as u8 },
            CONNECTION_REFUSED => PeerError::Busy,
            _ => PeerError::Protocol,
        },
        ConnectionError::ApplicationClosed(close) => {
            let is = |code: CloseCode| close.error_code == VarInt::from_u32(code as u32);
            if is(CloseCode::Normal) {
                PeerError::Closed
            } else if is(CloseCode::Removed) {
                PeerError::Removed
            } else if is(CloseCode::Busy) {
                PeerError::Busy
            } else if is(CloseCode::Replaced) {
                PeerError::Replaced
            } else if is(CloseCode::Identity) {
                /// `certificate_required`: the TLS alert with the same meaning.
                const CERTIFICATE_REQUIRED: u8 = 116;
                PeerError::HandshakeRefused { alert: CERTIFICATE_REQUIRED }
            } else {
                PeerError::Protocol
            }
        }
        ConnectionError::VersionMismatch | ConnectionError::CidsExhausted => PeerError::Protocol,
    }
}

/// The endpoint of a node on a bound socket, and the settings for dialling.
pub(crate) fn node_endpoint(
    socket: std::net::UdpSocket,
    config: &Config,
    identity: &NodeIdentity,
) -> Result<(Endpoint, ClientConfig), TransportError> {
    let server = accepting_config(config, identity)?;
    let endpoint = Endpoint::new(endpoint_config(identity), Some(server), socket, Arc::new(TokioRuntime))
        .map_err(TransportError::Bind)?;
    Ok((endpoint, dialling_config(config, identity)?))
}

/// The settings for accepting under an identity.
pub(crate) fn accepting_config(config: &Config, identity: &NodeIdentity) -> Result<ServerConfig, TransportError> {
    let crypto = QuicServerConfig::try_from(server_config(identity)?).map_err(|_| TransportError::CipherSuite)?;
    let mut server = ServerConfig::with_crypto(Arc::new(crypto));
    let mut accepting = transport_config(config);
    accepting
        .max_concurrent_uni_streams(VarInt::from_u32(2))
        .max_concurrent_bidi_streams(VarInt::from_u32(2))
        .receive_window(VarInt::from_u32(UNAUTHENTICATED_WINDOW_BYTES))
        .datagram_receive_buffer_size(Some(DATAGRAM_BUFFER_BYTES));
    server
        .transport_config(Arc::new(accepting))
        // A peer that changes its address dials again; migration would only add attack surface.
        .migration(false)
        .max_incoming(INCOMING_MAX)
        .incoming_buffer_size(INCOMING_BYTES_MAX)
        .incoming_buffer_size_total(INCOMING_BYTES_TOTAL_MAX);
    Ok(server)
}

/// The settings for dialling under an identity.
pub(crate) fn dialling_config(config: &Config, identity: &NodeIdentity) -> Result<ClientConfig, TransportError> {
    let crypto = QuicClientConfig::try_from(peer_client_config(identity)?).map_err(|_| TransportError::CipherSuite)?;
    let mut client = ClientConfig::new(Arc::new(crypto));
    let mut dialling = transport_config(config);
    dialling
        .keep_alive_interval(Some(config.keep_alive))
        // The accepting side opens only the welcome stream.
        .max_concurrent_uni_streams(VarInt::from_u32(1))
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .receive_window(connection_window(config))
        // Nothing is received here, but without a receive buffer quinn disables sending too.
        .datagram_receive_buffer_size(Some(DATAGRAM_BUFFER_BYTES));
    client.transport_config(Arc::new(dialling));
    Ok(client)
}

/// An endpoint that only dials, for a node without an identity.
pub(crate) fn joiner_endpoint(remote: SocketAddr) -> Result<Endpoint, TransportError> {
    let any: SocketAddr = if remote.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0_u16; 8], 0).into() };
    let socket = bind(any).map_err(TransportError::Bind)?;
    Endpoint::new(EndpointConfig::default(), None, socket, Arc::new(TokioRuntime)).map_err(TransportError::Bind)
}

/// Transport settings of both sides.
fn transport_config(config: &Config) -> TransportConfig {
    let mut transport = TransportConfig::default();
    let mut mtu = MtuDiscoveryConfig::default();
    mtu.upper_bound(UDP_PAYLOAD_BYTES_MAX);
    let mut acknowledge = AckFrequencyConfig::default();
    acknowledge.ack_eliciting_threshold(VarInt::from_u32(ACK_EVERY)).max_ack_delay(Some(ACK_DELAY_MAX));
    let idle_ms = u32::try_from(config.idle_timeout.as_millis()).unwrap_or(u32::MAX);
    transport
        .max_idle_timeout(Some(VarInt::from_u32(idle_ms).into()))
        .stream_receive_window(VarInt::from_u32(config.stream_window_bytes))
        .send_window(u64::from(config.stream_window_bytes) * 8)
        .datagram_send_buffer_size(DATAGRAM_BUFFER_BYTES)
        .mtu_discovery_config(Some(mtu))
        .ack_frequency_config(Some(acknowledge))
        .initial_rtt(INITIAL_RTT);
    transport
}

/// The receive window of a connection: four streams can be full at once.
pub(crate) fn connection_window(config: &Config) -> VarInt {
    VarInt::from_u32(config.stream_window_bytes * 4)
}

pub(crate) fn bind(listen: SocketAddr) -> io::Result<std::net::UdpSocket> {
    let socket = Socket::new(Domain::for_address(listen), Type::DGRAM, Some(Protocol::UDP))?;
    if listen.is_ipv6() && listen.ip().is_unspecified() {
        socket.set_only_v6(false)?;
    }
    // The kernel may grant less; that only costs throughput.
    let _ = socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES);
    let _ = socket.set_send_buffer_size(SOCKET_BUFFER_BYTES);
    socket.set_nonblocking(true)?;
    socket.bind(&listen.into())?;
    Ok(socket.into())
}

/// Endpoint settings. Reset tokens are derived from the node's key, so they survive a restart: a node that
/// was killed and restarted can send its peers an authentic stateless reset for their dead connections.
/// Otherwise the peers would keep sending until the idle timeout.
fn endpoint_config(identity: &NodeIdentity) -> EndpointConfig {
    let key = identity.key().derive_secret("flotilla transport v1: stateless reset tokens");
    let mut config = EndpointConfig::new(Arc::new(KeyedHash(key)));
    config.cid_generator(|| Box::new(RandomIds)).min_reset_interval(RESET_INTERVAL);
    config.max_udp_payload_size(UDP_PAYLOAD_BYTES_MAX).expect("more than 1,200 bytes");
    config
}

/// BLAKE3 in keyed mode, as quinn's HMAC key.
struct KeyedHash([u8; 32]);

impl HmacKey for KeyedHash {
    fn sign(&self, data: &[u8], signature_out: &mut [u8]) {
        blake3::Hasher::new_keyed(&self.0).update(data).finalize_xof().fill(signature_out);
    }

    fn signature_len(&self) -> usize {
        blake3::OUT_LEN
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        let expected = blake3::keyed_hash(&self.0, data);
        // `Hash` compares in constant time.
        match <[u8; blake3::OUT_LEN]>::try_from(signature) {
            Ok(given) if blake3::Hash::from_bytes(given) == expected => Ok(()),
            _ => Err(CryptoError),
        }
    }
}

/// Random connection ids. quinn's own generator signs ids with a key that changes with each run; it would
/// treat packets of an earlier run's connections as noise and not answer them with a reset.
struct RandomIds;

impl RandomIds {
    const BYTES: usize = 8;
}

impl ConnectionIdGenerator for RandomIds {
    fn generate_cid(&mut self) -> ConnectionId {
        ConnectionId::new(&rand::random::<[u8; Self::BYTES]>())
    }

    fn cid_len(&self) -> usize {
        Self::BYTES
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}
