//! Clients that add, store and read, one request at a time, and repeat each until it is answered.

use bytes::Bytes;
use flotilla_kv::{
    Action, Answer as Found, Command, Expiry, Operation, OperationResult, Otherwise, Outcome, Query, decode_answer,
    decode_outcome, encode_command, encode_query,
};
use flotilla_replication::{Answer, Freshness, Input, Request, RequestError};
use flotilla_types::{Bucket, CollectionId, NodeId, RecordKey, SessionId};
use rand::{RngExt as _, seq::IndexedRandom as _};

use super::{Event, SHARD, WALL_MS, World};

/// How long a client waits for one attempt, milliseconds.
const TIMEOUT_MS: u64 = 500;
/// Commands of these tests are valid for longer than any of them takes.
const VALID_MS: u64 = 3_600_000;
const COUNTERS: usize = 2;

/// What a client does next.
#[derive(Debug)]
pub(crate) enum ClientEvent {
    /// Thinks of something new, or asks again.
    Ask,
    /// An answer arrives.
    Answered(u64, Answer),
    /// Nothing came.
    TimedOut(u64),
}

#[derive(Debug, Clone)]
enum Wish {
    Add { key: Bytes },
    Store { key: Bytes, number: u64 },
    Read { key: Bytes },
}

pub(crate) struct Client {
    session: SessionId,
    sequence: u64,
    stored: u64,
    wish: Option<(Wish, u64)>,
    attempt: u64,
    target: NodeId,
    /// Finishes what it has begun and then rests.
    pub stops: bool,
}

impl Client {
    pub(crate) fn rests(&self) -> bool {
        self.wish.is_none()
    }
}

/// A whole record key.
pub(crate) fn key(name: &str) -> Bytes {
    RecordKey::new(CollectionId::DEFAULT, Bucket(0), name.as_bytes()).into_bytes()
}

/// A command that stores one value.
pub(crate) fn store(session: u64, sequence: u64, name: &str, value: &str) -> Bytes {
    let value = Bytes::copy_from_slice(value.as_bytes());
    let action = Action::Put { value, expiry: Expiry::Never, return_old: false };
    command(SessionId(session), sequence, key(name), action)
}

fn command(session: SessionId, sequence: u64, key: Bytes, action: Action) -> Bytes {
    encode_command(&Command {
        session,
        sequence,
        expires_at_ms: WALL_MS + VALID_MS,
        acked_below: sequence,
        operations: vec![Operation { key, condition: None, otherwise: Otherwise::Refuse, action }],
        ..Command::time()
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
    /// Lets so many clients begin.
    pub(crate) fn add_clients(&mut self, count: usize) {
        for _ in 0..count {
            let client = self.clients.len();
            self.clients.push(Client {
                session: SessionId(100 + client as u64),
                sequence: 0,
                stored: 0,
                wish: None,
                attempt: 0,
                target: NodeId(1),
                stops: false,
            });
            self.schedule(1_000, Event::Client { client, event: ClientEvent::Ask });
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
            ClientEvent::Ask => self.ask(at),
            ClientEvent::TimedOut(attempt) => {
                if self.clients[at].attempt == attempt {
                    self.ask_elsewhere(at, None);
                }
            }
            ClientEvent::Answered(attempt, answer) => {
                if self.clients[at].attempt != attempt {
                    return;
                }
                match answer {
                    Ok(bytes) => self.fulfilled(at, bytes),
                    Err(RequestError::NotLeader { leader }) => self.ask_elsewhere(at, leader),
                    Err(_) => self.ask_elsewhere(at, None),
                }
            }
        }
    }

    fn ask_elsewhere(&mut self, at: usize, leader: Option<NodeId>) {
        let nodes: Vec<_> = self.nodes.keys().copied().collect();
        let target = leader.or_else(|| nodes.choose(&mut self.rng).copied());
        let client = &mut self.clients[at];
        client.attempt = 0;
        client.target = target.unwrap_or(client.target);
        let delay_us = self.rng.random_range(1_000..20_000);
        self.schedule(delay_us, Event::Client { client: at, event: ClientEvent::Ask });
    }

    fn ask(&mut self, at: usize) {
        if self.clients[at].wish.is_none() {
            if self.clients[at].stops {
                return;
            }
            let wish = self.wish(at);
            self.clients[at].sequence += u64::from(!matches!(wish.0, Wish::Read { .. }));
            self.clients[at].wish = Some(wish);
        }
        let attempt = self.attempt();
        let deadline_ms = self.now_ms() + TIMEOUT_MS;
        let client = &mut self.clients[at];
        client.attempt = attempt;
        let Some((wish, _)) = client.wish.clone() else { return };
        let (session, sequence, target) = (client.session, client.sequence, client.target);
        let request = |payload| Request { shard: SHARD, range_epoch: None, payload, deadline_ms, reply: attempt };
        let input = match wish {
            Wish::Add { key } => Input::Propose(request(command(session, sequence, key, Action::Add { delta: 1 }))),
            Wish::Store { key, number } => {
                // Some are large, so that bounds on bytes matter too.
                let padding = if number.is_multiple_of(7) { 600 } else { 0 };
                let value = Bytes::from(format!("{number}{}", ".".repeat(padding)));
                let action = Action::Put { value, expiry: Expiry::Never, return_old: false };
                Input::Propose(request(command(session, sequence, key, action)))
            }
            Wish::Read { key } => Input::Read(request(get(key)), Freshness::Strong),
        };
        self.input(target, input);
        self.schedule(TIMEOUT_MS * 1_000, Event::Client { client: at, event: ClientEvent::TimedOut(attempt) });
    }

    /// Something new, and what is known of its key at this moment.
    fn wish(&mut self, at: usize) -> (Wish, u64) {
        let counter = key(&format!("counter {}", self.rng.random_range(0..COUNTERS)));
        let own = key(&format!("own {at}"));
        match self.rng.random_range(0..6) {
            0 | 1 => {
                let known = self.checks.known(&counter);
                self.checks.asked(&counter, |asked| asked + 1);
                (Wish::Add { key: counter }, known)
            }
            2 | 3 => {
                self.clients[at].stored += 1;
                let number = self.clients[at].stored;
                self.checks.asked(&own, |_| number);
                (Wish::Store { key: own, number }, 0)
            }
            4 => {
                let known = self.checks.known(&counter);
                (Wish::Read { key: counter }, known)
            }
            _ => {
                let other = key(&format!("own {}", self.rng.random_range(0..self.clients.len())));
                let known = self.checks.known(&other);
                (Wish::Read { key: other }, known)
            }
        }
    }

    fn fulfilled(&mut self, at: usize, bytes: Bytes) {
        let Some((wish, known)) = self.clients[at].wish.take() else { return };
        match wish {
            Wish::Read { key } => {
                let Ok(Found::Records(records)) = decode_answer(bytes) else { panic!("not records") };
                let found = records[0].as_ref().map_or(0, |record| number(&record.value));
                self.checks.read(&key, found, known);
            }
            Wish::Add { key } => {
                let outcome = decode_outcome(bytes).unwrap();
                let Outcome::Done { results, .. } = &outcome else { panic!("refused: {outcome:?}") };
                let [OperationResult::Written { number, .. }] = results[..] else { panic!("not written") };
                self.checks.added(&key, number.unsigned_abs(), known);
            }
            Wish::Store { key, number } => {
                let outcome = decode_outcome(bytes).unwrap();
                assert!(matches!(outcome, Outcome::Done { .. }), "refused: {outcome:?}");
                self.checks.stored(&key, number);
            }
        }
        self.clients[at].attempt = 0;
        let delay_us = self.rng.random_range(2_000..20_000);
        self.schedule(delay_us, Event::Client { client: at, event: ClientEvent::Ask });
    }

    /// Proposes or reads past all clients; the answer appears in `answers` under the number returned.
    pub(crate) fn request(
        &mut self,
        node: NodeId,
        payload: Bytes,
        timeout_ms: u64,
        freshness: Option<Freshness>,
    ) -> u64 {
        let reply = self.attempt();
        let deadline_ms = self.now_ms() + timeout_ms;
        let request = Request { shard: SHARD, range_epoch: None, payload, deadline_ms, reply };
        let input = match freshness {
            Some(freshness) => Input::Read(request, freshness),
            None => Input::Propose(request),
        };
        self.input(node, input);
        reply
    }
}
