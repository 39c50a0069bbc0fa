//! Requests and answers.

use std::time::Duration;

use bytes::Bytes;
use flotilla_transport::{CallError, Class, Config, MaybeExecuted, NotSent};
use flotilla_types::NodeId;

use crate::harness::{Event, Node, TIMEOUT, authority, config, identity};

const HOLD: Bytes = Bytes::from_static(b"hold");
const SHORT_DEADLINE: Duration = Duration::from_millis(30);

#[tokio::test]
async fn answers_may_overtake_each_other() {
    let (one, mut two) = Node::pair(config()).await;
    let held = one.call(two.id(), b"hold");
    let overtaking = async {
        two.wait(Event::Call(NodeId(1), HOLD)).await;
        assert_eq!(one.call(two.id(), b"quick").await, "quick");
        two.release(1);
    };
    let (held, ()) = tokio::join!(held, overtaking);
    assert_eq!(held, "hold");
}

#[tokio::test]
async fn many_calls_share_the_stream() {
    let (one, two) = Node::pair(config()).await;
    many_calls(&std::sync::Arc::new(one), &two).await;
}

/// Full batches of the largest packets go out in one call, which the kernel must take: what it refuses counts
/// as lost, however often it is sent.
#[tokio::test]
async fn bursts_of_large_packets_get_through() {
    for _ in 0..20 {
        let (one, two) = Node::pair(config()).await;
        let one = std::sync::Arc::new(one);
        // The largest packets are found by and by.
        for _ in 0..3 {
            many_calls(&one, &two).await;
        }
    }
}

/// Many calls at a time, of all sizes up to 2,000 bytes.
async fn many_calls(one: &std::sync::Arc<Node>, two: &Node) {
    let mut calls = tokio::task::JoinSet::new();
    for i in 0..500_u32 {
        let (one, to) = (one.clone(), two.id());
        calls.spawn(async move {
            let request = Bytes::from(i.to_be_bytes().repeat(1 + i as usize % 500));
            assert_eq!(one.transport.call(to, Class::Rpc, request.clone(), TIMEOUT).await, Ok(request));
        });
    }
    while let Some(done) = calls.join_next().await {
        done.unwrap();
    }
}

#[tokio::test]
async fn a_large_object_does_not_block_calls() {
    let (one, two) = Node::pair(config()).await;
    let request = Bytes::from_static(b"big 30000000");
    let object = one.transport.call(two.id(), Class::Objects, request, TIMEOUT);
    tokio::pin!(object);
    let calls = async {
        for _ in 0..10 {
            one.call(two.id(), b"quick").await;
        }
    };
    tokio::select! {
        biased;
        _ = &mut object => panic!("ten calls take longer than thirty megabytes"),
        () = calls => {}
    }
    assert_eq!(object.await.unwrap().len(), 30_000_000);
}

#[tokio::test]
async fn calls_in_flight_are_bounded_and_a_deadline_frees_a_slot() {
    let (one, two) = Node::pair(Config { calls_max: 2, ..config() }).await;
    let hold = |deadline| one.transport.call(two.id(), Class::Rpc, HOLD, deadline);
    let (first, second, third) = tokio::join!(biased; hold(SHORT_DEADLINE), hold(SHORT_DEADLINE), hold(SHORT_DEADLINE));
    assert_eq!(first, Err(CallError::MaybeExecuted(MaybeExecuted::TimedOut)));
    assert_eq!(second, Err(CallError::MaybeExecuted(MaybeExecuted::TimedOut)));
    assert_eq!(third, Err(CallError::NotSent(NotSent::Busy)));
    // Both still run on the peer, which refuses a third without executing it.
    assert_eq!(hold(TIMEOUT).await, Err(CallError::NotSent(NotSent::Refused)));
    two.release(2);
    while hold(SHORT_DEADLINE).await == Err(CallError::NotSent(NotSent::Refused)) {}
}

#[tokio::test]
async fn an_answer_over_the_limit_reports_an_executed_request() {
    let (one, two) = Node::pair(Config { frame_bytes_max: 2000, ..config() }).await;
    let outcome = one.transport.call(two.id(), Class::Rpc, Bytes::from_static(b"big 2001"), TIMEOUT).await;
    assert_eq!(outcome, Err(CallError::MaybeExecuted(MaybeExecuted::AnswerTooLarge)));
    assert_eq!(one.call(two.id(), b"big 2000").await.len(), 2000);
}

#[tokio::test]
async fn a_lost_peer_leaves_the_outcome_unknown_and_later_calls_are_not_sent() {
    let (one, mut two) = Node::pair(config()).await;
    let held = one.transport.call(two.id(), Class::Rpc, HOLD, TIMEOUT);
    let losing = async {
        two.wait(Event::Call(NodeId(1), HOLD)).await;
        two.transport.close().await;
    };
    let (held, ()) = tokio::join!(held, losing);
    assert_eq!(held, Err(CallError::MaybeExecuted(MaybeExecuted::Lost)));
    let again = one.transport.call(two.id(), Class::Rpc, HOLD, TIMEOUT).await;
    assert_eq!(again, Err(CallError::NotSent(NotSent::Down)));
}

#[tokio::test]
async fn calls_to_unknown_peers_and_of_the_wrong_class_are_not_sent() {
    let node = Node::start(identity(&authority(), 1), config()).await;
    let call = |to| node.transport.call(NodeId(to), Class::Rpc, Bytes::new(), TIMEOUT);
    assert_eq!(call(2).await, Err(CallError::NotSent(NotSent::UnknownPeer)));
    assert_eq!(call(1).await, Err(CallError::NotSent(NotSent::UnknownPeer)));
    let (one, two) = Node::pair(config()).await;
    let urgent = one.transport.call(two.id(), Class::Urgent, Bytes::new(), TIMEOUT).await;
    assert_eq!(urgent, Err(CallError::NotSent(NotSent::WrongClass)));
}
