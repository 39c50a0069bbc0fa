//! The gateway of a node: routes requests to shard leaders, retries them, routes them again when their route is
//! outdated, and numbers writes in a session for each shard.
//!
//! [`flotilla_control::RequestRetry`] decides which node to ask, when to retry and when to give up;
//! [`flotilla_route::RouteRefusals`], when to try the next route.

use std::collections::BTreeMap;

use bytes::Bytes;
use flotilla_control::{
    Earlier, PeerRequest, RequestKind, RequestRetry, RetryDecision, RetryStep, ShardAnswer, ShardError, ShardRequest,
    meta_reply,
};
use flotilla_kv::{
    Answer as Found, Command, Outcome, Refusal, decode_answer as decode_found, decode_outcome, encode_command,
};
use flotilla_meta::MetaCommand;
use flotilla_placement::Shard;
use flotilla_replication::{Answer, Answered, RequestError};
use flotilla_route::{GatewayStart, Heard, Route, RouteRefusals, Sequence, ShardSession};
use flotilla_types::{NodeId, Refs, ShardId, Term, Timestamp};
use rand::RngExt as _;

use super::{
    Node, NodeEvent, Running,
    control::ControlTask,
    rpc::{CallPurpose, Waiter},
};
use crate::{
    network::CallKind,
    workload::ClientEvent,
    world::{Event, World},
};

/// How much later than its deadline a command may still apply, as in the real gateway.
const EXPIRY_SLACK_MS: u64 = 1_000;

/// Who receives the result of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Caller {
    Client(usize),
    /// A control task of this node that proposed a command.
    Task(ControlTask, Box<MetaCommand>),
    /// A control task of this node that requested fresh metadata.
    FreshMeta(ControlTask),
    /// The operator, for this order.
    Operator(u64),
}

/// The result of a request.
#[derive(Debug, Clone)]
pub(crate) struct Completion {
    pub(crate) caller: Caller,
    pub(crate) result: Result<ShardAnswer, ShardError>,
}

/// Pending requests, and the sessions of the shards.
pub(crate) struct Gateway {
    start: GatewayStart,
    sessions: BTreeMap<ShardId, ShardSession>,
    heard: Heard,
    /// The latest version of a write that this gateway has reported to a client.
    reported: Timestamp,
    requests: BTreeMap<u64, PendingRequest>,
}

struct PendingRequest {
    caller: Caller,
    kind: RequestKind,
    shard: ShardId,
    payload: Bytes,
    retry: RequestRetry,
    /// Set for requests of clients, which the range of the shard concerns.
    routed: Option<Routed>,
    /// The shard in whose session a write has this number.
    number: Option<(ShardId, Sequence)>,
    /// The time that it must follow, and whether every attempt so far asked for that.
    after: Timestamp,
    follows: bool,
    /// What the gateway had reported when it began.
    reported: Timestamp,
    /// Counts attempts, to ignore answers to earlier ones.
    attempt: u64,
    /// The node of the attempt in flight.
    target: Option<NodeId>,
}

struct Routed {
    /// A record key of the request; all of them live in one shard.
    key: Bytes,
    route: Route,
    refusals: RouteRefusals,
    deadline_ms: u64,
}

fn route_to(shard: &Shard) -> Route {
    Route { shard: shard.descriptor.shard, range_epoch: shard.descriptor.epoch.range }
}

/// Whether the answer of a key-value shard says that a key is not in its range.
fn is_wrong_shard(kind: RequestKind, answer: &ShardAnswer) -> bool {
    match kind {
        RequestKind::Query => decode_found(answer.payload.clone()) == Ok(Found::WrongShard),
        RequestKind::Propose => decode_outcome(answer.payload.clone()) == Ok(Outcome::Refused(Refusal::WrongShard)),
    }
}

impl Gateway {
    pub(super) fn new(start: u64) -> Self {
        Self {
            start: GatewayStart(start),
            sessions: BTreeMap::new(),
            heard: Heard::default(),
            reported: Timestamp::ZERO,
            requests: BTreeMap::new(),
        }
    }

    /// The requests that were pending when the process ended, with unknown outcome.
    pub(super) fn into_unfinished(self) -> Vec<Completion> {
        let unknown = |pending: PendingRequest| Completion { caller: pending.caller, result: Err(ShardError::Unknown) };
        self.requests.into_values().map(unknown).collect()
    }
}

impl World {
    /// Sends a strong query to the shard of a record key.
    pub(crate) fn query(
        &mut self,
        node: &mut Node,
        running: &mut Running,
        key: Bytes,
        payload: Bytes,
        within_ms: u64,
        caller: Caller,
    ) {
        self.start_routed(node, running, RequestKind::Query, key, payload, None, within_ms, caller);
    }

    /// Sends a write to the shard of a record key, with a sequence number of this gateway's session there.
    pub(crate) fn command(
        &mut self,
        node: &mut Node,
        running: &mut Running,
        key: Bytes,
        mut command: Command,
        within_ms: u64,
        caller: Caller,
    ) {
        let Some(shard) = running.control.cluster.map().shard_of(&key).map(|shard| shard.descriptor.shard) else {
            self.complete(Completion { caller, result: Err(ShardError::Unavailable) });
            return;
        };
        let start = running.gateway.start;
        let session = running.gateway.sessions.entry(shard).or_insert_with(|| ShardSession::new(start, shard));
        let now_ms = session.now_ms(node.clock.wall_ms(self.now_us));
        let Some((sequence, acked_below)) = session.begin() else {
            self.complete(Completion { caller, result: Err(ShardError::Busy) });
            return;
        };
        command.session = session.id();
        command.sequence = sequence.0;
        command.acked_below = acked_below;
        command.expires_at_ms = now_ms + within_ms + EXPIRY_SLACK_MS;
        let payload = encode_command(&command);
        self.checks.numbered(command.session, sequence, &payload);
        let number = Some((shard, sequence));
        self.start_routed(node, running, RequestKind::Propose, key, payload, number, within_ms, caller);
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one request")]
    fn start_routed(
        &mut self,
        node: &mut Node,
        running: &mut Running,
        kind: RequestKind,
        key: Bytes,
        payload: Bytes,
        number: Option<(ShardId, Sequence)>,
        within_ms: u64,
        caller: Caller,
    ) {
        let Some(route) = running.control.cluster.map().shard_of(&key).map(route_to) else {
            self.complete(Completion { caller, result: Err(ShardError::Unavailable) });
            return;
        };
        let deadline_ms = node.clock.mono_ms(self.now_us) + within_ms;
        let retry = RequestRetry::new(kind, route.shard, Some(route.range_epoch), deadline_ms);
        let routed = Some(Routed { key, route, refusals: RouteRefusals::default(), deadline_ms });
        let pending = self.pending(node, running, caller, payload, retry);
        let pending = PendingRequest { kind, shard: route.shard, routed, number, ..pending };
        self.start_pending(node, running, pending);
    }

    /// A request that is not routed, and that follows what this gateway has received.
    fn pending(
        &self,
        node: &Node,
        running: &Running,
        caller: Caller,
        payload: Bytes,
        retry: RequestRetry,
    ) -> PendingRequest {
        let after = running.gateway.heard.after(node.clock.wall_ms(self.now_us));
        PendingRequest {
            caller,
            kind: RequestKind::Query,
            shard: ShardId::META,
            payload,
            retry: retry.following(after),
            routed: None,
            number: None,
            after,
            follows: true,
            reported: running.gateway.reported,
            attempt: 0,
            target: None,
        }
    }

    fn start_pending(&mut self, node: &mut Node, running: &mut Running, pending: PendingRequest) {
        let number = running.next_id();
        running.gateway.requests.insert(number, pending);
        self.advance_request(node, running, number, 0);
    }

    /// Sends a command to the metadata group.
    pub(crate) fn propose_meta(
        &mut self,
        node: &mut Node,
        running: &mut Running,
        command: &MetaCommand,
        within_ms: u64,
        caller: Caller,
    ) {
        let payload = command.encode();
        self.start_request(node, running, RequestKind::Propose, ShardId::META, payload, within_ms, caller);
    }

    /// Sends a request that no range concerns.
    #[expect(clippy::too_many_arguments, reason = "the parts of one request")]
    pub(super) fn start_request(
        &mut self,
        node: &mut Node,
        running: &mut Running,
        kind: RequestKind,
        shard: ShardId,
        payload: Bytes,
        within_ms: u64,
        caller: Caller,
    ) {
        let retry = RequestRetry::new(kind, shard, None, node.clock.mono_ms(self.now_us) + within_ms);
        let pending = PendingRequest { kind, shard, ..self.pending(node, running, caller, payload, retry) };
        self.start_pending(node, running, pending);
    }

    /// Starts the next attempt of a request, or ends the attempt in flight by timeout.
    pub(super) fn advance_request(&mut self, node: &mut Node, running: &mut Running, number: u64, attempt: u64) {
        let Some(pending) = running.gateway.requests.get_mut(&number).filter(|pending| pending.attempt == attempt)
        else {
            return;
        };
        if pending.target.is_some() {
            let error = Self::local_timeout_error(pending.kind);
            self.attempt_finished(node, running, number, attempt, Err(error));
            return;
        }
        pending.attempt += 1;
        let attempt = pending.attempt;
        match pending.retry.next(node.clock.mono_ms(self.now_us), &running.control.cluster) {
            RetryStep::Wait(wait_ms) => {
                let map = running.control.cluster.map();
                let is_gone = map.shard(pending.shard).is_none_or(|shard| map.is_overtaken(&shard.descriptor));
                assert!(!is_gone || pending.routed.is_none(), "{} waits for {}, which is gone", node.id, pending.shard);
                let wait_us = node.clock.true_us(wait_ms);
                self.schedule_on(node, wait_us, NodeEvent::RequestDue { request: number, attempt });
            }
            RetryStep::GiveUp(error) => self.route_again(node, running, number, error),
            RetryStep::Send { node: target, range_epoch, after, timeout_ms } => {
                pending.target = Some(target);
                self.checks.counts.asked_again += u64::from(range_epoch.is_none() && pending.routed.is_some());
                pending.follows &= after == pending.after;
                let (kind, shard) = (pending.kind, pending.shard);
                let payload = pending.payload.clone();
                let within_ms = u32::try_from(timeout_ms).unwrap_or(u32::MAX);
                let refs = Refs::NONE;
                let request = ShardRequest { kind, shard, range_epoch, after, payload, refs, timeout_ms: within_ms };
                if target == node.id {
                    let waiter = Waiter::Request { request: number, attempt };
                    self.submit_to_host(node, running, request, waiter);
                    let wait_us = node.clock.true_us(timeout_ms);
                    self.schedule_on(node, wait_us, NodeEvent::RequestDue { request: number, attempt });
                } else {
                    let request = PeerRequest::Shard(request);
                    let purpose = CallPurpose::Request { request: number, attempt, kind };
                    self.call(node, running, target, CallKind::Rpc, request.encode(), timeout_ms, purpose);
                }
            }
        }
    }

    /// Handles the answer or the failure of an attempt.
    pub(super) fn attempt_finished(
        &mut self,
        node: &mut Node,
        running: &mut Running,
        number: u64,
        attempt: u64,
        answer: Answer,
    ) {
        let Some(pending) = running.gateway.requests.get_mut(&number).filter(|pending| pending.attempt == attempt)
        else {
            return;
        };
        let Some(target) = pending.target.take() else { return };
        let error = match answer {
            Ok(Answered { payload, clock }) => {
                running.gateway.heard.observe(clock, node.clock.wall_ms(self.now_us));
                let answer = ShardAnswer { payload, node: target, earlier: pending.retry.earlier() };
                if pending.routed.is_some() && is_wrong_shard(pending.kind, &answer) {
                    let stale = ShardError::Stale(answer.earlier);
                    return self.route_again(node, running, number, stale);
                }
                return self.request_finished(running, number, Ok(answer));
            }
            Err(error) => error,
        };
        if let RequestError::StaleEpoch { now } = &error {
            running.control.cluster.learn(pending.shard, now);
        }
        pending.attempt += 1;
        let attempt = pending.attempt;
        match pending.retry.on_failure(&error, &running.control.cluster) {
            RetryDecision::Retry => {}
            RetryDecision::RetryWithoutLeader(silent) => running.control.cluster.clear_leader(silent),
            RetryDecision::GiveUp(error) => return self.route_again(node, running, number, error),
        }
        self.advance_request(node, running, number, attempt);
    }

    /// Routes a request again whose route was refused as outdated, under its number, until its deadline; ends
    /// it after another error.
    fn route_again(&mut self, node: &mut Node, running: &mut Running, number: u64, error: ShardError) {
        let now_ms = node.clock.mono_ms(self.now_us);
        let Some(pending) = running.gateway.requests.get_mut(&number) else { return };
        let Some(routed) = pending.routed.as_mut().filter(|_| matches!(error, ShardError::Stale(_))) else {
            return self.request_finished(running, number, Err(error));
        };
        self.checks.counts.stale_routes += 1;
        let earlier = pending.retry.earlier();
        if now_ms >= routed.deadline_ms {
            let unknown = earlier == Earlier::InDoubt;
            let error = if unknown { ShardError::Unknown } else { ShardError::Unavailable };
            return self.request_finished(running, number, Err(error));
        }
        routed.refusals.record(routed.route);
        let route = running.control.cluster.map().shard_of(&routed.key).map(route_to);
        let pause_ms = routed.refusals.pause_ms([route]);
        routed.route = route.unwrap_or(routed.route);
        let Route { shard, range_epoch } = routed.route;
        pending.shard = shard;
        pending.retry = RequestRetry::new(pending.kind, shard, Some(range_epoch), routed.deadline_ms)
            .after(earlier)
            .following(pending.after);
        pending.attempt += 1;
        let attempt = pending.attempt;
        let wait_us = node.clock.true_us(pause_ms);
        self.schedule_on(node, wait_us, NodeEvent::RequestDue { request: number, attempt });
    }

    /// Records a newly observed leader. Attempts that wait for another node end.
    pub(super) fn leader_observed(
        &mut self,
        node: &mut Node,
        running: &mut Running,
        shard: ShardId,
        term: Term,
        leader: NodeId,
    ) {
        if !running.control.cluster.observe_leader(shard, term, leader) {
            return;
        }
        let cluster = &running.control.cluster;
        let waits_for_another = |pending: &PendingRequest| {
            pending.target.is_some_and(|target| target != node.id && cluster.is_led_by_another(pending.shard, target))
                && pending.shard == shard
        };
        let requests = running.gateway.requests.iter().filter(|(_, pending)| waits_for_another(pending));
        let stale: Vec<_> = requests.map(|(number, pending)| (*number, pending.attempt, pending.kind)).collect();
        for (number, attempt, kind) in stale {
            self.attempt_finished(node, running, number, attempt, Err(kind.error_without_answer()));
        }
    }

    fn request_finished(&mut self, running: &mut Running, number: u64, result: Result<ShardAnswer, ShardError>) {
        let Some(pending) = running.gateway.requests.remove(&number) else { return };
        if let Some((shard, sequence)) = pending.number
            && let Some(session) = running.gateway.sessions.get_mut(&shard)
        {
            session.finish(sequence);
            match result.as_ref().map(|answer| decode_outcome(answer.payload.clone())) {
                Ok(Ok(Outcome::Done { timestamp, .. })) => {
                    session.observe_clock(timestamp.millis());
                    if pending.follows {
                        self.checks.caused(pending.after, timestamp);
                    }
                    if !self.plan.disturbs_clocks() {
                        self.checks.caused(pending.reported, timestamp);
                    }
                    running.gateway.reported = running.gateway.reported.max(timestamp);
                }
                Ok(Ok(Outcome::Refused(Refusal::Expired { clock_ms }))) => session.observe_clock(clock_ms),
                _ => {}
            }
        }
        let completion = Completion { caller: pending.caller, result };
        match completion.caller {
            Caller::Task(..) | Caller::FreshMeta(_) => running.control.completed.push(completion),
            Caller::Client(_) | Caller::Operator(_) => self.complete(completion),
        }
    }

    /// Delivers a result to a client or the operator after a short delay. Control tasks of a dead process get
    /// nothing.
    pub(super) fn complete(&mut self, completion: Completion) {
        let delay_us = self.rng.random_range(50..500);
        match completion.caller {
            Caller::Client(client) => {
                self.schedule(delay_us, Event::Client { client, event: ClientEvent::OpDone(Box::new(completion)) });
            }
            Caller::Operator(order) => {
                let reply = completion.result.and_then(|answer| meta_reply(&answer.payload, answer.earlier));
                self.schedule(delay_us, Event::Operator { order, result: Some(reply) });
            }
            Caller::Task(..) | Caller::FreshMeta(_) => {}
        }
    }
}
