//! Clients that add, store and read, one operation at a time, and retry each until it succeeds.

use bytes::Bytes;
use flotilla_kv::{
    Action, Answer as Found, Command, Expiry, Operation, OperationResult, Otherwise, Outcome, Query, decode_answer,
    decode_outcome, encode_command, encode_query,
};
use flotilla_replication::{Answer, CommandRefs, Freshness, Input, Request, RequestError};
use flotilla_types::{Bucket, CollectionId, NodeId, RecordKey, SessionId, Timestamp};
use rand::{RngExt as _, seq::IndexedRandom as _};

use super::{Event, SHARD, WALL_MS, World};

/// Timeout of one attempt, milliseconds.
const TIMEOUT_MS: u64 = 500;
/// Validity of a command: longer than any test takes, milliseconds.
const VALID_MS: u64 = 3_600_000;
const COUNTERS: usize = 2;

/// An event of a client. Numbers are attempts.
#[derive(Debug)]
pub(crate) enum ClientEvent {
    /// The client starts an operation, or retries the current one.
    Send,
    /// An answer arrives.
    Answered(u64, Answer),
    /// The attempt timed out.
    TimedOut(u64),
}

#[derive(Debug, Clone)]
enum ClientOperation {
    Add { key: Bytes },
    Store { key: Bytes, number: u64 },
    Read { key: Bytes },
}

pub(crate) struct Client {
    session: SessionId,
    sequence: u64,
    stored: u64,
    /// The operation in progress, and the number of its key that was observed when it started.
    operation: Option<(ClientOperation, u64)>,
    attempt: u64,
    target: NodeId,
    /// Starts no further operation.
    pub stopping: bool,
}

impl Client {
    pub(crate) fn is_idle(&self) -> bool {
        self.operation.is_none()
    }
}

/// A complete record key.
pub(crate) fn key(name: &str) -> Bytes {
    RecordKey::new(CollectionId::DEFAULT, Bucket(0), name.as_bytes()).into_bytes()
}

/// A command that stores one value.
pub(crate) fn store(session: u64, sequence: u64, name: &str, value: &str) -> Bytes {
    let value = Bytes::copy_from_slice(value.as_bytes());
    let action = Action::Put { value: value.into(), expiry: Expiry::Never, return_old: false };
    command(SessionId(session), sequence, key(name), action)
}

fn command(session: SessionId, sequence: u64, key: Bytes, action: Action) -> Bytes {
    encode_command(&Command {
        session,
        sequence,
        expires_at_ms: WALL_MS + VALID_MS,
        acked_below: sequence,
        operations: vec![Operation { key, condition: None, otherwise: Otherwise::Refuse, action }],
        ..Command::empty()
    })
}

/// A query for one value.
pub(crate) fn get(key: Bytes) -> Bytes {
    encode_query(&Query::Get { keys: vec![key], values: true })
}

fn number(value: &[u8]) -> u64 {
    std::str::from_utf8(value).unwrap().trim_end_matches('.').parse().unwrap()
}

impl World {
    /// Starts clients.
    pub(crate) fn add_clients(&mut self, count: usize) {
        for _ in 0..count {
            let client = self.clients.len();
            self.clients.push(Client {
                session: SessionId(100 + client as u64),
                sequence: 0,
                stored: 0,
                operation: None,
                attempt: 0,
                target: NodeId(1),
                stopping: false,
            });
            self.schedule(1_000, Event::Client { client, event: ClientEvent::Send });
        }
    }

    pub(super) fn answered(&mut self, attempt: u64, answer: Answer) {
        match self.clients.iter().position(|client| client.attempt == attempt) {
            Some(client) => {
                let delay_us = self.rng.random_range(50..500);
                self.schedule(delay_us, Event::Client { client, event: ClientEvent::Answered(attempt, answer) });
            }
            None => {
                let before = self.answers.insert(attempt, answer);
                assert!(before.is_none(), "attempt {attempt} was answered twice");
            }
        }
    }

    pub(super) fn act(&mut self, at: usize, event: ClientEvent) {
        match event {
            ClientEvent::Send => self.send_attempt(at),
            ClientEvent::TimedOut(attempt) => {
                if self.clients[at].attempt == attempt {
                    self.retry_elsewhere(at, None);
                }
            }
            ClientEvent::Answered(attempt, answer) => {
                if self.clients[at].attempt != attempt {
                    return;
                }
                match answer {
                    Ok(answered) => self.succeeded(at, answered.payload),
                    Err(RequestError::NotLeader { leader }) => self.retry_elsewhere(at, leader),
                    Err(_) => self.retry_elsewhere(at, None),
                }
            }
        }
    }

    fn retry_elsewhere(&mut self, at: usize, leader: Option<NodeId>) {
        let nodes: Vec<_> = self.nodes.keys().copied().collect();
        let target = leader.or_else(|| nodes.choose(&mut self.rng).copied());
        let client = &mut self.clients[at];
        client.attempt = 0;
        client.target = target.unwrap_or(client.target);
        let delay_us = self.rng.random_range(1_000..20_000);
        self.schedule(delay_us, Event::Client { client: at, event: ClientEvent::Send });
    }

    fn send_attempt(&mut self, at: usize) {
        if self.clients[at].operation.is_none() {
            if self.clients[at].stopping {
                return;
            }
            let operation = self.new_operation(at);
            self.clients[at].sequence += u64::from(!matches!(operation.0, ClientOperation::Read { .. }));
            self.clients[at].operation = Some(operation);
        }
        let attempt = self.next_attempt();
        let deadline_ms = self.now_ms() + TIMEOUT_MS;
        let client = &mut self.clients[at];
        client.attempt = attempt;
        let Some((operation, _)) = client.operation.clone() else { return };
        let (session, sequence, target) = (client.session, client.sequence, client.target);
        let after = Timestamp::ZERO;
        let request = |payload| Request {
            shard: SHARD,
            range_epoch: None,
            after,
            payload,
            refs: CommandRefs::default(),
            deadline_ms,
            reply: attempt,
        };
        let input = match operation {
            ClientOperation::Add { key } => {
                Input::Propose(request(command(session, sequence, key, Action::Add { delta: 1 })))
            }
            ClientOperation::Store { key, number } => {
                // Some are large, to reach bounds in bytes.
                let padding = if number.is_multiple_of(7) { 600 } else { 0 };
                let value = Bytes::from(format!("{number}{}", ".".repeat(padding)));
                let action = Action::Put { value: value.into(), expiry: Expiry::Never, return_old: false };
                Input::Propose(request(command(session, sequence, key, action)))
            }
            ClientOperation::Read { key } => Input::Read(request(get(key)), Freshness::Strong),
        };
        self.input(target, input);
        self.schedule(TIMEOUT_MS * 1_000, Event::Client { client: at, event: ClientEvent::TimedOut(attempt) });
    }

    /// A new operation, and the number of its key that has been observed so far.
    fn new_operation(&mut self, at: usize) -> (ClientOperation, u64) {
        let counter = key(&format!("counter {}", self.rng.random_range(0..COUNTERS)));
        let own = key(&format!("own {at}"));
        match self.rng.random_range(0..6) {
            0 | 1 => {
                let observed = self.checks.observed(&counter);
                self.checks.requested(&counter, |requested| requested + 1);
                (ClientOperation::Add { key: counter }, observed)
            }
            2 | 3 => {
                self.clients[at].stored += 1;
                let number = self.clients[at].stored;
                self.checks.requested(&own, |_| number);
                (ClientOperation::Store { key: own, number }, 0)
            }
            4 => {
                let observed = self.checks.observed(&counter);
                (ClientOperation::Read { key: counter }, observed)
            }
            _ => {
                let other = key(&format!("own {}", self.rng.random_range(0..self.clients.len())));
                let observed = self.checks.observed(&other);
                (ClientOperation::Read { key: other }, observed)
            }
        }
    }

    fn succeeded(&mut self, at: usize, bytes: Bytes) {
        let Some((operation, observed)) = self.clients[at].operation.take() else { return };
        match operation {
            ClientOperation::Read { key } => {
                let Ok(Found::Records(records)) = decode_answer(bytes) else { panic!("not records") };
                let found = records[0].as_ref().map_or(0, |record| number(record.value.inline().unwrap()));
                self.checks.read(&key, found, observed);
            }
            ClientOperation::Add { key } => {
                let outcome = decode_outcome(bytes).unwrap();
                let Outcome::Done { results, .. } = &outcome else { panic!("refused: {outcome:?}") };
                let [OperationResult::Written { number, .. }] = results[..] else { panic!("not written") };
                self.checks.added(&key, number.unsigned_abs(), observed);
            }
            ClientOperation::Store { key, number } => {
                let outcome = decode_outcome(bytes).unwrap();
                assert!(matches!(outcome, Outcome::Done { .. }), "refused: {outcome:?}");
                self.checks.stored(&key, number);
            }
        }
        self.clients[at].attempt = 0;
        let delay_us = self.rng.random_range(2_000..20_000);
        self.schedule(delay_us, Event::Client { client: at, event: ClientEvent::Send });
    }

    /// Proposes or reads without a client; the answer appears in `answers` under the returned id.
    pub(crate) fn request(
        &mut self,
        node: NodeId,
        payload: Bytes,
        timeout_ms: u64,
        freshness: Option<Freshness>,
    ) -> u64 {
        self.request_with(node, (None, Timestamp::ZERO), payload, timeout_ms, freshness)
    }

    /// The same, routed by a descriptor with this range epoch, and to follow this time.
    pub(crate) fn request_with(
        &mut self,
        node: NodeId,
        (range_epoch, after): (Option<u64>, Timestamp),
        payload: Bytes,
        timeout_ms: u64,
        freshness: Option<Freshness>,
    ) -> u64 {
        let reply = self.next_attempt();
        let deadline_ms = self.now_ms() + timeout_ms;
        let refs = CommandRefs::default();
        let request = Request { shard: SHARD, range_epoch, after, payload, refs, deadline_ms, reply };
        let input = match freshness {
            Some(freshness) => Input::Read(request, freshness),
            None => Input::Propose(request),
        };
        self.input(node, input);
        reply
    }
}
