//! Random histories: ones that a simulated store produced, and invented ones.

use std::collections::BTreeMap;

use bytes::Bytes;
use flotilla_checker::{Condition, Kind, Operation, Outcome, Write};
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};

use crate::oracle::serve;

/// Random numbers from a seed.
pub(crate) struct Dice(ChaCha8Rng);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0.next_u64() % bound
    }

    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// The parameters of a random history.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) operations: u64,
    pub(crate) clients: u64,
    pub(crate) keys: u64,
    /// Number of distinct values put; 0: every value is distinct.
    pub(crate) values: u64,
    /// One in this many operations has an unknown outcome.
    pub(crate) unknown_one_in: u64,
    pub(crate) mix: Mix,
}

/// The kinds of operations in a history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mix {
    /// Gets and puts.
    Register,
    /// And deletions, compare-and-set.
    Conditional,
    /// Adds and gets.
    Counter,
    /// All, over several keys too.
    All,
}

/// Draws an operation.
pub(crate) fn kind(dice: &mut Dice, shape: &Shape, number: u64) -> Kind {
    let key = |dice: &mut Dice| Bytes::from(format!("k{}", dice.below(shape.keys)));
    let value = |dice: &mut Dice| {
        let value = if shape.values == 0 { number } else { dice.below(shape.values) };
        Bytes::from(if shape.mix == Mix::Register { format!("v{value}") } else { value.to_string() })
    };
    let condition = |dice: &mut Dice| match dice.below(4) {
        0 => Condition::Absent,
        1 => Condition::Present,
        _ => Condition::Equals(dice.below(shape.values.max(number).max(1)).to_string().into()),
    };
    let write = |dice: &mut Dice| match dice.below(6) {
        0 => Write::Delete,
        1 | 2 => Write::Add(dice.below(3) as i64 - 1),
        3 => Write::Append(value(dice)),
        _ => Write::Put(value(dice)),
    };
    let few = |dice: &mut Dice| dice.below(3) + 1;
    let kinds = match shape.mix {
        Mix::Register => 2,
        Mix::Counter => 0,
        Mix::Conditional => 5,
        Mix::All => 10,
    };
    if kinds == 0 {
        return if dice.one_in(3) { Kind::get(key(dice)) } else { Kind::add(key(dice), dice.below(3) as i64 + 1) };
    }
    match dice.below(kinds) {
        0 => Kind::get(key(dice)),
        1 => Kind::put(key(dice), value(dice)),
        2 => Kind::delete(key(dice)),
        3 | 4 => {
            let new = (!dice.one_in(4)).then(|| value(dice));
            Kind::compare_and_set(key(dice), condition(dice), new)
        }
        5 => Kind::read((0..few(dice)).map(|_| key(dice)).collect::<Vec<_>>()),
        6 | 7 => Kind::Batch {
            conditions: (0..dice.below(3)).map(|_| (key(dice), condition(dice))).collect(),
            writes: (0..few(dice)).map(|_| (key(dice), write(dice))).collect(),
        },
        _ => Kind::Write { key: key(dice), write: write(dice) },
    }
}

/// A history that a simulated store produced: each operation took effect at a random moment between call and
/// return, those of unknown outcome possibly later or never. Times are unique.
pub(crate) fn produced(dice: &mut Dice, shape: &Shape) -> Vec<Operation> {
    #[derive(Debug)]
    enum Stage {
        Idle,
        Called(usize),
        Done(usize, Outcome),
    }
    let mut store = BTreeMap::new();
    let mut history: Vec<Operation> = Vec::new();
    let mut stages: Vec<Stage> = (0..shape.clients).map(|_| Stage::Idle).collect();
    // Abandoned by their clients, not yet in effect.
    let mut late: Vec<usize> = Vec::new();
    let mut now = 0;
    loop {
        now += 1;
        let client = dice.below(shape.clients) as usize;
        match std::mem::replace(&mut stages[client], Stage::Idle) {
            Stage::Idle if (history.len() as u64) < shape.operations => {
                let kind = kind(dice, shape, history.len() as u64);
                let client_id = client as u64;
                history.push(Operation { client: client_id, call: now, ret: None, kind, outcome: Outcome::Unknown });
                stages[client] = Stage::Called(history.len() - 1);
            }
            Stage::Idle => {}
            Stage::Called(at) if dice.one_in(shape.unknown_one_in) => {
                history[at].ret = (!dice.one_in(3)).then_some(now);
                late.push(at);
            }
            Stage::Called(at) => stages[client] = Stage::Done(at, serve(&mut store, &history[at].kind)),
            Stage::Done(at, outcome) => {
                history[at].ret = Some(now);
                history[at].outcome = outcome;
            }
        }
        if !late.is_empty() && dice.one_in(8) {
            let at = late.swap_remove(dice.below(late.len() as u64) as usize);
            if dice.one_in(2) {
                serve(&mut store, &history[at].kind);
            }
        }
        let idle = stages.iter().all(|stage| matches!(stage, Stage::Idle));
        if idle && history.len() as u64 == shape.operations {
            return history;
        }
    }
}

/// A history with random outcomes, and times that often coincide.
pub(crate) fn invented(dice: &mut Dice, shape: &Shape) -> Vec<Operation> {
    (0..shape.operations)
        .map(|number| {
            let kind = kind(dice, shape, number);
            let call = dice.below(2 * shape.operations);
            let ret = call + dice.below(shape.operations);
            let outcome = if dice.one_in(shape.unknown_one_in) { Outcome::Unknown } else { outcome(dice, &kind) };
            Operation { client: number, call, ret: Some(ret), kind, outcome }
        })
        .collect()
}

/// A random outcome that the operation can have.
pub(crate) fn outcome(dice: &mut Dice, kind: &Kind) -> Outcome {
    let value = |dice: &mut Dice| (!dice.one_in(3)).then(|| Bytes::from(dice.below(3).to_string()));
    match kind {
        Kind::Get { .. } => Outcome::Value(value(dice)),
        Kind::Read { keys } => Outcome::Values(keys.iter().map(|_| value(dice)).collect()),
        Kind::Write { write: Write::Put(_), .. } => Outcome::Done,
        Kind::Write { write: Write::Delete, .. } => match dice.below(3) {
            0 => Outcome::Done,
            one => Outcome::Existed(one == 1),
        },
        Kind::Write { .. } => match dice.below(3) {
            0 => Outcome::Done,
            _ => Outcome::Number(dice.below(4) as i64),
        },
        Kind::Batch { conditions, .. } if conditions.is_empty() => Outcome::Done,
        Kind::Batch { .. } | Kind::CompareAndSet { .. } => match dice.below(3) {
            0 => Outcome::ConditionFailed,
            _ => Outcome::Done,
        },
    }
}
