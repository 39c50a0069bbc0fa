//! Decides one history: compiles it, drops irrelevant operations, partitions it by key and searches each
//! partition.
//!
//! Linearizability is local (Herlihy and Wing 1990; Horn and Kroening 2015 for the parts of one object): keys
//! that no operation joins are searched separately. Keys that one operation reads or writes together are one
//! object.

use std::collections::BTreeMap;

use crate::{
    cells::{Cell, Key},
    compile::Compiled,
    model::{Budget, Timed},
    operation::{Operation, Outcome},
    registers::{Partition, Registers, Slots, Start},
    search::{Answer, search},
};

/// Steps that each partition may take in the first round: a hard partition must not use up the budget of the
/// others.
const STEPS_FIRST: u64 = 200_000;
/// Rounds of dropping operations of unknown outcome. Each round may make other operations unobserved.
const DROP_ROUNDS_MAX: usize = 8;

/// The decision on a history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Decision {
    Linearizable,
    /// The operations of the partition that has no order, and the one at which the search got stuck.
    Fails {
        partition: Vec<usize>,
        stuck: usize,
    },
    Unknown,
}

/// An operation that constrains the history, with its index.
struct Judged {
    index: usize,
    timed: Timed<Compiled>,
}

/// Keys that are joined, and the operations on them.
#[derive(Default)]
struct Joined {
    keys: Vec<Key>,
    places: Vec<usize>,
    operations: Vec<Timed<Compiled>>,
}

/// Decides a validated history.
pub(crate) fn decide(history: &[Operation], start: Start, budget: &mut Budget) -> Decision {
    let mut registers = Registers::default();
    let judged = prepare(history, &mut registers);
    let mut open: Vec<Joined> = partitions(judged, registers.cells.keys_len());
    let mut steps_each = STEPS_FIRST;
    let mut unknown = false;
    loop {
        let mut again = Vec::new();
        let rest = open.len();
        for joined in open {
            // The easiest history takes two steps per operation.
            let steps = steps_each.max(8 * joined.operations.len() as u64).min(budget.steps);
            let mut slice = Budget { steps, ..*budget };
            let answer = judge(&joined, &mut registers, start, &mut slice);
            budget.steps -= steps - slice.steps;
            match answer {
                Answer::Linearizable(_) => {}
                Answer::NotLinearizable { stuck } => {
                    return Decision::Fails { stuck: joined.places[stuck], partition: joined.places };
                }
                Answer::Unknown if slice.steps == 0 && budget.steps > 0 => again.push(joined),
                Answer::Unknown => unknown = true,
            }
        }
        if again.is_empty() {
            return if unknown { Decision::Unknown } else { Decision::Linearizable };
        }
        // If no partition was decided in this round, share the whole budget.
        steps_each = if again.len() == rest { budget.steps / again.len() as u64 } else { 8 * steps_each };
        steps_each = steps_each.max(STEPS_FIRST);
        open = again;
    }
}

/// The indexes of the operations that constrain a history: without the others the decision is the same.
pub(crate) fn constraining(history: &[Operation]) -> Vec<usize> {
    prepare(history, &mut Registers::default()).into_iter().map(|one| one.index).collect()
}

fn prepare(history: &[Operation], registers: &mut Registers) -> Vec<Judged> {
    let mut judged = Vec::with_capacity(history.len());
    for (index, operation) in history.iter().enumerate() {
        let Some(compiled) = Compiled::new(&mut registers.cells, operation) else { continue };
        let ret = operation.ret.filter(|_| operation.outcome != Outcome::Unknown);
        judged.push(Judged { index, timed: Timed { call: operation.call, ret, operation: compiled } });
    }
    for one in &judged {
        registers.prepare(&one.timed.operation, one.timed.call);
    }
    for _ in 0..DROP_ROUNDS_MAX {
        let before = judged.len();
        judged.retain(|one| {
            let dropped = registers.may_be_dropped(&one.timed.operation);
            if dropped {
                registers.take(&one.timed.operation);
            }
            !dropped
        });
        if judged.len() == before {
            break;
        }
    }
    judged
}

fn partitions(judged: Vec<Judged>, keys: usize) -> Vec<Joined> {
    let mut parents: Vec<Key> = (0..keys as Key).collect();
    for one in &judged {
        let mut keys = one.timed.operation.keys();
        let Some(first) = keys.next() else { continue };
        for key in keys {
            let (one, other) = (root(&mut parents, first), root(&mut parents, key));
            parents[one as usize] = other;
        }
    }
    let mut all: BTreeMap<Key, Joined> = BTreeMap::new();
    let mut slot_of = vec![u32::MAX; keys];
    for mut one in judged {
        let Some(first) = one.timed.operation.keys().next() else { continue };
        let joined = all.entry(root(&mut parents, first)).or_default();
        for key in one.timed.operation.keys() {
            if slot_of[key as usize] == u32::MAX {
                slot_of[key as usize] = joined.keys.len() as u32;
                joined.keys.push(key);
            }
        }
        one.timed.operation.place(&slot_of);
        joined.places.push(one.index);
        joined.operations.push(one.timed);
    }
    all.into_values().collect()
}

fn root(parents: &mut [Key], mut key: Key) -> Key {
    while parents[key as usize] != key {
        let above = parents[parents[key as usize] as usize];
        parents[key as usize] = above;
        key = above;
    }
    key
}

fn judge(joined: &Joined, registers: &mut Registers, start: Start, budget: &mut Budget) -> Answer {
    let impossible = |one: &(usize, &Timed<Compiled>)| registers.is_impossible(&one.1.operation);
    let first = joined.operations.iter().enumerate().filter(impossible).min_by_key(|(_, one)| one.ret);
    if let (Start::Nothing, Some((stuck, _))) = (start, first) {
        return Answer::NotLinearizable { stuck };
    }
    match joined.keys.len() {
        1 => run::<Cell>(joined, registers, start, budget),
        _ => run::<Vec<Cell>>(joined, registers, start, budget),
    }
}

fn run<S: Slots>(joined: &Joined, registers: &mut Registers, start: Start, budget: &mut Budget) -> Answer {
    let mut partition = Partition::<S>::new(registers, &joined.keys, start);
    search(&mut partition, &joined.operations, budget)
}
