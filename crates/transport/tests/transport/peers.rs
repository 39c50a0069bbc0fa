//! Which peers are connected or refused, and how connections are restored.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use flotilla_identity::{Authorities, ClusterAuthority, Life, NodeIdentity, NodeKey};
use flotilla_transport::{Breaker, Class, Config, PeerError, PeerState, PeerStatus, SendError};
use flotilla_types::{ClusterId, HostPort, NodeId};
use tokio::sync::oneshot;

use crate::harness::{CLUSTER, Event, Node, authority, config, identity};

const UNKNOWN_CA: u8 = 48;
const DECRYPT_ERROR: u8 = 51;
const BAD_CERTIFICATE: u8 = 42;
const CERTIFICATE_EXPIRED: u8 = 45;

#[tokio::test]
async fn a_node_of_another_authority_is_refused_by_both_sides() {
    // The first mints the same cluster id a second time, the second another id.
    for (cluster, alert) in [(CLUSTER, DECRYPT_ERROR), (ClusterId([8; 16]), UNKNOWN_CA)] {
        let mut one = Node::start(identity(&authority(), 1), config()).await;
        let theirs = ClusterAuthority::mint(cluster).unwrap();
        let mut two = Node::start(identity(&theirs, 2), config()).await;
        one.transport.set_peer(two.id(), two.address());
        two.transport.set_peer(one.id(), one.address());
        for (from, to) in [(&one, NodeId(2)), (&two, NodeId(1))] {
            assert_eq!(from.wait_open(to).await.last_error, Some(PeerError::Handshake { alert }));
            assert_eq!(from.transport.send(to, Class::Urgent, Bytes::new()), Err(SendError::Down));
        }
        assert!(one.drain().is_empty() && two.drain().is_empty());
    }
}

#[tokio::test]
async fn another_node_at_the_address_is_refused() {
    let authority = authority();
    let mut one = Node::start(identity(&authority, 1), config()).await;
    let two = Node::start(identity(&authority, 2), config()).await;
    one.transport.set_peer(NodeId(3), two.address());
    let status = one.wait_open(NodeId(3)).await;
    assert_eq!(status.last_error, Some(PeerError::Handshake { alert: BAD_CERTIFICATE }));
    assert!(one.drain().is_empty());
}

#[tokio::test]
async fn a_removed_node_learns_of_its_removal_and_is_never_connected() {
    let authority = authority();
    let mut one = Node::start(identity(&authority, 1), config()).await;
    let two = Node::start(identity(&authority, 2), config()).await;
    two.stop_admitting();
    one.transport.set_peer(two.id(), two.address());
    assert_eq!(one.next().await, Event::Peer(NodeId(2), PeerState::Refused));
    assert_eq!(one.wait_open(NodeId(2)).await.last_error, Some(PeerError::Removed));
}

#[tokio::test]
async fn removing_a_connected_node_closes_its_connection() {
    let (mut one, two) = Node::pair(config()).await;
    two.stop_admitting();
    two.transport.remove_peer(one.id());
    assert_eq!(one.next().await, Event::Peer(NodeId(2), PeerState::Disconnected));
    assert_eq!(one.next().await, Event::Peer(NodeId(2), PeerState::Refused));
}

#[tokio::test]
async fn forgetting_a_peer_closes_the_connection() {
    let (mut one, two) = Node::pair(config()).await;
    one.transport.remove_peer(two.id());
    assert_eq!(one.transport.send(two.id(), Class::Bulk, Bytes::new()), Err(SendError::UnknownPeer));
    assert!(one.transport.peers().is_empty());
    one.wait(Event::Peer(NodeId(2), PeerState::Disconnected)).await;
}

#[tokio::test]
async fn a_peer_that_closed_and_restarted_is_connected_again() {
    let authority = authority();
    let mut one = Node::start(identity(&authority, 1), config()).await;
    let two = Node::start(identity(&authority, 2), config()).await;
    one.connect(&two).await;
    let address = two.address();
    two.transport.close().await;
    drop(two);
    one.wait(Event::Peer(NodeId(2), PeerState::Disconnected)).await;
    let mut two = Node::start(identity(&authority, 2), Config { listen: address, ..config() }).await;
    one.wait(Event::Peer(NodeId(2), PeerState::Connected)).await;
    one.transport.send(two.id(), Class::Bulk, Bytes::from_static(b"again")).unwrap();
    two.wait(Event::Frame(NodeId(1), Class::Bulk, Bytes::from_static(b"again"))).await;
}

/// Runs a node in its own thread and runtime, lets `one` connect to it, and drops the runtime, so that no
/// close is sent.
async fn connect_and_kill(one: &mut Node, two: NodeIdentity) -> SocketAddr {
    let (started, address) = oneshot::channel();
    let (kill, killed) = oneshot::channel::<()>();
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let node = runtime.block_on(Node::start(two, config()));
        started.send(node.address()).unwrap();
        let _ = runtime.block_on(killed);
        drop(runtime);
        drop(node);
    });
    let address = address.await.unwrap();
    one.transport.set_peer(NodeId(2), address);
    one.wait(Event::Peer(NodeId(2), PeerState::Connected)).await;
    kill.send(()).unwrap();
    thread.join().unwrap();
    address
}

#[tokio::test]
async fn a_killed_peer_resets_old_connections_after_its_restart() {
    let authority = authority();
    // Far above the test's timeout, so that only the reset can end the connection.
    let patient = Config { idle_timeout: Duration::from_secs(300), ..config() };
    let mut one = Node::start(identity(&authority, 1), patient).await;
    let two = identity(&authority, 2);
    let address = connect_and_kill(&mut one, two.clone()).await;
    assert_eq!(one.status(NodeId(2)).breaker, Breaker::Closed, "the loss is not detected yet");
    let _two = Node::start(two, Config { listen: address, ..config() }).await;
    one.transport.send(NodeId(2), Class::Urgent, Bytes::from_static(b"are you there")).unwrap();
    one.wait(Event::Peer(NodeId(2), PeerState::Disconnected)).await;
    one.wait(Event::Peer(NodeId(2), PeerState::Connected)).await;
    assert_eq!(one.status(NodeId(2)).last_error, Some(PeerError::Restarted));
}

#[tokio::test]
async fn a_peer_that_dials_this_node_is_dialled_back_at_once() {
    let authority = authority();
    let slow = Config { backoff_min: Duration::from_secs(300), backoff_max: Duration::from_secs(300), ..config() };
    let mut one = Node::start(identity(&authority, 1), slow).await;
    let gone = Node::start(identity(&authority, 2), config()).await;
    one.connect(&gone).await;
    let address = gone.address();
    gone.transport.close().await;
    drop(gone);
    one.wait_open(NodeId(2)).await;
    let mut two = Node::start(identity(&authority, 2), Config { listen: address, ..config() }).await;
    two.connect(&one).await;
    one.wait(Event::Peer(NodeId(2), PeerState::Connected)).await;
}

#[tokio::test]
async fn a_new_address_is_dialled_and_the_old_connection_closed() {
    let authority = authority();
    let mut one = Node::start(identity(&authority, 1), config()).await;
    let two = identity(&authority, 2);
    let before = Node::start(two.clone(), config()).await;
    one.connect(&before).await;
    let mut after = Node::start(two, config()).await;
    one.transport.set_peer(NodeId(2), after.address());
    one.wait(Event::Peer(NodeId(2), PeerState::Disconnected)).await;
    one.wait(Event::Peer(NodeId(2), PeerState::Connected)).await;
    one.transport.send(NodeId(2), Class::Urgent, Bytes::from_static(b"moved")).unwrap();
    after.wait(Event::Frame(NodeId(1), Class::Urgent, Bytes::from_static(b"moved"))).await;
    assert_eq!(one.status(NodeId(2)).address, after.address().into());
}

#[tokio::test]
async fn a_peer_that_moved_is_found_where_its_own_connection_comes_from() {
    let authority = authority();
    let mut one = Node::start(identity(&authority, 1), config()).await;
    let two = identity(&authority, 2);
    let before = Node::start(two.clone(), config()).await;
    one.connect(&before).await;
    let old = before.address();
    before.transport.close().await;
    drop(before);
    one.wait(Event::Peer(NodeId(2), PeerState::Disconnected)).await;
    // `one` does not get the address of the peer.
    let mut after = Node::start(two, config()).await;
    after.connect(&one).await;
    one.wait(Event::Peer(NodeId(2), PeerState::Connected)).await;
    let status = one.status(NodeId(2));
    assert_eq!((status.address, status.connected), (old.into(), Some(after.address())));
    // Once it is said to be there, the connection stays.
    one.transport.set_peer(NodeId(2), after.address());
    assert_eq!(one.call(after.id(), b"still here").await, "still here");
    assert_eq!(one.drain(), []);
}

#[tokio::test]
async fn a_name_is_dialled_where_it_resolves_and_one_that_does_not_is_reported() {
    let authority = authority();
    let mut one = Node::start(identity(&authority, 1), config()).await;
    let two = Node::start(identity(&authority, 2), config()).await;
    let named = |host: &str| format!("{host}:{}", two.address().port()).parse::<HostPort>().unwrap();
    one.transport.set_peer(NodeId(2), named("missing.invalid"));
    let unresolved = |status: &PeerStatus| status.last_error == Some(PeerError::Unresolved);
    one.wait_status(NodeId(2), unresolved).await;
    one.transport.set_peer(NodeId(2), named("localhost"));
    one.wait(Event::Peer(NodeId(2), PeerState::Connected)).await;
}

#[tokio::test]
async fn the_node_at_an_address_is_identified_by_its_certificate() {
    let authority = authority();
    let one = Node::start(identity(&authority, 1), config()).await;
    let mut two = Node::start(identity(&authority, 2), config()).await;
    two.connect(&one).await;
    assert_eq!(one.transport.identify(two.address()).await, Ok(NodeId(2)));
    assert_eq!(one.transport.identify(one.address()).await, Ok(NodeId(1)));
    // It replaces no connection, and asks for nothing.
    assert_eq!((two.drain(), two.call(one.id(), b"ahoy").await), (vec![], "ahoy".into()));
    let foreign = Node::start(identity(&ClusterAuthority::mint(ClusterId([8; 16])).unwrap(), 2), config()).await;
    assert!(matches!(one.transport.identify(foreign.address()).await, Err(PeerError::Handshake { .. })));
}

#[tokio::test]
async fn a_newer_connection_of_the_same_node_replaces_the_older() {
    let authority = authority();
    let two = Node::start(identity(&authority, 2), config()).await;
    let same = identity(&authority, 1);
    let slow = Config { backoff_min: Duration::from_secs(300), backoff_max: Duration::from_secs(300), ..config() };
    let mut older = Node::start(same.clone(), slow).await;
    older.connect(&two).await;
    let mut newer = Node::start(same, config()).await;
    newer.connect(&two).await;
    assert_eq!(older.wait_open(NodeId(2)).await.last_error, Some(PeerError::Replaced));
    assert_eq!(newer.call(two.id(), b"mine").await, "mine");
}

#[tokio::test]
async fn connected_peers_are_bounded() {
    let authority = authority();
    let two = Node::start(identity(&authority, 2), Config { connections_max: 1, ..config() }).await;
    let mut one = Node::start(identity(&authority, 1), config()).await;
    one.connect(&two).await;
    let three = Node::start(identity(&authority, 3), config()).await;
    three.transport.set_peer(NodeId(2), two.address());
    assert_eq!(three.wait_open(NodeId(2)).await.last_error, Some(PeerError::Busy));
    assert_eq!(one.call(two.id(), b"still here").await, "still here");
    // A slot that becomes free is reused.
    one.transport.close().await;
    three.wait_status(NodeId(2), |status| status.breaker == Breaker::Closed).await;
}

/// The same node, certified by another authority that the last one has signed.
fn moved(identity: &NodeIdentity, from: &ClusterAuthority, to: &ClusterAuthority) -> NodeIdentity {
    let life = Life { issued_s: 1_800_000_000, valid_s: 3_600 };
    let cert = to.issue(identity.node(), &identity.key().csr_der().unwrap(), u64::MAX).unwrap();
    let authorities = Authorities {
        current: to.cert_der().clone(),
        cross: Some(from.cross_sign(to).unwrap()),
        previous: Some(from.cert_der().clone()),
    };
    identity.renewed(authorities, cert, life).unwrap()
}

#[tokio::test]
async fn a_new_identity_is_used_by_new_connections_while_the_others_go_on() {
    let (old, new) = (authority(), authority());
    let [first, second, third] = [1, 2, 3].map(|node| identity(&old, node));
    let mut one = Node::start(first.clone(), config()).await;
    let mut two = Node::start(second.clone(), config()).await;
    let mut three = Node::start(third, config()).await;
    one.connect(&two).await;

    // During a rotation nodes of both authorities connect, also those that know only the old one.
    let second = moved(&second, &old, &new);
    two.transport.set_identity(&second).unwrap();
    two.connect(&one).await;
    three.connect(&two).await;
    // By the signature of the old authority, which is all that this one knows.
    assert_eq!(one.transport.identify(two.address()).await, Ok(NodeId(2)));
    let first = moved(&first, &old, &new);
    one.transport.set_identity(&first).unwrap();
    assert_eq!(one.transport.identify(three.address()).await, Ok(NodeId(3)), "certified by the old one still");
    assert_eq!(one.call(NodeId(2), b"by the connection of before").await, "by the connection of before");

    // Afterwards a certificate of the old one is refused by new connections.
    two.transport.set_identity(&second.without_previous()).unwrap();
    assert_eq!(three.call(NodeId(2), b"still open").await, "still open");
    two.transport.close_refused();
    assert_eq!(three.call(NodeId(2), b"and admitted").await, "and admitted");
    assert!(!one.drain().contains(&Event::Peer(NodeId(2), PeerState::Disconnected)));
    two.stop_admitting();
    two.transport.close_refused();
    three.wait(Event::Peer(NodeId(2), PeerState::Disconnected)).await;
    let refused = |error| matches!(error, Some(PeerError::HandshakeRefused { .. }));
    three.wait_status(NodeId(2), |status| refused(status.last_error)).await;
    one.transport.set_identity(&first.without_previous()).unwrap();
    assert_eq!(one.transport.identify(two.address()).await, Ok(NodeId(2)));
    assert!(matches!(one.transport.identify(three.address()).await, Err(PeerError::Handshake { .. })));
}

#[tokio::test]
async fn an_expired_certificate_is_refused() {
    let authority = authority();
    let key = NodeKey::generate().unwrap();
    // 2021.
    let cert = authority.issue(NodeId(2), &key.csr_der().unwrap(), 1_609_459_200 + 31_536_000).unwrap();
    let expired = NodeIdentity::new(CLUSTER, NodeId(2), authority.cert_der().clone(), cert, key);
    assert!(expired.is_err(), "not even accepted from the disk, as it was issued before this program was written");

    let key = NodeKey::generate().unwrap();
    let cert = authority.issue(NodeId(2), &key.csr_der().unwrap(), 1_767_225_600).unwrap();
    let expired = NodeIdentity::new(CLUSTER, NodeId(2), authority.cert_der().clone(), cert, key).unwrap();
    let one = Node::start(identity(&authority, 1), config()).await;
    let two = Node::start(expired, config()).await;
    two.transport.set_peer(one.id(), one.address());
    one.transport.set_peer(two.id(), two.address());
    let refused = |error| matches!(error, Some(PeerError::HandshakeRefused { alert: CERTIFICATE_EXPIRED }));
    two.wait_status(NodeId(1), |status| refused(status.last_error)).await;
    let refuses = |error| matches!(error, Some(PeerError::Handshake { alert: CERTIFICATE_EXPIRED }));
    one.wait_status(NodeId(2), |status| refuses(status.last_error)).await;
}
