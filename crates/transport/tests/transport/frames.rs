//! One-way frames and datagrams.

use bytes::Bytes;
use flotilla_transport::{Class, Config, DATAGRAM_BYTES_MAX, PeerState, SendError};
use flotilla_types::NodeId;

use crate::harness::{Event, Node, authority, config, identity};

#[tokio::test]
async fn frames_arrive_whole_and_in_order_within_their_class() {
    let (one, mut two) = Node::pair(config()).await;
    // Small frames share a write; large ones do not.
    let sent: Vec<Bytes> = (0..600_usize).map(|i| vec![i as u8; (i % 7) * (i % 7) * 1000 + i % 3].into()).collect();
    for frame in &sent {
        one.transport.send(two.id(), Class::Bulk, frame.clone()).unwrap();
        one.transport.send(two.id(), Class::Urgent, frame.slice(..frame.len().min(10))).unwrap();
    }
    let (mut bulk, mut urgent) = (Vec::new(), Vec::new());
    while bulk.len() < sent.len() || urgent.len() < sent.len() {
        match two.next().await {
            Event::Frame(NodeId(1), Class::Bulk, frame) => bulk.push(frame),
            Event::Frame(NodeId(1), Class::Urgent, frame) => urgent.push(frame),
            other => panic!("{other:?}"),
        }
    }
    assert!(bulk == sent);
    assert!(urgent.iter().zip(&sent).all(|(got, sent)| got[..] == sent[..sent.len().min(10)]));
}

#[tokio::test]
async fn the_sender_is_the_node_in_the_certificate() {
    let authority = authority();
    let mut three = Node::start(identity(&authority, 3), config()).await;
    for id in [1, 2] {
        let mut node = Node::start(identity(&authority, id), config()).await;
        node.connect(&three).await;
        node.transport.send(NodeId(3), Class::Urgent, Bytes::from_static(b"hi")).unwrap();
        three.wait(Event::Frame(NodeId(id), Class::Urgent, Bytes::from_static(b"hi"))).await;
    }
}

#[tokio::test]
async fn datagrams_up_to_their_limit_arrive() {
    let (one, mut two) = Node::pair(config()).await;
    let packet = Bytes::from(vec![5; DATAGRAM_BYTES_MAX]);
    one.transport.datagram(two.id(), packet.clone()).unwrap();
    two.wait(Event::Datagram(NodeId(1), packet)).await;
    let larger = Bytes::from(vec![5; DATAGRAM_BYTES_MAX + 1]);
    let refused = one.transport.datagram(two.id(), larger);
    assert_eq!(refused, Err(SendError::TooLarge { bytes_max: DATAGRAM_BYTES_MAX }));
}

#[tokio::test]
async fn a_full_queue_is_busy_until_it_drains() {
    let (one, mut two) = Node::pair(Config { queue_frames_max: 4, ..config() }).await;
    let frame = Bytes::from_static(b"frame");
    // There is no await, so nothing can leave the queue.
    for _ in 0..4 {
        one.transport.send(two.id(), Class::Bulk, frame.clone()).unwrap();
    }
    assert_eq!(one.transport.send(two.id(), Class::Bulk, frame.clone()), Err(SendError::Busy));
    one.transport.send(two.id(), Class::Urgent, frame.clone()).expect("other classes have their own queue");
    for _ in 0..4 {
        two.wait(Event::Frame(NodeId(1), Class::Bulk, frame.clone())).await;
    }
    one.transport.send(two.id(), Class::Bulk, frame).unwrap();
}

#[tokio::test]
async fn a_queue_is_bounded_in_bytes_but_an_empty_one_accepts_a_larger_frame() {
    let (one, mut two) = Node::pair(Config { queue_bytes_max: 1000, ..config() }).await;
    let large = Bytes::from(vec![1; 5000]);
    one.transport.send(two.id(), Class::Bulk, large.clone()).unwrap();
    assert_eq!(one.transport.send(two.id(), Class::Bulk, Bytes::from_static(b"x")), Err(SendError::Busy));
    two.wait(Event::Frame(NodeId(1), Class::Bulk, large)).await;
}

#[tokio::test]
async fn invalid_sends_are_refused_with_the_reason() {
    let (one, mut two) = Node::pair(Config { frame_bytes_max: 2000, ..config() }).await;
    let send = |to: u64, class, bytes| one.transport.send(NodeId(to), class, Bytes::from(vec![0; bytes]));
    assert_eq!(send(9, Class::Bulk, 1), Err(SendError::UnknownPeer));
    assert_eq!(send(1, Class::Bulk, 1), Err(SendError::UnknownPeer));
    assert_eq!(send(2, Class::Rpc, 1), Err(SendError::WrongClass));
    assert_eq!(send(2, Class::Bulk, 2001), Err(SendError::TooLarge { bytes_max: 2000 }));
    assert_eq!(send(2, Class::Bulk, 2000), Ok(()));
    two.wait(Event::Frame(NodeId(1), Class::Bulk, Bytes::from(vec![0; 2000]))).await;
}

#[tokio::test]
async fn closing_delivers_queued_frames() {
    let (mut one, mut two) = Node::pair(config()).await;
    let frames: Vec<Bytes> = (0..200_u8).map(|i| vec![i; 3000].into()).collect();
    for frame in &frames {
        one.transport.send(two.id(), Class::Bulk, frame.clone()).unwrap();
    }
    one.transport.close().await;
    for frame in frames {
        assert_eq!(two.next().await, Event::Frame(NodeId(1), Class::Bulk, frame));
    }
    one.wait(Event::Peer(NodeId(2), PeerState::Disconnected)).await;
    assert_eq!(one.transport.send(two.id(), Class::Bulk, Bytes::new()), Err(SendError::UnknownPeer));
}
