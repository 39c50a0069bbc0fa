//! Calls between nodes: pending calls, the server side, and timeouts.

use bytes::Bytes;
use flotilla_control::{
    PeerRequest, RequestKind, Said, ShardRequest, decode_answer, encode_answer, feed_wait_ms, has_changes_since,
};
use flotilla_membership::Input as MemberInput;
use flotilla_meta::MetaQuery;
use flotilla_replication::{Answer, Answered, Freshness, Input, Request, RequestError, work};
use flotilla_storage::{Remedy, remedy};
use flotilla_types::{NodeId, Refs, ReplicaId, ShardId, Timestamp};
use rand::RngExt as _;

use super::{Node, NodeEvent, Running, host::PULL_BOUNDS};
use crate::{
    network::{CallKind, Frame},
    world::World,
};

/// The purpose of a call: decides who handles its answer.
#[derive(Debug, Clone, Copy)]
pub(super) enum CallPurpose {
    Pull { pull: u64, request: u64 },
    Request { request: u64, attempt: u64, kind: RequestKind },
    Feed,
    Authority(NodeId),
    Fingerprints(ReplicaId),
    GiveUp,
}

/// A pending call.
#[derive(Debug, Clone, Copy)]
pub(super) struct Call {
    to: NodeId,
    /// Whether it was sent: then the peer may have executed it.
    sent: bool,
    purpose: CallPurpose,
}

/// Why a call has no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CallFailure {
    NotSent,
    MaybeExecuted,
}

/// The receiver of an answer of the shard host.
#[derive(Debug, Clone, Copy)]
pub(super) enum Waiter {
    Peer { node: NodeId, call: u64 },
    Request { request: u64, attempt: u64 },
    Value(u64),
}

/// A long poll of the metadata feed that waits for changes.
#[derive(Debug, Clone, Copy)]
pub(super) struct FeedWaiter {
    node: NodeId,
    call: u64,
    version: u64,
}

impl World {
    /// Calls a peer. Without a connection the call fails after 100 µs.
    #[expect(clippy::too_many_arguments, reason = "the parts of one call")]
    pub(super) fn call(
        &mut self,
        node: &mut Node,
        running: &mut Running,
        to: NodeId,
        kind: CallKind,
        body: Bytes,
        timeout_ms: u64,
        purpose: CallPurpose,
    ) {
        let call = running.next_id();
        let sent = running.links.contains_key(&to);
        running.calls.insert(call, Call { to, sent, purpose });
        if sent {
            self.send(node.id, to, Frame::Call { call, kind, body });
            let timeout_us = node.clock.true_us(timeout_ms);
            self.schedule_on(node, timeout_us, NodeEvent::CallTimedOut(call));
        } else {
            self.schedule_on(node, 100, NodeEvent::CallTimedOut(call));
        }
    }

    /// Fails a call: it timed out, its connection broke, or it was never sent.
    pub(super) fn call_failed(&mut self, node: &mut Node, running: &mut Running, call: u64) {
        if let Some(call) = running.calls.remove(&call) {
            let failure = if call.sent { CallFailure::MaybeExecuted } else { CallFailure::NotSent };
            self.call_finished(node, running, call.purpose, Err(failure));
        }
    }

    fn call_finished(
        &mut self,
        node: &mut Node,
        running: &mut Running,
        purpose: CallPurpose,
        answer: Result<Bytes, CallFailure>,
    ) {
        match purpose {
            CallPurpose::Pull { pull, request } => self.pulled(node, running, (pull, request), answer.ok()),
            CallPurpose::Request { request, attempt, kind } => {
                let answer = match answer {
                    Ok(answer) => decode_answer(answer),
                    Err(CallFailure::NotSent) => Err(RequestError::Stopped),
                    Err(CallFailure::MaybeExecuted) => Err(kind.error_without_answer()),
                };
                self.attempt_finished(node, running, request, attempt, answer);
            }
            CallPurpose::Feed => self.feed_answered(
                node,
                running,
                answer.ok().and_then(|answer| Some(decode_answer(answer).ok()?.payload)),
            ),
            CallPurpose::Fingerprints(replica) => {
                let answer = answer.ok().and_then(|answer| Some(decode_answer(answer).ok()?.payload));
                self.fingerprints_read(node, running, replica, answer);
            }
            CallPurpose::GiveUp => self.gave_up(node, running),
            CallPurpose::Authority(to) => {
                let taken = answer.is_ok_and(|answer| decode_answer(answer).is_ok());
                self.authority_given(node, running, to, taken);
            }
        }
    }

    /// Handles a frame that arrived.
    pub(super) fn receive_frame(&mut self, node: &mut Node, running: &mut Running, from: NodeId, frame: Frame) {
        if running.refused.contains(&from) {
            return;
        }
        match frame {
            Frame::Raft(bytes) => match work::unpack(from, bytes) {
                Ok(inputs) => {
                    for input in inputs {
                        self.enqueue(node, running, input);
                    }
                }
                Err(error) => panic!("a frame from {from} does not parse: {error}"),
            },
            Frame::Member(bytes) => self.member_input(node, running, MemberInput::Packet { from, bytes }),
            Frame::Call { call, kind: CallKind::Objects, body } => {
                let served = work::serve(&node.disk, body, PULL_BOUNDS);
                self.checks.counts.objects_gone += u64::from(!served.complete);
                if let Some(to) = served.replica {
                    let served = Input::ObjectsServed { node: from, to, complete: served.complete };
                    self.enqueue(node, running, served);
                }
                running.control.fatal |= served.failure.is_some_and(|error| remedy(&error) == Remedy::EndNode);
                let mut body = served.response;
                let len_bytes = body.len();
                if self.chance(self.network.faults.corrupt_pulls_per_mille) {
                    body = self.flip_bit(&body);
                }
                self.send_objects(node.id, from, Frame::Answer { call, body }, len_bytes);
            }
            Frame::Call { call, kind: CallKind::Rpc, body } => match PeerRequest::decode(body) {
                Ok(request) => self.serve_request(node, running, from, call, request),
                Err(error) => panic!("a request from {from} does not parse: {error}"),
            },
            Frame::Answer { call, body } => {
                if let Some(call) = running.calls.remove(&call) {
                    self.call_finished(node, running, call.purpose, Ok(body));
                }
            }
        }
    }

    fn flip_bit(&mut self, body: &[u8]) -> Bytes {
        let mut body = body.to_vec();
        let at = self.rng.random_range(0..body.len().max(1));
        if let Some(byte) = body.get_mut(at) {
            *byte ^= 1 << self.rng.random_range(0..8);
        }
        body.into()
    }

    fn serve_request(&mut self, node: &mut Node, running: &mut Running, from: NodeId, call: u64, request: PeerRequest) {
        match request {
            PeerRequest::Shard(request) => {
                let waiter = Waiter::Peer { node: from, call };
                self.submit_to_host(node, running, request, waiter);
            }
            PeerRequest::Feed { version, wait_ms } => {
                match feed_wait_ms(&running.core.status().into_iter().collect(), wait_ms) {
                    Ok(_) if has_changes_since(running.control.cluster.meta(), version) => {
                        self.answer_feed(node, running, FeedWaiter { node: from, call, version });
                    }
                    Ok(wait_ms) => {
                        running.control.feed_waiters.push(FeedWaiter { node: from, call, version });
                        let wait_us = node.clock.true_us(wait_ms);
                        self.schedule_on(node, wait_us, NodeEvent::FeedDue { from, call });
                    }
                    Err(error) => self.answer(node, from, call, Err(error)),
                }
            }
            PeerRequest::Fingerprints { replica, .. } => {
                let said = running.applier.fingerprints(replica).ok_or(RequestError::Stopped);
                let answered = |said| Answered { payload: Said::here(said).encode(), clock: Timestamp::ZERO };
                self.answer(node, from, call, said.map(answered));
            }
            PeerRequest::GiveUp { shard, replica, evidence } => {
                self.give_up(node, running, from, (shard, replica), &evidence);
                self.answer(node, from, call, Ok(Answered { payload: Bytes::new(), clock: Timestamp::ZERO }));
            }
            // There are no certificates here, no large values at gateways, and no operator asks.
            PeerRequest::Operations
            | PeerRequest::Comparisons
            | PeerRequest::ValueTraffic
            | PeerRequest::Prefetch { .. }
            | PeerRequest::Placement(_)
            | PeerRequest::Capacity
            | PeerRequest::Load
            | PeerRequest::Scrub { .. }
            | PeerRequest::CertifyClientPorts { .. }
            | PeerRequest::CertifyNode { .. }
            | PeerRequest::RotateAuthority { .. } => self.answer(node, from, call, Err(RequestError::Stopped)),
            PeerRequest::Authority(_) => {
                node.folder.has_authority = true;
                let done = Answered { payload: Bytes::new(), clock: Timestamp::ZERO };
                self.answer(node, from, call, Ok(done));
            }
        }
    }

    fn answer(&mut self, node: &Node, to: NodeId, call: u64, answer: Answer) {
        self.send(node.id, to, Frame::Answer { call, body: encode_answer(answer) });
    }

    /// Answers the feed's long polls that the current metadata satisfies.
    pub(super) fn answer_feed_waiters(&mut self, node: &mut Node, running: &mut Running) {
        let meta = running.control.cluster.meta().clone();
        let waiting = std::mem::take(&mut running.control.feed_waiters);
        let (due, waiting) = waiting.into_iter().partition(|follower| has_changes_since(&meta, follower.version));
        running.control.feed_waiters = waiting;
        let due: Vec<FeedWaiter> = due;
        for follower in due {
            self.answer_feed(node, running, follower);
        }
    }

    pub(super) fn feed_due(&mut self, node: &mut Node, running: &mut Running, from: NodeId, call: u64) {
        let waiting = &mut running.control.feed_waiters;
        let Some(at) = waiting.iter().position(|follower| follower.node == from && follower.call == call) else {
            return;
        };
        let follower = waiting.remove(at);
        self.answer_feed(node, running, follower);
    }

    fn answer_feed(&mut self, node: &mut Node, running: &mut Running, follower: FeedWaiter) {
        let waiter = Waiter::Peer { node: follower.node, call: follower.call };
        let (kind, shard, payload) =
            (RequestKind::Query, ShardId::META, MetaQuery::FeedSince(follower.version).encode());
        let (range_epoch, after, timeout_ms) = (None, Timestamp::ZERO, 1_000);
        let refs = Refs::NONE;
        let request = ShardRequest { kind, shard, range_epoch, after, payload, refs, timeout_ms };
        let request = self.request(node, running, request, waiter);
        self.enqueue(node, running, Input::Read(request, Freshness::Local));
    }

    /// Submits a request to this node's own shard host.
    pub(super) fn submit_to_host(
        &mut self,
        node: &mut Node,
        running: &mut Running,
        request: ShardRequest,
        waiter: Waiter,
    ) {
        let kind = request.kind;
        let request = self.request(node, running, request, waiter);
        let input = match kind {
            RequestKind::Propose => Input::Propose(request),
            RequestKind::Query => Input::Read(request, Freshness::Strong),
        };
        self.enqueue(node, running, input);
    }

    fn request(&self, node: &Node, running: &mut Running, request: ShardRequest, waiter: Waiter) -> Request<u64> {
        let from = if let Waiter::Peer { node, .. } = &waiter { *node } else { node.id };
        let refs = request.command_refs(from);
        let ShardRequest { shard, range_epoch, after, payload, timeout_ms, .. } = request;
        let reply = running.next_id();
        running.waiters.insert(reply, waiter);
        let deadline_ms = node.clock.mono_ms(self.now_us) + u64::from(timeout_ms);
        Request { shard, range_epoch, after, payload, refs, deadline_ms, reply }
    }

    /// Passes an answer of the host to its receiver.
    pub(super) fn replied(&mut self, node: &mut Node, running: &mut Running, reply: u64, answer: Answer) {
        match running.waiters.remove(&reply) {
            Some(Waiter::Peer { node: peer, call }) => self.answer(node, peer, call, answer),
            Some(Waiter::Request { request, attempt }) => {
                self.attempt_finished(node, running, request, attempt, answer)
            }
            Some(Waiter::Value(number)) => self.value_answered(number, &answer),
            None => panic!("{}: a request was answered twice: {answer:?}", node.id),
        }
    }

    /// Re-evaluates the connection to a peer. A restarted peer has a new `life`: the old connection breaks
    /// first.
    pub(super) fn link(&mut self, node: &mut Node, running: &mut Running, peer: NodeId) {
        let other = self.nodes.get(&peer);
        let refused = running.refused.contains(&peer);
        let life = other.and_then(|other| {
            let theirs = other.running.as_ref()?;
            (!refused && !theirs.refused.contains(&node.id) && self.network.is_up(node.id, peer)).then_some(other.life)
        });
        let before = running.links.get(&peer).copied();
        if before == life {
            return;
        }
        if before.is_some() {
            running.links.remove(&peer);
            self.enqueue(node, running, Input::Peer { node: peer, connected: false });
            let broken: Vec<_> =
                running.calls.iter().filter(|(_, call)| call.to == peer).map(|(number, _)| *number).collect();
            for call in broken {
                self.call_failed(node, running, call);
            }
        }
        if let Some(life) = life {
            running.links.insert(peer, life);
            self.enqueue(node, running, Input::Peer { node: peer, connected: true });
        }
    }

    /// The error of a request that this node's own host did not answer in time.
    pub(super) fn local_timeout_error(kind: RequestKind) -> RequestError {
        match kind {
            RequestKind::Propose => RequestError::Unknown,
            RequestKind::Query => RequestError::Deadline,
        }
    }
}
