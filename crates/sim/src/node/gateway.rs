//! The gateway of a node: takes questions, asks shards wherever their leaders are, and gives each write its number.
//!
//! Whom to ask, when to give up and what a failure means is decided by [`flotilla_control::Asking`].

use std::collections::BTreeMap;

use bytes::Bytes;
use flotilla_control::{Ask, AskStep, Asking, PeerRequest, ShardError, Verdict};
use flotilla_kv::{Command, Outcome, Refusal, decode_outcome, encode_command};
use flotilla_meta::MetaCommand;
use flotilla_replication::Answer;
use flotilla_route::{Sequence, ShardSession};
use flotilla_types::{NodeId, SessionId, ShardId, Term};
use rand::RngExt as _;

use super::{
    Happening, Node, Running,
    control::Duty,
    rpc::{Calling, Waiter},
};
use crate::{
    network::CallKind,
    workload::ClientEvent,
    world::{Event, World},
};

/// How much later than its deadline a command may still apply, as in the real gateway.
const EXPIRY_SLACK_MS: u64 = 1_000;

/// Who is told the result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Who {
    Client(usize),
    /// A reconciler of this node that proposed something.
    Duty(Duty, Box<MetaCommand>),
    /// A reconciler of this node that wants fresh metadata.
    FreshMeta(Duty),
    /// Somebody who gives orders to the cluster.
    Operator(u64),
}

/// The end of a question.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) who: Who,
    pub(crate) result: Result<Bytes, ShardError>,
}

/// Questions under way, and the numbers of this gateway's session.
pub(crate) struct Gateway {
    session: SessionId,
    sessions: BTreeMap<ShardId, ShardSession>,
    questions: BTreeMap<u64, Question>,
}

struct Question {
    who: Who,
    ask: Ask,
    shard: ShardId,
    range_epoch: Option<u64>,
    payload: Bytes,
    asking: Asking,
    sequence: Option<Sequence>,
    /// Tells answers to the present try from those to earlier ones.
    turn: u64,
    /// The node that is being asked.
    on: Option<NodeId>,
}

impl Gateway {
    pub(super) fn new(session: u64) -> Self {
        Self { session: SessionId(session | 1), sessions: BTreeMap::new(), questions: BTreeMap::new() }
    }

    /// Who was still waiting when the process ended, and what is known of the outcome.
    pub(super) fn into_asked(self) -> Vec<Asked> {
        let asked = |question: Question| Asked { who: question.who, result: Err(ShardError::Unknown) };
        self.questions.into_values().map(asked).collect()
    }
}

impl World {
    /// A strong query.
    pub(crate) fn query(
        &mut self,
        node: &mut Node,
        running: &mut Running,
        (shard, epoch): (ShardId, u64),
        payload: Bytes,
        within_ms: u64,
        who: Who,
    ) {
        self.question(node, running, Ask::Query, shard, Some(epoch), payload, None, within_ms, who);
    }

    /// A write, with a number of this gateway's session.
    pub(crate) fn command(
        &mut self,
        node: &mut Node,
        running: &mut Running,
        (shard, epoch): (ShardId, u64),
        mut command: Command,
        within_ms: u64,
        who: Who,
    ) {
        let session = running.gateway.sessions.entry(shard).or_default();
        let now_ms = session.now_ms(node.clock.wall_ms(self.now_us));
        let Some((sequence, acked_below)) = session.begin() else {
            self.tell(Asked { who, result: Err(ShardError::Busy) });
            return;
        };
        command.session = running.gateway.session;
        command.sequence = sequence.0;
        command.acked_below = acked_below;
        command.expires_at_ms = now_ms + within_ms + EXPIRY_SLACK_MS;
        let payload = encode_command(&command);
        self.question(node, running, Ask::Propose, shard, Some(epoch), payload, Some(sequence), within_ms, who);
    }

    /// A command for the metadata group.
    pub(crate) fn propose_meta(
        &mut self,
        node: &mut Node,
        running: &mut Running,
        command: &MetaCommand,
        within_ms: u64,
        who: Who,
    ) {
        self.question(node, running, Ask::Propose, ShardId::META, None, command.encode(), None, within_ms, who);
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one question")]
    pub(super) fn question(
        &mut self,
        node: &mut Node,
        running: &mut Running,
        ask: Ask,
        shard: ShardId,
        range_epoch: Option<u64>,
        payload: Bytes,
        sequence: Option<Sequence>,
        within_ms: u64,
        who: Who,
    ) {
        let asking = Asking::new(ask, shard, node.clock.mono_ms(self.now_us) + within_ms);
        let number = running.number();
        let question = Question { who, ask, shard, range_epoch, payload, asking, sequence, turn: 0, on: None };
        running.gateway.questions.insert(number, question);
        self.ask_on(node, running, number, 0);
    }

    /// A question's time has come: to try, or to give its present try up.
    pub(super) fn ask_on(&mut self, node: &mut Node, running: &mut Running, number: u64, turn: u64) {
        let Some(question) = running.gateway.questions.get_mut(&number).filter(|question| question.turn == turn) else {
            return;
        };
        if question.on.is_some() {
            let error = Self::unanswered_here(question.ask);
            self.ask_answered(node, running, number, turn, Err(error));
            return;
        }
        question.turn += 1;
        let turn = question.turn;
        match question.asking.next(node.clock.mono_ms(self.now_us), &running.control.known) {
            AskStep::Wait(wait_ms) => {
                let wait_us = node.clock.true_us(wait_ms);
                self.later(node, wait_us, Happening::Ask { ask: number, turn });
            }
            AskStep::GiveUp(error) => self.answered(running, number, Err(error)),
            AskStep::Ask { node: target, timeout_ms } => {
                question.on = Some(target);
                let (ask, shard, range_epoch) = (question.ask, question.shard, question.range_epoch);
                let payload = question.payload.clone();
                if target == node.id {
                    let waiter = Waiter::Ask { ask: number, turn };
                    self.ask_host(node, running, ask, shard, range_epoch, payload, timeout_ms, waiter);
                    let wait_us = node.clock.true_us(timeout_ms);
                    self.later(node, wait_us, Happening::Ask { ask: number, turn });
                } else {
                    let within_ms = u32::try_from(timeout_ms).unwrap_or(u32::MAX);
                    let request = PeerRequest::Ask { ask, shard, range_epoch, payload, timeout_ms: within_ms };
                    let calling = Calling::Ask { number, turn, ask };
                    self.call(node, running, target, CallKind::Rpc, request.encode(), timeout_ms, calling);
                }
            }
        }
    }

    /// A try was answered, or let down.
    pub(super) fn ask_answered(
        &mut self,
        node: &mut Node,
        running: &mut Running,
        number: u64,
        turn: u64,
        answer: Answer,
    ) {
        let Some(question) = running.gateway.questions.get_mut(&number).filter(|question| question.turn == turn) else {
            return;
        };
        if question.on.take().is_none() {
            return;
        }
        let error = match answer {
            Ok(bytes) => return self.answered(running, number, Ok(bytes)),
            Err(error) => error,
        };
        question.turn += 1;
        let turn = question.turn;
        match question.asking.failed(error, &running.control.known) {
            Verdict::Again => {}
            Verdict::AgainWithout(silent) => running.control.known.clear_leader(silent),
            Verdict::GiveUp(error) => return self.answered(running, number, Err(error)),
        }
        self.ask_on(node, running, number, turn);
    }

    /// Somebody leads a shard, as this node hears. Tries that wait for another one end.
    pub(super) fn heard_leader(
        &mut self,
        node: &mut Node,
        running: &mut Running,
        shard: ShardId,
        term: Term,
        leader: NodeId,
    ) {
        if !running.control.known.observe_leader(shard, term, leader) {
            return;
        }
        let known = &running.control.known;
        let waits_for_another = |question: &Question| {
            question.on.is_some_and(|on| on != node.id && known.is_led_by_another(question.shard, on))
                && question.shard == shard
        };
        let questions = running.gateway.questions.iter().filter(|(_, question)| waits_for_another(question));
        let over: Vec<_> = questions.map(|(number, question)| (*number, question.turn, question.ask)).collect();
        for (number, turn, ask) in over {
            self.ask_answered(node, running, number, turn, Err(ask.unanswered()));
        }
    }

    fn answered(&mut self, running: &mut Running, number: u64, result: Result<Bytes, ShardError>) {
        let Some(question) = running.gateway.questions.remove(&number) else { return };
        if let Some(sequence) = question.sequence
            && let Some(session) = running.gateway.sessions.get_mut(&question.shard)
        {
            session.end(sequence);
            match result.as_ref().map(|bytes| decode_outcome(bytes.clone())) {
                Ok(Ok(Outcome::Done { timestamp, .. })) => session.heard(timestamp.millis()),
                Ok(Ok(Outcome::Refused(Refusal::Expired { clock_ms }))) => session.heard(clock_ms),
                _ => {}
            }
        }
        let asked = Asked { who: question.who, result };
        match asked.who {
            Who::Duty(..) | Who::FreshMeta(_) => running.control.told.push(asked),
            Who::Client(_) | Who::Operator(_) => self.tell(asked),
        }
    }

    /// Whoever waits outside hears of it a little later.
    fn tell(&mut self, asked: Asked) {
        let delay_us = self.rng.random_range(50..500);
        match asked.who {
            Who::Client(client) => {
                self.schedule(delay_us, Event::Client { client, event: ClientEvent::Told(Box::new(asked)) });
            }
            Who::Operator(order) => self.schedule(delay_us, Event::Operator { order, result: Some(asked.result) }),
            Who::Duty(..) | Who::FreshMeta(_) => {}
        }
    }

    /// The process that should have answered is gone.
    pub(super) fn asked_in_vain(&mut self, asked: Asked) {
        self.tell(asked);
    }
}
