//! Calls between nodes: who asked what, what a node answers, and what is never answered.

use bytes::Bytes;
use flotilla_control::{Ask, PeerRequest, answer_of, feed_wait_ms, has_news, response_of};
use flotilla_membership::Input as MemberInput;
use flotilla_meta::MetaQuery;
use flotilla_replication::{Answer, Freshness, Input, Request, RequestError, work};
use flotilla_types::{NodeId, ShardId};
use rand::RngExt as _;

use super::{Happening, Node, Running};
use crate::{
    network::{CallKind, Frame},
    world::World,
};

/// What a call of this node is for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Calling {
    Pull(u64),
    Ask { number: u64, turn: u64, ask: Ask },
    Feed,
    Authority(NodeId),
}

/// A call under way.
#[derive(Debug, Clone, Copy)]
pub(super) struct Call {
    to: NodeId,
    /// Whether it left: then it may have been carried out.
    sent: bool,
    calling: Calling,
}

/// A call was not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CallFailure {
    NotSent,
    MaybeExecuted,
}

/// Who waits for an answer of the shard host.
#[derive(Debug, Clone, Copy)]
pub(super) enum Waiter {
    Peer { node: NodeId, call: u64 },
    Ask { ask: u64, turn: u64 },
}

/// A follower of the feed that is kept waiting for news.
#[derive(Debug, Clone, Copy)]
pub(super) struct Following {
    node: NodeId,
    call: u64,
    version: u64,
}

impl World {
    /// Asks a peer. Without a connection the call fails at once.
    #[expect(clippy::too_many_arguments, reason = "the parts of one call")]
    pub(super) fn call(
        &mut self,
        node: &mut Node,
        running: &mut Running,
        to: NodeId,
        kind: CallKind,
        body: Bytes,
        timeout_ms: u64,
        calling: Calling,
    ) {
        let call = running.number();
        let sent = running.links.contains_key(&to);
        running.calls.insert(call, Call { to, sent, calling });
        if sent {
            self.send(node.id, to, Frame::Call { call, kind, body });
            let timeout_us = node.clock.true_us(timeout_ms);
            self.later(node, timeout_us, Happening::CallTimedOut(call));
        } else {
            self.later(node, 100, Happening::CallTimedOut(call));
        }
    }

    /// A call was not answered: too late, its connection broke, or it never left.
    pub(super) fn call_failed(&mut self, node: &mut Node, running: &mut Running, call: u64) {
        if let Some(call) = running.calls.remove(&call) {
            let failure = if call.sent { CallFailure::MaybeExecuted } else { CallFailure::NotSent };
            self.called(node, running, call.calling, Err(failure));
        }
    }

    fn called(&mut self, node: &mut Node, running: &mut Running, calling: Calling, answer: Result<Bytes, CallFailure>) {
        match calling {
            Calling::Pull(pull) => self.pulled(node, running, pull, answer.ok()),
            Calling::Ask { number, turn, ask } => {
                let answer = match answer {
                    Ok(answer) => answer_of(answer),
                    Err(CallFailure::NotSent) => Err(RequestError::Stopped),
                    Err(CallFailure::MaybeExecuted) => Err(ask.unanswered()),
                };
                self.ask_answered(node, running, number, turn, answer);
            }
            Calling::Feed => self.feed_answered(node, running, answer.ok().and_then(|answer| answer_of(answer).ok())),
            Calling::Authority(to) => {
                let taken = answer.is_ok_and(|answer| answer_of(answer).is_ok());
                self.authority_given(node, running, to, taken);
            }
        }
    }

    /// A frame arrives at a running node.
    pub(super) fn arrive(&mut self, node: &mut Node, running: &mut Running, from: NodeId, frame: Frame) {
        if running.refused.contains(&from) {
            return;
        }
        match frame {
            Frame::Raft(bytes) => match work::unpack(from, bytes) {
                Ok(inputs) => {
                    for input in inputs {
                        self.take(node, running, input);
                    }
                }
                Err(error) => panic!("a frame of {from} does not parse: {error}"),
            },
            Frame::Member(bytes) => self.member_input(node, running, MemberInput::Packet { from, bytes }),
            Frame::Call { call, kind: CallKind::Objects, body } => {
                let mut body = work::serve(&node.disk, body);
                if self.chance(self.network.weather.lies_per_mille) {
                    body = self.falsify(&body);
                }
                self.send(node.id, from, Frame::Answer { call, body });
            }
            Frame::Call { call, kind: CallKind::Rpc, body } => match PeerRequest::decode(body) {
                Ok(request) => self.serve(node, running, from, call, request),
                Err(error) => panic!("a request of {from} does not parse: {error}"),
            },
            Frame::Answer { call, body } => {
                if let Some(call) = running.calls.remove(&call) {
                    self.called(node, running, call.calling, Ok(body));
                }
            }
        }
    }

    fn falsify(&mut self, body: &[u8]) -> Bytes {
        let mut body = body.to_vec();
        let at = self.rng.random_range(0..body.len().max(1));
        if let Some(byte) = body.get_mut(at) {
            *byte ^= 1 << self.rng.random_range(0..8);
        }
        body.into()
    }

    fn serve(&mut self, node: &mut Node, running: &mut Running, from: NodeId, call: u64, request: PeerRequest) {
        match request {
            PeerRequest::Ask { ask, shard, range_epoch, payload, timeout_ms } => {
                let waiter = Waiter::Peer { node: from, call };
                self.ask_host(node, running, ask, shard, range_epoch, payload, timeout_ms.into(), waiter);
            }
            PeerRequest::Feed { version, wait_ms } => match feed_wait_ms(&running.core.status(), wait_ms) {
                Ok(_) if has_news(running.control.known.meta(), version) => {
                    self.tell_news(node, running, Following { node: from, call, version });
                }
                Ok(wait_ms) => {
                    running.control.following.push(Following { node: from, call, version });
                    let wait_us = node.clock.true_us(wait_ms);
                    self.later(node, wait_us, Happening::FeedDue { from, call });
                }
                Err(error) => self.answer(node, from, call, Err(error)),
            },
            PeerRequest::Authority(_) => {
                node.folder.has_authority = true;
                self.answer(node, from, call, Ok(Bytes::new()));
            }
        }
    }

    fn answer(&mut self, node: &Node, to: NodeId, call: u64, answer: Answer) {
        self.send(node.id, to, Frame::Answer { call, body: response_of(answer) });
    }

    /// Followers of the feed that have waited for what there is now.
    pub(super) fn tell_followers(&mut self, node: &mut Node, running: &mut Running) {
        let meta = running.control.known.meta().clone();
        let waiting = std::mem::take(&mut running.control.following);
        let (due, waiting) = waiting.into_iter().partition(|follower| has_news(&meta, follower.version));
        running.control.following = waiting;
        let due: Vec<Following> = due;
        for follower in due {
            self.tell_news(node, running, follower);
        }
    }

    pub(super) fn feed_due(&mut self, node: &mut Node, running: &mut Running, from: NodeId, call: u64) {
        let waiting = &mut running.control.following;
        let Some(at) = waiting.iter().position(|follower| follower.node == from && follower.call == call) else {
            return;
        };
        let follower = waiting.remove(at);
        self.tell_news(node, running, follower);
    }

    fn tell_news(&mut self, node: &mut Node, running: &mut Running, follower: Following) {
        let waiter = Waiter::Peer { node: follower.node, call: follower.call };
        let payload = MetaQuery::FeedSince(follower.version).encode();
        let request = self.request(node, running, ShardId::META, None, payload, 1_000, waiter);
        self.take(node, running, Input::Read(request, Freshness::Local));
    }

    /// Something for a shard, for this node's own host.
    #[expect(clippy::too_many_arguments, reason = "the parts of one request")]
    pub(super) fn ask_host(
        &mut self,
        node: &mut Node,
        running: &mut Running,
        ask: Ask,
        shard: ShardId,
        range_epoch: Option<u64>,
        payload: Bytes,
        timeout_ms: u64,
        waiter: Waiter,
    ) {
        let request = self.request(node, running, shard, range_epoch, payload, timeout_ms, waiter);
        let input = match ask {
            Ask::Propose => Input::Propose(request),
            Ask::Query => Input::Read(request, Freshness::Strong),
        };
        self.take(node, running, input);
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one request")]
    fn request(
        &self,
        node: &Node,
        running: &mut Running,
        shard: ShardId,
        range_epoch: Option<u64>,
        payload: Bytes,
        timeout_ms: u64,
        waiter: Waiter,
    ) -> Request<u64> {
        let reply = running.number();
        running.waiters.insert(reply, waiter);
        let deadline_ms = node.clock.mono_ms(self.now_us) + timeout_ms;
        Request { shard, range_epoch, payload, deadline_ms, reply }
    }

    /// The host answers.
    pub(super) fn replied(&mut self, node: &mut Node, running: &mut Running, reply: u64, answer: Answer) {
        match running.waiters.remove(&reply) {
            Some(Waiter::Peer { node: peer, call }) => self.answer(node, peer, call, answer),
            Some(Waiter::Ask { ask, turn }) => self.ask_answered(node, running, ask, turn, answer),
            None => panic!("{}: a request was answered twice: {answer:?}", node.id),
        }
    }

    /// A connection may have come or gone.
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
            self.take(node, running, Input::Peer { node: peer, connected: false });
            let broken: Vec<_> =
                running.calls.iter().filter(|(_, call)| call.to == peer).map(|(number, _)| *number).collect();
            for call in broken {
                self.call_failed(node, running, call);
            }
        }
        if let Some(life) = life {
            running.links.insert(peer, life);
            self.take(node, running, Input::Peer { node: peer, connected: true });
        }
    }

    /// What a question counts as that this node's own host did not answer in time.
    pub(super) fn unanswered_here(ask: Ask) -> RequestError {
        match ask {
            Ask::Propose => RequestError::Unknown,
            Ask::Query => RequestError::Deadline,
        }
    }
}
