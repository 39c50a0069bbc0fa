//! Clients that put, get, add, compare, delete, batch and scan, each one operation at a time, and write down what they
//! asked, when, and what they were told.
//!
//! An operation whose fate is unknown stays open for ever; one that was refused did not happen. Whether the whole history could
//! come from one store that does one thing at a time is for the checker to say.

use bytes::Bytes;
use flotilla_control::ShardError;
use flotilla_kv::{
    Action, Answer as Found, Command, Condition, Expiry, Operation, OperationResult, Otherwise, Outcome, Query,
    Refusal, decode_answer, decode_outcome, encode_query,
};
use flotilla_types::{KeyRange, NodeId, SessionId, ShardId, Timestamp};
use rand::{RngExt as _, seq::IndexedRandom as _};

use crate::{
    node::{Asked, Who},
    world::{Event, World},
};

/// Keys that only single operations touch.
const REGISTERS: usize = 6;
const COUNTERS: usize = 2;
/// Groups of keys that batches and scans touch together; each lives in one shard by its tag.
const GROUPS: usize = 2;
const MEMBERS: usize = 2;
/// How long an operation may take, milliseconds.
const DEADLINES_MS: [u64; 3] = [500, 1_500, 4_000];

/// What a client does next.
#[derive(Debug)]
pub(crate) enum ClientEvent {
    /// Thinks of something new.
    Ask,
    /// Is told the result.
    Told(Box<Asked>),
}

/// One operation as its client saw it.
#[derive(Debug, Clone)]
pub(crate) struct Recorded {
    pub(crate) client: usize,
    pub(crate) call_us: u64,
    /// `None` while it runs, and for ever when nobody knows what became of it.
    pub(crate) returned_us: Option<u64>,
    pub(crate) did: Did,
    pub(crate) fate: Fate,
}

/// What was asked for. Values are unique in a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Did {
    Get {
        keys: Vec<String>,
    },
    Put {
        key: String,
        value: String,
    },
    /// Puts when the key holds this value, or nothing.
    PutIf {
        key: String,
        expected: Option<String>,
        value: String,
    },
    Add {
        key: String,
    },
    Delete {
        key: String,
    },
    /// Puts one value under all keys when the first holds what is expected, if anything is.
    Batch {
        keys: Vec<String>,
        expected: Option<Option<String>>,
        value: String,
    },
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Nobody knows; it may still happen.
    Unknown,
    /// It did not happen.
    Refused,
    /// A condition did not hold.
    Failed,
    Written,
    Read(Vec<Option<String>>),
    Sum(i64),
    /// Whether there was something.
    Deleted(bool),
}

/// All clients, and all they did.
#[derive(Default)]
pub(crate) struct Workload {
    clients: Vec<Client>,
    pub(crate) history: Vec<Recorded>,
    values: u64,
}

#[derive(Default)]
struct Client {
    /// The operation under way, as its place in the history.
    under_way: Option<usize>,
    /// The last value of each key that this client read, with its version: what conditions are made of.
    seen: Vec<(String, String, Timestamp)>,
    rests: bool,
}

impl Workload {
    /// Nothing is under way, and nothing will be.
    pub(crate) fn is_at_rest(&self) -> bool {
        self.clients.iter().all(|client| client.rests && client.under_way.is_none())
    }

    /// Lets clients finish what they do, and rest then; or go on.
    pub(crate) fn rest(&mut self, rests: bool) {
        for client in &mut self.clients {
            client.rests = rests;
        }
    }

    /// How many writes were acknowledged by now.
    pub(crate) fn acknowledged(&self) -> usize {
        self.history.iter().filter(|done| matches!(done.fate, Fate::Written | Fate::Sum(_) | Fate::Deleted(_))).count()
    }
}

/// What one operation needs on its way.
struct Wish {
    did: Did,
    request: Request,
    /// Which keys decide the shard.
    keys: Vec<String>,
}

enum Request {
    Query(Query),
    Command { conditions: Vec<(Bytes, Condition)>, operations: Vec<Operation> },
}

impl World {
    /// Lets the plan's clients begin.
    pub(crate) fn begin_load(&mut self) {
        for client in 0..self.plan.clients {
            self.workload.clients.push(Client::default());
            self.think(client);
        }
    }

    /// Resting clients go on.
    pub(crate) fn go_on(&mut self) {
        self.workload.rest(false);
        for client in 0..self.workload.clients.len() {
            if self.workload.clients[client].under_way.is_none() {
                self.think(client);
            }
        }
    }

    fn think(&mut self, client: usize) {
        let delay_us = self.rng.random_range(500..self.plan.think_us_max);
        self.schedule(delay_us, Event::Client { client, event: ClientEvent::Ask });
    }

    pub(crate) fn act(&mut self, client: usize, event: ClientEvent) {
        match event {
            ClientEvent::Ask => self.ask_something(client),
            ClientEvent::Told(asked) => self.told_of(client, *asked),
        }
    }

    fn ask_something(&mut self, client: usize) {
        if self.workload.clients[client].rests || self.workload.clients[client].under_way.is_some() {
            return;
        }
        let live: Vec<_> = self.nodes.values().filter(|node| node.running.is_some()).map(|node| node.id).collect();
        let Some(gateway) = live.choose(&mut self.rng).copied() else {
            self.think(client);
            return;
        };
        let Some(map) = self.nodes[&gateway].running.as_ref().map(|running| running.control.known.map().clone()) else {
            return;
        };
        let Some(collection) = map.collection("default") else {
            self.think(client);
            return;
        };
        let record_key = |key: &str| collection.record_key(key.as_bytes()).into_bytes();
        let wish = self.wish(client, &record_key);
        let home = |key: &String| map.shard_of(&record_key(key)).map(|shard| &shard.descriptor);
        let Some(shard) = wish.keys.first().and_then(home).map(|shard| (shard.shard, shard.epoch.range)) else {
            self.think(client);
            return;
        };
        let deadline_ms = *DEADLINES_MS.choose(&mut self.rng).unwrap_or(&1_500);
        let at = self.workload.history.len();
        self.workload.history.push(Recorded {
            client,
            call_us: self.now_us,
            returned_us: None,
            did: wish.did,
            fate: Fate::Unknown,
        });
        self.workload.clients[client].under_way = Some(at);
        self.submit(gateway, shard, wish.request, deadline_ms, Who::Client(client));
    }

    fn submit(&mut self, gateway: NodeId, shard: (ShardId, u64), request: Request, deadline_ms: u64, who: Who) {
        self.with(gateway, |world, node, running| match request {
            Request::Query(query) => {
                world.query(node, running, shard, encode_query(&query), deadline_ms, who);
            }
            Request::Command { conditions, operations } => {
                let command = Command {
                    session: SessionId(0),
                    sequence: 0,
                    expires_at_ms: 0,
                    acked_below: 0,
                    conditions,
                    operations,
                };
                world.command(node, running, shard, command, deadline_ms, who);
            }
        });
    }

    fn wish(&mut self, client: usize, record_key: &dyn Fn(&str) -> Bytes) -> Wish {
        let register = format!("r{}", self.rng.random_range(0..REGISTERS));
        let counter = format!("c{}", self.rng.random_range(0..COUNTERS));
        let group = self.rng.random_range(0..GROUPS);
        let members: Vec<_> = (0..MEMBERS).map(|member| format!("{{g{group}}}{member}")).collect();
        self.workload.values += 1;
        // Some are large, so that bounds on bytes matter too.
        let padding = if self.rng.random_range(0..10) == 0 { 600 } else { 0 };
        let value = format!("v{}{}", self.workload.values, ".".repeat(padding));
        let seen = &self.workload.clients[client].seen;
        let seen_of =
            |key: &str| seen.iter().find(|(known, ..)| known == key).map(|(_, value, at)| (value.clone(), *at));
        match self.rng.random_range(0..16) {
            0..=3 => get(vec![register], record_key),
            4 => get(vec![counter], record_key),
            5..=7 => {
                let operations = vec![put(record_key(&register), &value)];
                change(Did::Put { key: register.clone(), value }, vec![register], Vec::new(), operations)
            }
            8 | 9 => {
                let expected = seen_of(&register);
                let condition =
                    expected.as_ref().map_or(Condition::Absent, |(_, version)| Condition::Version(*version));
                let mut operation = put(record_key(&register), &value);
                operation.condition = Some(condition);
                let did = Did::PutIf { key: register.clone(), expected: expected.map(|(value, _)| value), value };
                change(did, vec![register], Vec::new(), vec![operation])
            }
            10 | 11 => {
                let operations = vec![operation(record_key(&counter), Action::Add { delta: 1 })];
                change(Did::Add { key: counter.clone() }, vec![counter], Vec::new(), operations)
            }
            12 => {
                let operations = vec![operation(record_key(&register), Action::Delete { return_old: false })];
                change(Did::Delete { key: register.clone() }, vec![register], Vec::new(), operations)
            }
            13 | 14 => {
                let expected = if self.rng.random_bool(0.5) { None } else { Some(seen_of(&members[0])) };
                let condition = expected.as_ref().map(|expected| {
                    expected.as_ref().map_or(Condition::Absent, |(_, version)| Condition::Version(*version))
                });
                let conditions = condition.into_iter().map(|condition| (record_key(&members[0]), condition)).collect();
                let operations = members.iter().map(|key| put(record_key(key), &value)).collect();
                let expected = expected.map(|expected| expected.map(|(value, _)| value));
                change(Did::Batch { keys: members.clone(), expected, value }, members, conditions, operations)
            }
            _ if self.rng.random_bool(0.5) => get(members, record_key),
            _ => scan(members, record_key),
        }
    }

    fn told_of(&mut self, client: usize, asked: Asked) {
        let Some(at) = self.workload.clients[client].under_way.take() else { return };
        let is_read = matches!(self.workload.history[at].did, Did::Get { .. });
        let fate = match asked.result {
            Ok(bytes) => self.understand(client, at, bytes),
            Err(ShardError::Unknown) if !is_read => Fate::Unknown,
            Err(_) => Fate::Refused,
        };
        let now_us = self.now_us;
        let recorded = &mut self.workload.history[at];
        recorded.returned_us = (fate != Fate::Unknown).then_some(now_us);
        recorded.fate = fate;
        self.think(client);
    }

    fn understand(&mut self, client: usize, at: usize, bytes: Bytes) -> Fate {
        let did = self.workload.history[at].did.clone();
        if let Did::Get { keys } = &did {
            let records = match decode_answer(bytes) {
                Ok(Found::Records(records)) => records,
                Ok(Found::Page { records, next: None }) => keys
                    .iter()
                    .map(|key| records.iter().find(|record| record.key.ends_with(key.as_bytes())).cloned())
                    .collect(),
                Ok(Found::WrongShard | Found::TimeNeeded) => return Fate::Refused,
                other => panic!("{other:?} is no answer to {did:?}"),
            };
            let seen = &mut self.workload.clients[client].seen;
            let text = |value: &Bytes| String::from_utf8_lossy(value).into_owned();
            for (key, record) in keys.iter().zip(&records) {
                seen.retain(|(known, ..)| known != key);
                seen.extend(record.as_ref().map(|record| (key.clone(), text(&record.value), record.version)));
            }
            return Fate::Read(
                records.iter().map(|record| record.as_ref().map(|record| text(&record.value))).collect(),
            );
        }
        let outcome = decode_outcome(bytes).unwrap_or_else(|error| panic!("{error} for {did:?}"));
        match outcome {
            Outcome::Done { results, .. } => match (&did, results.first()) {
                (Did::Add { .. }, Some(OperationResult::Written { number, .. })) => Fate::Sum(*number),
                (Did::Delete { .. }, Some(OperationResult::Deleted { .. })) => Fate::Deleted(true),
                (Did::Delete { .. }, Some(OperationResult::Absent)) => Fate::Deleted(false),
                (_, Some(OperationResult::Written { .. })) => Fate::Written,
                (_, other) => panic!("{other:?} is no result of {did:?}"),
            },
            Outcome::Refused(Refusal::ConditionFailed { .. }) => Fate::Failed,
            Outcome::Refused(Refusal::Expired { .. } | Refusal::OutcomeForgotten) => Fate::Unknown,
            Outcome::Refused(Refusal::SessionFull | Refusal::WrongShard) => Fate::Refused,
            Outcome::Refused(other) => panic!("{did:?} was refused: {other}"),
        }
    }
}

fn get(keys: Vec<String>, record_key: &dyn Fn(&str) -> Bytes) -> Wish {
    let query = Query::Get { keys: keys.iter().map(|key| record_key(key)).collect(), values: true };
    Wish { did: Did::Get { keys: keys.clone() }, request: Request::Query(query), keys }
}

fn scan(keys: Vec<String>, record_key: &dyn Fn(&str) -> Bytes) -> Wish {
    let start = record_key(&keys[0]);
    let mut end = record_key(&keys[keys.len() - 1]).to_vec();
    end.push(0);
    let range = KeyRange { start, end: end.into() };
    let query = Query::Scan { range, items_max: 100, bytes_max: 1 << 20, values: true };
    Wish { did: Did::Get { keys: keys.clone() }, request: Request::Query(query), keys }
}

fn change(did: Did, keys: Vec<String>, conditions: Vec<(Bytes, Condition)>, operations: Vec<Operation>) -> Wish {
    Wish { did, request: Request::Command { conditions, operations }, keys }
}

fn operation(key: Bytes, action: Action) -> Operation {
    Operation { key, condition: None, otherwise: Otherwise::Refuse, action }
}

fn put(key: Bytes, value: &str) -> Operation {
    let value = Bytes::copy_from_slice(value.as_bytes());
    operation(key, Action::Put { value, expiry: Expiry::Never, return_old: false })
}
