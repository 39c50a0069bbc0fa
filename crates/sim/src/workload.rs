//! Clients that put, get, add, compare-and-set, delete, batch and scan, each one operation at a time, and the
//! history of their operations and results.
//!
//! An operation of unknown outcome never returns; a refused one did not happen. This module does not judge
//! the history: the checker does (see `linearizability`).

use bytes::Bytes;
use flotilla_control::{Earlier, ShardAnswer, ShardError};
use flotilla_kv::{
    Action, Answer as Found, Command, Condition, Expiry, Operation, OperationResult, Otherwise, Outcome, Query,
    Refusal, decode_answer, decode_outcome, encode_query,
};
use flotilla_types::{KeyRange, NodeId, SessionId, Timestamp};
use rand::{RngExt as _, seq::IndexedRandom as _};

use crate::{
    clock::WALL_START_MS,
    node::{Caller, Completion},
    world::{Event, World},
};

/// Keys that only single operations touch.
const REGISTERS: usize = 6;
const COUNTERS: usize = 2;
/// Groups of keys that batches and scans touch together; the tag in the key puts each group into one shard.
const GROUPS: usize = 2;
const MEMBERS: usize = 2;
/// Groups of keys that only operations with expiries touch, keys of each, and keys of one operation.
const EXPIRING_GROUPS: usize = 2;
const EXPIRING_MEMBERS: usize = 60;
const EXPIRING_AT_ONCE: usize = 16;
/// How long records live that expire soon, milliseconds.
const SOON_MS: std::ops::Range<u64> = 200..6_000;
/// How long records live that expire after every run, milliseconds.
const FAR_MS: u64 = 10 * 365 * 86_400_000;
/// Deadlines to choose from, milliseconds.
const DEADLINES_MS: [u64; 3] = [500, 1_500, 4_000];

/// An event of a client.
#[derive(Debug)]
pub(crate) enum ClientEvent {
    /// The client starts its next operation.
    StartOp,
    /// The client's operation has a result.
    OpDone(Box<Completion>),
}

/// One operation as its client saw it.
#[derive(Debug, Clone)]
pub(crate) struct RecordedOp {
    pub(crate) client: usize,
    pub(crate) call_us: u64,
    /// `None` while the operation is in flight, and when its outcome is unknown.
    pub(crate) returned_us: Option<u64>,
    pub(crate) op: ClientOp,
    pub(crate) result: OpResult,
}

/// An operation of a client. Values are unique in a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ClientOp {
    Get {
        keys: Vec<String>,
    },
    Put {
        key: String,
        value: String,
    },
    /// Puts if the key has this value, or if it is absent (`None`).
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
    /// Puts one value under all keys; if `expected` is set, only when the first key has that value, or is
    /// absent.
    Batch {
        keys: Vec<String>,
        expected: Option<Option<String>>,
        value: String,
    },
    /// Writes keys of which some expire soon. When they disappear depends on clocks, so no history judges it:
    /// what is stored at the end does.
    Expiring {
        keys: Vec<String>,
    },
}

/// The result of an operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum OpResult {
    /// The outcome is unknown; the operation may still take effect.
    Unknown,
    /// The operation did not take effect.
    Refused,
    /// A condition did not hold, so nothing was written.
    ConditionFailed,
    Written,
    Read(Vec<Option<String>>),
    Sum(i64),
    /// Whether the key existed.
    Deleted(bool),
}

/// Keys that a split may separate from others: no operation on several keys has one on either side.
pub(crate) fn keys_apart() -> impl Iterator<Item = String> {
    let registers = (0..REGISTERS).map(|number| format!("r{number}"));
    let counters = (0..COUNTERS).map(|number| format!("c{number}"));
    let groups = (0..GROUPS).map(|group| format!("{{g{group}}}"));
    let expiring = (0..EXPIRING_GROUPS).map(|group| format!("{{x{group}}}"));
    registers.chain(counters).chain(groups).chain(expiring)
}

/// All clients, and the history of their operations.
#[derive(Default)]
pub(crate) struct Workload {
    clients: Vec<Client>,
    pub(crate) history: Vec<RecordedOp>,
    values: u64,
}

#[derive(Default)]
struct Client {
    /// The operation in flight, as an index into the history.
    in_flight: Option<usize>,
    /// The last value that this client read of each key, with its version; used for conditions.
    seen: Vec<(String, String, Timestamp)>,
    paused: bool,
}

impl Workload {
    /// Whether all clients are paused and no operation is in flight.
    pub(crate) fn is_idle(&self) -> bool {
        self.clients.iter().all(|client| client.paused && client.in_flight.is_none())
    }

    /// Sets whether clients start new operations. Those in flight go on.
    pub(crate) fn set_paused(&mut self, paused: bool) {
        for client in &mut self.clients {
            client.paused = paused;
        }
    }

    /// Number of acknowledged writes.
    pub(crate) fn acknowledged(&self) -> usize {
        self.history
            .iter()
            .filter(|done| matches!(done.result, OpResult::Written | OpResult::Sum(_) | OpResult::Deleted(_)))
            .count()
    }
}

/// An operation with the request that performs it.
struct DrawnOp {
    op: ClientOp,
    request: Request,
    /// Its keys; the first one decides the shard.
    keys: Vec<String>,
}

enum Request {
    Query(Query),
    Command { conditions: Vec<(Bytes, Condition)>, operations: Vec<Operation> },
}

impl World {
    /// Starts the clients of the plan.
    pub(crate) fn start_clients(&mut self) {
        for client in 0..self.plan.clients {
            self.workload.clients.push(Client::default());
            self.schedule_next_op(client);
        }
    }

    /// Resumes paused clients.
    pub(crate) fn resume_clients(&mut self) {
        self.workload.set_paused(false);
        for client in 0..self.workload.clients.len() {
            if self.workload.clients[client].in_flight.is_none() {
                self.schedule_next_op(client);
            }
        }
    }

    fn schedule_next_op(&mut self, client: usize) {
        let delay_us = self.rng.random_range(500..self.plan.think_us_max);
        self.schedule(delay_us, Event::Client { client, event: ClientEvent::StartOp });
    }

    pub(crate) fn client_event(&mut self, client: usize, event: ClientEvent) {
        match event {
            ClientEvent::StartOp => self.start_op(client),
            ClientEvent::OpDone(completion) => self.op_completed(client, *completion),
        }
    }

    fn start_op(&mut self, client: usize) {
        if self.workload.clients[client].paused || self.workload.clients[client].in_flight.is_some() {
            return;
        }
        let live: Vec<_> = self.nodes.values().filter(|node| node.running.is_some()).map(|node| node.id).collect();
        let Some(gateway) = live.choose(&mut self.rng).copied() else {
            self.schedule_next_op(client);
            return;
        };
        let Some(map) = self.nodes[&gateway].running.as_ref().map(|running| running.control.cluster.map().clone())
        else {
            return;
        };
        let Some(collection) = map.collection("default") else {
            self.schedule_next_op(client);
            return;
        };
        let record_key = |key: &str| collection.record_key(key.as_bytes()).into_bytes();
        let drawn = self.draw_op(client, &record_key);
        let Some(key) = drawn.keys.first().map(|key| record_key(key)).filter(|key| map.shard_of(key).is_some()) else {
            self.schedule_next_op(client);
            return;
        };
        let deadline_ms = *DEADLINES_MS.choose(&mut self.rng).unwrap_or(&1_500);
        let at = self.workload.history.len();
        self.workload.history.push(RecordedOp {
            client,
            call_us: self.now_us,
            returned_us: None,
            op: drawn.op,
            result: OpResult::Unknown,
        });
        self.workload.clients[client].in_flight = Some(at);
        self.submit(gateway, key, drawn.request, deadline_ms, Caller::Client(client));
    }

    fn submit(&mut self, gateway: NodeId, key: Bytes, request: Request, deadline_ms: u64, caller: Caller) {
        self.with_node(gateway, |world, node, running| match request {
            Request::Query(query) => {
                world.query(node, running, key, encode_query(&query), deadline_ms, caller);
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
                world.command(node, running, key, command, deadline_ms, caller);
            }
        });
    }

    /// An operation on keys that expire.
    fn draw_expiring(&mut self, record_key: &dyn Fn(&str) -> Bytes) -> DrawnOp {
        let group = self.rng.random_range(0..EXPIRING_GROUPS);
        let (first, count) = (self.rng.random_range(0..EXPIRING_MEMBERS), self.rng.random_range(1..=EXPIRING_AT_ONCE));
        let members = (0..count).map(|offset| (first + offset) % EXPIRING_MEMBERS);
        let keys: Vec<_> = members.map(|member| format!("{{x{group}}}{member}")).collect();
        let now_ms = WALL_START_MS + self.now_ms();
        let mut operations = Vec::with_capacity(count);
        for key in &keys {
            let expiry = match self.rng.random_range(0..8) {
                0..=4 => Expiry::At(now_ms + self.rng.random_range(SOON_MS)),
                5 => Expiry::At(now_ms + FAR_MS),
                6 => Expiry::Never,
                _ => Expiry::Keep,
            };
            let action = match self.rng.random_range(0..8) {
                0..=4 => Action::Put { value: "expiring".into(), expiry, return_old: false },
                5 => Action::Expire { expiry },
                6 => Action::Append { bytes: Bytes::from_static(b"+") },
                _ => Action::Delete { return_old: false },
            };
            operations.push(operation(record_key(key), action));
        }
        change(ClientOp::Expiring { keys: keys.clone() }, keys, Vec::new(), operations)
    }

    fn draw_op(&mut self, client: usize, record_key: &dyn Fn(&str) -> Bytes) -> DrawnOp {
        let expiring_percent = self.plan.expiring_percent;
        if expiring_percent > 0 && self.rng.random_range(0..100) < expiring_percent {
            return self.draw_expiring(record_key);
        }
        // An expiry after the run changes nothing that clients see.
        let expires = expiring_percent > 0 && self.rng.random_bool(0.3);
        let expiry = if expires { Expiry::At(WALL_START_MS + FAR_MS) } else { Expiry::Never };
        let register = format!("r{}", self.rng.random_range(0..REGISTERS));
        let counter = format!("c{}", self.rng.random_range(0..COUNTERS));
        let group = self.rng.random_range(0..GROUPS);
        let members: Vec<_> = (0..MEMBERS).map(|member| format!("{{g{group}}}{member}")).collect();
        self.workload.values += 1;
        // Some values are large, so that limits on bytes matter too.
        let padding = if self.rng.random_range(0..10) == 0 { 600 } else { 0 };
        let value = format!("v{}{}", self.workload.values, ".".repeat(padding));
        let seen = &self.workload.clients[client].seen;
        let seen_of = |key: &str| seen.iter().find(|(seen, ..)| seen == key).map(|(_, value, at)| (value.clone(), *at));
        match self.rng.random_range(0..16) {
            0..=3 => get(vec![register], record_key),
            4 => get(vec![counter], record_key),
            5..=7 => {
                let operations = vec![put(record_key(&register), &value, expiry)];
                change(ClientOp::Put { key: register.clone(), value }, vec![register], Vec::new(), operations)
            }
            8 | 9 => {
                let expected = seen_of(&register);
                let condition =
                    expected.as_ref().map_or(Condition::Absent, |(_, version)| Condition::Version(*version));
                let mut operation = put(record_key(&register), &value, expiry);
                operation.condition = Some(condition);
                let op = ClientOp::PutIf { key: register.clone(), expected: expected.map(|(value, _)| value), value };
                change(op, vec![register], Vec::new(), vec![operation])
            }
            10 | 11 => {
                let operations = vec![operation(record_key(&counter), Action::Add { delta: 1 })];
                change(ClientOp::Add { key: counter.clone() }, vec![counter], Vec::new(), operations)
            }
            12 => {
                let operations = vec![operation(record_key(&register), Action::Delete { return_old: false })];
                change(ClientOp::Delete { key: register.clone() }, vec![register], Vec::new(), operations)
            }
            13 | 14 => {
                let expected = if self.rng.random_bool(0.5) { None } else { Some(seen_of(&members[0])) };
                let condition = expected.as_ref().map(|expected| {
                    expected.as_ref().map_or(Condition::Absent, |(_, version)| Condition::Version(*version))
                });
                let conditions = condition.into_iter().map(|condition| (record_key(&members[0]), condition)).collect();
                let operations = members.iter().map(|key| put(record_key(key), &value, expiry)).collect();
                let expected = expected.map(|expected| expected.map(|(value, _)| value));
                change(ClientOp::Batch { keys: members.clone(), expected, value }, members, conditions, operations)
            }
            _ if self.rng.random_bool(0.5) => get(members, record_key),
            _ => scan(members, record_key),
        }
    }

    fn op_completed(&mut self, client: usize, completion: Completion) {
        let Some(at) = self.workload.clients[client].in_flight.take() else { return };
        let is_read = matches!(self.workload.history[at].op, ClientOp::Get { .. });
        let result = match completion.result {
            Ok(answer) => self.decode_result(client, at, answer),
            Err(ShardError::Unknown) if !is_read => OpResult::Unknown,
            Err(_) => OpResult::Refused,
        };
        let now_us = self.now_us;
        let recorded = &mut self.workload.history[at];
        recorded.returned_us = (result != OpResult::Unknown).then_some(now_us);
        recorded.result = result;
        self.schedule_next_op(client);
    }

    fn decode_result(&mut self, client: usize, at: usize, answer: ShardAnswer) -> OpResult {
        let ShardAnswer { payload: bytes, earlier, .. } = answer;
        let op = self.workload.history[at].op.clone();
        if let ClientOp::Get { keys } = &op {
            let records = match decode_answer(bytes) {
                Ok(Found::Records(records)) => records,
                Ok(Found::Page { records, next: None }) => keys
                    .iter()
                    .map(|key| records.iter().find(|record| record.key.ends_with(key.as_bytes())).cloned())
                    .collect(),
                Ok(Found::ClockAdvanceNeeded) => return OpResult::Refused,
                other => panic!("{other:?} is not an answer to {op:?}"),
            };
            let seen = &mut self.workload.clients[client].seen;
            let text = |value: &flotilla_kv::Value| {
                String::from_utf8_lossy(value.inline().map_or(&[][..], |bytes| bytes)).into_owned()
            };
            for (key, record) in keys.iter().zip(&records) {
                seen.retain(|(seen, ..)| seen != key);
                seen.extend(record.as_ref().map(|record| (key.clone(), text(&record.value), record.version)));
            }
            return OpResult::Read(
                records.iter().map(|record| record.as_ref().map(|record| text(&record.value))).collect(),
            );
        }
        let outcome = decode_outcome(bytes).unwrap_or_else(|error| panic!("{error} for {op:?}"));
        match outcome {
            Outcome::Done { results, .. } => match (&op, results.first()) {
                (ClientOp::Add { .. }, Some(OperationResult::Written { number, .. })) => OpResult::Sum(*number),
                (ClientOp::Delete { .. }, Some(OperationResult::Deleted { .. })) => OpResult::Deleted(true),
                (ClientOp::Delete { .. }, Some(OperationResult::Absent)) => OpResult::Deleted(false),
                (_, Some(OperationResult::Written { .. })) | (ClientOp::Expiring { .. }, _) => OpResult::Written,
                (_, other) => panic!("{other:?} is not a result of {op:?}"),
            },
            Outcome::Refused(Refusal::ConditionFailed { .. }) => OpResult::ConditionFailed,
            Outcome::Refused(Refusal::OutcomeForgotten) => OpResult::Unknown,
            // As in the real gateway: a refusal that is not remembered says nothing about earlier attempts.
            Outcome::Refused(refusal) if earlier == Earlier::InDoubt && !refusal.is_remembered() => OpResult::Unknown,
            Outcome::Refused(Refusal::Expired { .. } | Refusal::SessionFull) => OpResult::Refused,
            Outcome::Refused(other) => panic!("{op:?} was refused: {other}"),
        }
    }
}

fn get(keys: Vec<String>, record_key: &dyn Fn(&str) -> Bytes) -> DrawnOp {
    let query = Query::Get { keys: keys.iter().map(|key| record_key(key)).collect(), values: true };
    DrawnOp { op: ClientOp::Get { keys: keys.clone() }, request: Request::Query(query), keys }
}

fn scan(keys: Vec<String>, record_key: &dyn Fn(&str) -> Bytes) -> DrawnOp {
    let start = record_key(&keys[0]);
    let mut end = record_key(&keys[keys.len() - 1]).to_vec();
    end.push(0);
    let range = KeyRange { start, end: end.into() };
    let query = Query::Scan { range, items_max: 100, bytes_max: 1 << 20, values: true };
    DrawnOp { op: ClientOp::Get { keys: keys.clone() }, request: Request::Query(query), keys }
}

fn change(op: ClientOp, keys: Vec<String>, conditions: Vec<(Bytes, Condition)>, operations: Vec<Operation>) -> DrawnOp {
    DrawnOp { op, request: Request::Command { conditions, operations }, keys }
}

fn operation(key: Bytes, action: Action) -> Operation {
    Operation { key, condition: None, otherwise: Otherwise::Refuse, action }
}

fn put(key: Bytes, value: &str, expiry: Expiry) -> Operation {
    let value = Bytes::copy_from_slice(value.as_bytes());
    operation(key, Action::Put { value: value.into(), expiry, return_old: false })
}
