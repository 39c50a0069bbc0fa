//! Bad input: whoever sends it loses the connection, and nobody else notices.

use bytes::Bytes;
use flotilla_identity::{ALPN_PEER, ClusterAuthority};
use flotilla_transport::{Class, Config};
use flotilla_types::NodeId;

use crate::harness::{CLUSTER, Event, Node, Raw, authority, close_code, config, identity};

const CLOSED_FOR_PROTOCOL: Result<u64, u64> = Ok(2);
const CLOSED_FOR_IDENTITY: Result<u64, u64> = Ok(3);
const NO_APPLICATION_PROTOCOL: Result<u64, u64> = Err(0x100 + 120);
const DECRYPT_ERROR: Result<u64, u64> = Err(0x100 + 51);
const CONNECTION_REFUSED: Result<u64, u64> = Err(2);

/// A node under attack, and an honest one connected to it.
async fn scene(config: Config) -> (ClusterAuthority, Node, Node) {
    let authority = authority();
    let honest = identity(&authority, 1);
    let mut one = Node::start(honest, self::config()).await;
    let target = Node::start(identity(&authority, 2), config).await;
    one.connect(&target).await;
    (authority, one, target)
}

#[tokio::test]
async fn an_unknown_protocol_ends_the_handshake() {
    let (authority, one, two) = scene(config()).await;
    let peer = identity(&authority, 9);
    let refused = Raw::dial(&two, Some(&peer), &authority, b"h3").await.err().expect("no connection");
    assert_eq!(close_code(&refused), NO_APPLICATION_PROTOCOL);
    assert_eq!(one.call(two.id(), b"fine").await, "fine");
}

#[tokio::test]
async fn the_peer_protocol_without_a_certificate_is_refused() {
    let (authority, _one, mut two) = scene(config()).await;
    let raw = Raw::dial(&two, None, &authority, ALPN_PEER).await.unwrap();
    // Sent before the refusal arrives; must not reach the handler.
    let _ = raw.connection.send_datagram(Bytes::from_static(&[1, b'x']));
    assert_eq!(raw.closed().await, CLOSED_FOR_IDENTITY);
    assert_eq!(two.drain(), []);
}

#[tokio::test]
async fn a_certificate_of_another_authority_ends_the_handshake() {
    let (authority, _one, mut two) = scene(config()).await;
    // It claims to be node 1 of the same cluster.
    let forged = identity(&ClusterAuthority::mint(CLUSTER).unwrap(), 1);
    let code = match Raw::dial(&two, Some(&forged), &authority, ALPN_PEER).await {
        // In TLS 1.3 the client is done before the server has looked at its certificate.
        Ok(raw) => raw.closed().await,
        Err(error) => close_code(&error),
    };
    assert_eq!(code, DECRYPT_ERROR);
    assert_eq!(two.drain(), []);
}

#[tokio::test]
async fn someone_with_the_nodes_own_identity_is_refused() {
    let authority = authority();
    let own = identity(&authority, 2);
    let two = Node::start(own.clone(), config()).await;
    let raw = Raw::dial(&two, Some(&own), &authority, ALPN_PEER).await.unwrap();
    assert_eq!(raw.closed().await, CLOSED_FOR_IDENTITY);
}

#[tokio::test]
async fn damaged_frames_close_only_the_connection_they_came_on() {
    let (authority, one, mut two) = scene(Config { frame_bytes_max: 1024, ..config() }).await;
    let cases: [(&str, &[u8]); 8] = [
        ("unknown stream version", &[9, 1]),
        ("unknown class", &[1, 77]),
        ("the welcome, which is ours to send", &[1, 0]),
        ("a call class on a one-way stream", &[1, 3]),
        ("oversize", &[1, 2, 0, 0, 4, 2, 1]),
        ("absurd length", &[1, 2, 0xff, 0xff, 0xff, 0xff, 1]),
        ("zero length", &[1, 2, 0, 0, 0, 0, 1]),
        ("unknown frame version", &[1, 2, 0, 0, 0, 2, 8, 1]),
    ];
    for (case, bytes) in cases {
        let raw = Raw::dial(&two, Some(&identity(&authority, 9)), &authority, ALPN_PEER).await.unwrap();
        let _stream = raw.write(bytes).await;
        assert_eq!(raw.closed().await, CLOSED_FOR_PROTOCOL, "{case}");
    }
    for (case, bytes) in [("half a frame", &[1, 2, 0, 0, 0, 9, 1, 7][..]), ("half a beginning", &[1][..])] {
        let raw = Raw::dial(&two, Some(&identity(&authority, 9)), &authority, ALPN_PEER).await.unwrap();
        let mut stream = raw.write(bytes).await;
        stream.finish().unwrap();
        assert_eq!(raw.closed().await, CLOSED_FOR_PROTOCOL, "{case}");
    }
    assert_eq!(two.drain(), []);
    assert_eq!(one.call(two.id(), b"fine").await, "fine");
}

#[tokio::test]
async fn damaged_calls_close_only_the_connection_they_came_on() {
    let (authority, one, two) = scene(config()).await;
    let cases: [(&str, &[u8]); 3] = [
        ("too short for an id", &[1, 3, 0, 0, 0, 3, 1, 0, 0]),
        ("an answer nobody asked for", &[1, 3, 0, 0, 0, 10, 1, 1, 0, 0, 0, 0, 0, 0, 0, 1]),
        ("a one-way class on a call stream", &[1, 1]),
    ];
    for (case, bytes) in cases {
        let raw = Raw::dial(&two, Some(&identity(&authority, 9)), &authority, ALPN_PEER).await.unwrap();
        let (mut send, _receive) = raw.connection.open_bi().await.unwrap();
        send.write_all(bytes).await.unwrap();
        assert_eq!(raw.closed().await, CLOSED_FOR_PROTOCOL, "{case}");
    }
    assert_eq!(one.call(two.id(), b"fine").await, "fine");
}

#[tokio::test]
async fn datagrams_of_an_unknown_version_are_dropped() {
    let (authority, _one, mut two) = scene(config()).await;
    let raw = Raw::dial(&two, Some(&identity(&authority, 9)), &authority, ALPN_PEER).await.unwrap();
    // Datagrams of one connection arrive in order on loopback; the last one shows that the first two were seen.
    for packet in [&[][..], &[8, b'x'][..], &[1, b'y'][..]] {
        raw.connection.send_datagram(Bytes::copy_from_slice(packet)).unwrap();
    }
    assert_eq!(two.next().await, Event::Datagram(NodeId(9), Bytes::from_static(b"y")));
}

#[tokio::test]
async fn noise_on_the_port_does_nothing() {
    let (_, one, mut two) = scene(config()).await;
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
async fn strangers_from_one_address_are_bounded() {
    let (authority, one, two) = scene(Config { strangers_per_address_max: 2, ..config() }).await;
    let mut strangers = Vec::new();
    let refused = loop {
        match Raw::dial(&two, None, &authority, flotilla_identity::ALPN_JOIN).await {
            Ok(raw) => strangers.push(raw),
            Err(error) => break error,
        }
        assert!(strangers.len() <= 2);
    };
    assert_eq!(close_code(&refused), CONNECTION_REFUSED);
    assert_eq!(one.call(two.id(), b"fine").await, "fine");
    one.transport.send(two.id(), Class::Urgent, Bytes::new()).unwrap();
}
