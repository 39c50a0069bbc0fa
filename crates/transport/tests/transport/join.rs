//! The join protocol for nodes without an identity.

use bytes::Bytes;
use flotilla_identity::{ALPN_JOIN, CaFingerprint};
use flotilla_transport::{Config, JOIN_REQUEST_BYTES_MAX, PeerError, TransportError, join_call};

use crate::harness::{Node, RawClient, TIMEOUT, authority, config, identity};

const CLOSED_FOR_PROTOCOL: Result<u64, u64> = Ok(2);

#[tokio::test]
async fn a_joiner_is_answered_by_any_node_of_the_pinned_cluster() {
    let authority = authority();
    for id in [1, 2] {
        let node = Node::start(identity(&authority, id), config()).await;
        let request = Bytes::from(vec![b'x'; JOIN_REQUEST_BYTES_MAX]);
        let answer = join_call(node.address(), authority.fingerprint(), request, TIMEOUT).await.unwrap();
        assert_eq!(answer.len(), JOIN_REQUEST_BYTES_MAX + "welcome ".len());
    }
}

#[tokio::test]
async fn a_joiner_refuses_another_cluster() {
    let node = Node::start(identity(&authority(), 1), config()).await;
    let pinned = CaFingerprint([1; 32]);
    let refused = join_call(node.address(), pinned, Bytes::from_static(b"secret"), TIMEOUT).await;
    assert!(matches!(refused, Err(TransportError::JoinConnect(PeerError::Handshake { .. }))), "{refused:?}");
}

#[tokio::test]
async fn an_oversize_join_request_is_refused_on_both_sides() {
    let authority = authority();
    let node = Node::start(identity(&authority, 1), config()).await;
    let request = Bytes::from(vec![0; JOIN_REQUEST_BYTES_MAX + 1]);
    let refused = join_call(node.address(), authority.fingerprint(), request.clone(), TIMEOUT).await;
    assert!(matches!(refused, Err(TransportError::JoinTooLarge { .. })));

    let raw = RawClient::dial(&node, None, &authority, ALPN_JOIN).await.unwrap();
    let (mut send, _receive) = raw.connection.open_bi().await.unwrap();
    send.write_all(&[1]).await.unwrap();
    let _ = send.write_all(&request).await;
    let _ = send.finish();
    assert_eq!(raw.closed().await, CLOSED_FOR_PROTOCOL);
}

#[tokio::test]
async fn a_joiner_can_only_join() {
    let authority = authority();
    let mut node = Node::start(identity(&authority, 1), config()).await;
    let raw = RawClient::dial(&node, None, &authority, ALPN_JOIN).await.unwrap();
    // A frame, a datagram and a call as a peer would send them.
    let _frame = raw.write(&[1, 1, 0, 0, 0, 2, 1, b'x']).await;
    raw.connection.send_datagram(Bytes::from_static(&[1, b'x'])).unwrap();
    let (mut send, mut receive) = raw.connection.open_bi().await.unwrap();
    send.write_all(&[1, 3, 0, 0, 0, 11, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, b'x']).await.unwrap();
    send.finish().unwrap();
    // The call's bytes are taken as a join request; the answer shows that everything was received.
    let answer = receive.read_to_end(1000).await.unwrap();
    assert!(answer[1..].starts_with(b"welcome "));
    assert_eq!(node.drain(), []);
}

#[tokio::test]
async fn joins_are_bounded_in_number_and_rate() {
    let authority = authority();
    let narrow =
        Config { joins_max: 1, joins_per_second_max: u32::MAX, joins_per_second_per_address_max: u32::MAX, ..config() };
    let node = Node::start(identity(&authority, 1), narrow).await;
    let idle = RawClient::dial(&node, None, &authority, ALPN_JOIN).await.unwrap();
    let ask = || join_call(node.address(), authority.fingerprint(), Bytes::new(), TIMEOUT);
    // The idle join may not hold its permit yet.
    while ask().await.is_ok() {}
    assert!(matches!(ask().await, Err(TransportError::JoinLost(PeerError::Busy))));
    drop(idle);
    while ask().await.is_err() {}

    let slow = Node::start(identity(&authority, 2), Config { joins_per_second_max: 1, ..config() }).await;
    let ask = || join_call(slow.address(), authority.fingerprint(), Bytes::new(), TIMEOUT);
    while ask().await.is_ok() {}
}

#[tokio::test]
async fn one_address_cannot_hold_all_places_of_joins() {
    let authority = authority();
    let narrow = Config {
        joins_max: 2,
        joins_per_address_max: 1,
        joins_per_second_max: u32::MAX,
        joins_per_second_per_address_max: u32::MAX,
        ..config()
    };
    let node = Node::start(identity(&authority, 1), narrow).await;
    let _idle = RawClient::dial(&node, None, &authority, ALPN_JOIN).await.unwrap();
    let ask = || join_call(node.address(), authority.fingerprint(), Bytes::new(), TIMEOUT);
    // The idle join may not hold its place yet.
    while ask().await.is_ok() {}
    assert!(matches!(ask().await, Err(TransportError::JoinLost(PeerError::Busy))));
}
