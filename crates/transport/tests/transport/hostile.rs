//! Bad input: its sender loses the connection, and other peers are not affected.

use bytes::Bytes;
use flotilla_identity::{ALPN_PEER, ClusterAuthority};
use flotilla_transport::{Class, Config};
use flotilla_types::NodeId;

use crate::harness::{CLUSTER, Event, Node, RawClient, authority, close_code, config, identity};

const CLOSED_FOR_PROTOCOL: Result<u64, u64> = Ok(2);
const CLOSED_FOR_IDENTITY: Result<u64, u64> = Ok(3);
const NO_APPLICATION_PROTOCOL: Result<u64, u64> = Err(0x100 + 120);
const DECRYPT_ERROR: Result<u64, u64> = Err(0x100 + 51);
const CONNECTION_REFUSED: Result<u64, u64> = Err(2);

/// A node to attack, and an honest node connected to it.
async fn under_attack(config: Config) -> (ClusterAuthority, Node, Node) {
    let authority = authority();
    let honest = identity(&authority, 1);
    let mut one = Node::start(honest, self::config()).await;
    let target = Node::start(identity(&authority, 2), config).await;
    one.connect(&target).await;
    (authority, one, target)
}

#[tokio::test]
async fn an_unknown_protocol_fails_the_handshake() {
    let (authority, one, two) = under_attack(config()).await;
    let peer = identity(&authority, 9);
    let refused = RawClient::dial(&two, Some(&peer), &authority, b"h3").await.err().expect("no connection");
    assert_eq!(close_code(&refused), NO_APPLICATION_PROTOCOL);
    assert_eq!(one.call(two.id(), b"fine").await, "fine");
}

#[tokio::test]
async fn the_peer_protocol_without_a_certificate_is_refused() {
    let (authority, _one, mut two) = under_attack(config()).await;
    let raw = RawClient::dial(&two, None, &authority, ALPN_PEER).await.unwrap();
    // Sent before the refusal arrives. It must not reach the handler.
    let _ = raw.connection.send_datagram(Bytes::from_static(&[1, b'x']));
    assert_eq!(raw.closed().await, CLOSED_FOR_IDENTITY);
    assert_eq!(two.drain(), []);
}

#[tokio::test]
async fn a_certificate_of_another_authority_fails_the_handshake() {
    let (authority, _one, mut two) = under_attack(config()).await;
    // The certificate claims to be node 1 of the same cluster.
    let forged = identity(&ClusterAuthority::mint(CLUSTER).unwrap(), 1);
    let code = match RawClient::dial(&two, Some(&forged), &authority, ALPN_PEER).await {
        // In TLS 1.3 the client finishes its handshake before the server has checked its certificate.
        Ok(raw) => raw.closed().await,
        Err(error) => close_code(&error),
    };
    assert_eq!(code, DECRYPT_ERROR);
    assert_eq!(two.drain(), []);
}

#[tokio::test]
async fn a_client_with_the_nodes_own_identity_is_refused() {
    let authority = authority();
    let own = identity(&authority, 2);
    let two = Node::start(own.clone(), config()).await;
    let raw = RawClient::dial(&two, Some(&own), &authority, ALPN_PEER).await.unwrap();
    assert_eq!(raw.closed().await, CLOSED_FOR_IDENTITY);
}

#[tokio::test]
async fn malformed_frames_close_only_their_connection() {
    let (authority, one, mut two) = under_attack(Config { frame_bytes_max: 1024, ..config() }).await;
    let cases: [(&str, &[u8]); 8] = [
        ("unknown stream version", &[9, 1]),
        ("unknown class", &[1, 77]),
        ("the welcome, which only the accepting side sends", &[1, 0]),
        ("a call class on a one-way stream", &[1, 3]),
        ("oversize", &[1, 2, 0, 0, 4, 2, 1]),
        ("absurd length", &[1, 2, 0xff, 0xff, 0xff, 0xff, 1]),
        ("zero length", &[1, 2, 0, 0, 0, 0, 1]),
        ("unknown frame version", &[1, 2, 0, 0, 0, 2, 8, 1]),
    ];
    for (case, bytes) in cases {
        let raw = RawClient::dial(&two, Some(&identity(&authority, 9)), &authority, ALPN_PEER).await.unwrap();
        let _stream = raw.write(bytes).await;
        assert_eq!(raw.closed().await, CLOSED_FOR_PROTOCOL, "{case}");
    }
    for (case, bytes) in [("truncated frame", &[1, 2, 0, 0, 0, 9, 1, 7][..]), ("truncated stream header", &[1][..])] {
        let raw = RawClient::dial(&two, Some(&identity(&authority, 9)), &authority, ALPN_PEER).await.unwrap();
        let mut stream = raw.write(bytes).await;
        stream.finish().unwrap();
        assert_eq!(raw.closed().await, CLOSED_FOR_PROTOCOL, "{case}");
    }
    assert_eq!(two.drain(), []);
    assert_eq!(one.call(two.id(), b"fine").await, "fine");
}

#[tokio::test]
async fn malformed_calls_close_only_their_connection() {
    let (authority, one, two) = under_attack(config()).await;
    let cases: [(&str, &[u8]); 3] = [
        ("too short for an id", &[1, 3, 0, 0, 0, 3, 1, 0, 0]),
        ("an answer without a request", &[1, 3, 0, 0, 0, 10, 1, 1, 0, 0, 0, 0, 0, 0, 0, 1]),
        ("a one-way class on a call stream", &[1, 1]),
    ];
    for (case, bytes) in cases {
        let raw = RawClient::dial(&two, Some(&identity(&authority, 9)), &authority, ALPN_PEER).await.unwrap();
        let (mut send, _receive) = raw.connection.open_bi().await.unwrap();
        send.write_all(bytes).await.unwrap();
        assert_eq!(raw.closed().await, CLOSED_FOR_PROTOCOL, "{case}");
    }
    assert_eq!(one.call(two.id(), b"fine").await, "fine");
}

#[tokio::test]
async fn datagrams_of_an_unknown_version_are_dropped() {
    let (authority, _one, mut two) = under_attack(config()).await;
    let raw = RawClient::dial(&two, Some(&identity(&authority, 9)), &authority, ALPN_PEER).await.unwrap();
    // Datagrams of one connection arrive in order on loopback, so the last one shows that the first two were
    // processed.
    for packet in [&[][..], &[8, b'x'][..], &[1, b'y'][..]] {
        raw.connection.send_datagram(Bytes::copy_from_slice(packet)).unwrap();
    }
    assert_eq!(two.next().await, Event::Datagram(NodeId(9), Bytes::from_static(b"y")));
}

#[tokio::test]
async fn random_packets_on_the_port_are_ignored() {
    let (_, one, mut two) = under_attack(config()).await;
    let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut state = 1_u64;
    for round in 0..2000_usize {
        let packet: Vec<u8> = (0..round % 1400)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (state >> 56) as u8
            })
            .collect();
        socket.send_to(&packet, two.address()).await.unwrap();
        if round % 100 == 0 {
            assert_eq!(one.call(two.id(), b"fine").await, "fine");
        }
    }
    assert!(two.drain().iter().all(|event| matches!(event, Event::Call(NodeId(1), _))));
}

#[tokio::test]
async fn unauthenticated_connections_from_one_address_are_bounded() {
    let (authority, one, two) = under_attack(Config { unauthenticated_per_address_max: 2, ..config() }).await;
    let mut clients = Vec::new();
    let refused = loop {
        match RawClient::dial(&two, None, &authority, flotilla_identity::ALPN_JOIN).await {
            Ok(raw) => clients.push(raw),
            Err(error) => break error,
        }
        assert!(clients.len() <= 2);
    };
    assert_eq!(close_code(&refused), CONNECTION_REFUSED);
    assert_eq!(one.call(two.id(), b"fine").await, "fine");
    one.transport.send(two.id(), Class::Urgent, Bytes::new()).unwrap();
}
