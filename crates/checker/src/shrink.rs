//! Shrinks a partition that fails to a small part that still fails.
//!
//! Shrinking only weakens a history: it cuts the history off at a time, replaces everything before another
//! time by "any state", drops a pure read, or makes an outcome unknown. If the weakened history fails, so
//! does the original, so a witness is never an artefact of shrinking. Each attempt is decided separately; the
//! limits below end the attempts, and the smallest failing part found so far is the witness.

use std::{collections::BTreeSet, ops::Range};

use bytes::Bytes;

use crate::{
    decide::{Decision, constraining, decide},
    model::Budget,
    operation::{Kind, Operation, Outcome, Write},
    registers::Start,
    witness::Witness,
};

/// Maximum histories tried.
const TRIES_MAX: usize = 2_000;
/// Maximum steps spent on dropping operations.
const DISCARD_STEPS_MAX: u64 = 2_000_000;
/// Cost of an attempt per operation, in steps: preparing an operation costs more than a step of the search.
const STEPS_PER_OPERATION: u64 = 20;
/// Operations in the first window tried; each next one has twice as many.
const WINDOW_FIRST: usize = 4;
/// Maximum values tried as possible values of a key.
const CANDIDATES_MAX: usize = 32;

/// Shrinks a failing partition, in which the search got stuck at one operation.
pub(crate) fn shrink(history: &[Operation], mut partition: Vec<usize>, stuck: usize, budget: Budget) -> Witness {
    let mut shrinker = Shrinker { history, budget, tries: 0 };
    partition.sort_unstable();
    let (until, culprit) = shrinker.shortest_prefix(&partition, stuck);
    let prefix: Vec<usize> = partition.into_iter().filter(|place| history[*place].call <= until).collect();
    let mut part = shrinker.shortest_window(&prefix, until, culprit);
    shrinker.budget.steps = shrinker.budget.steps.min(DISCARD_STEPS_MAX);
    shrinker.discard(&mut part);
    let possible = shrinker.possible(&part);
    let places: Vec<usize> = part.kept.into_iter().map(|(place, _)| place).collect();
    Witness {
        culprit: places.iter().position(|place| *place == culprit).expect("the culprit is never discarded"),
        operations: places.iter().map(|place| history[*place].clone()).collect(),
        places,
        until,
        start: part.start,
        possible,
    }
}

struct Shrinker<'a> {
    history: &'a [Operation],
    budget: Budget,
    tries: usize,
}

/// Weakened operations that fail together, with their indexes in the history.
#[derive(Clone)]
struct Part {
    start: Start,
    kept: Vec<(usize, Operation)>,
    culprit: usize,
}

impl Part {
    fn operations(&self) -> Vec<Operation> {
        self.kept.iter().map(|(_, operation)| operation.clone()).collect()
    }
}

impl Shrinker<'_> {
    /// The return of an operation of known outcome.
    fn known_ret(&self, place: usize) -> Option<u64> {
        let operation = &self.history[place];
        operation.ret.filter(|_| !matches!(operation.outcome, Outcome::Unknown | Outcome::Refused))
    }

    /// The first return in order of time such that the history up to it fails. Prefixes of a linearizable
    /// history are linearizable, so that all longer ones fail too. Searches near `stuck` first: it is usually
    /// close.
    fn shortest_prefix(&mut self, partition: &[usize], stuck: usize) -> (u64, usize) {
        let mut returns: Vec<(u64, usize)> =
            partition.iter().filter_map(|place| Some((self.known_ret(*place)?, *place))).collect();
        returns.sort_unstable();
        let mut first = 0;
        let mut fails = returns.len() - 1;
        let mut probe = returns.iter().position(|(_, place)| *place == stuck).unwrap_or(fails);
        let mut stride = 1;
        while first < fails {
            probe = probe.clamp(first, fails - 1);
            if self.prefix_fails(partition, returns[probe].0) {
                fails = probe;
                probe = fails.saturating_sub(stride);
                stride *= 2;
            } else {
                first = probe + 1;
                probe = usize::midpoint(first, fails);
            }
        }
        returns[fails]
    }

    fn prefix_fails(&mut self, partition: &[usize], until: u64) -> bool {
        let part = partition.iter().filter(|place| self.history[**place].call <= until);
        let part: Vec<Operation> = part.map(|place| self.until(*place, until)).collect();
        self.fails(&part, Start::Nothing)
    }

    /// The operation as known at a time.
    fn until(&self, place: usize, until: u64) -> Operation {
        let operation = self.history[place].clone();
        if operation.ret.is_some_and(|ret| ret > until) { weaken(operation) } else { operation }
    }

    /// The shortest suffix tried of the prefix that fails from any state.
    ///
    /// An operation that returned before the window began is part of the start state. One that was in flight
    /// may have taken effect before or in the window: a write may happen in the window, a read can be
    /// dropped.
    fn shortest_window(&mut self, prefix: &[usize], until: u64, culprit: usize) -> Part {
        let mut calls: Vec<u64> = prefix.iter().map(|place| self.history[*place].call).collect();
        calls.sort_unstable();
        let mut length = WINDOW_FIRST;
        loop {
            let from = calls.len().checked_sub(length).map_or(0, |first| calls[first]);
            let from = from.min(self.history[culprit].call);
            let part = Part { start: Start::Anything, kept: self.window(prefix, from, until), culprit };
            if self.part_fails(&part) {
                return part;
            }
            if length >= calls.len() {
                return Part { start: Start::Nothing, kept: self.window(prefix, 0, until), culprit };
            }
            length *= 2;
        }
    }

    fn window(&self, prefix: &[usize], from: u64, until: u64) -> Vec<(usize, Operation)> {
        let mut kept = Vec::new();
        for place in prefix {
            let operation = self.until(*place, until);
            let before = operation.call < from;
            match operation.ret {
                Some(ret) if ret < from && operation.outcome != Outcome::Unknown => {}
                _ if before && is_read(&operation) => {}
                _ if before => kept.push((*place, weaken(operation))),
                _ => kept.push((*place, operation)),
            }
        }
        kept
    }

    /// Weakens ever smaller ranges of operations while the rest still fails, and then drops unconstraining
    /// operations.
    fn discard(&mut self, part: &mut Part) {
        let mut run = part.kept.len().div_ceil(2);
        while run > 0 {
            let mut changed = false;
            let mut end = part.kept.len();
            while end > 0 {
                let start = end.saturating_sub(run);
                if let Some(less) = self.without(part, start..end) {
                    *part = less;
                    changed = true;
                }
                end = start;
            }
            if run > 1 || !changed {
                run /= 2;
            }
        }
        let constrain = constraining(&part.operations());
        part.kept = constrain.into_iter().map(|at| part.kept[at].clone()).collect();
    }

    /// The part with a range weakened, if that changes it and it still fails.
    fn without(&mut self, part: &Part, run: Range<usize>) -> Option<Part> {
        let mut less = Part { kept: Vec::with_capacity(part.kept.len()), ..*part };
        let mut changed = false;
        for (at, (place, operation)) in part.kept.iter().enumerate() {
            let weaker = run.contains(&at) && *place != part.culprit && operation.outcome != Outcome::Unknown;
            changed |= weaker;
            match weaker {
                true if is_read(operation) => {}
                true => less.kept.push((*place, weaken(operation.clone()))),
                false => less.kept.push((*place, operation.clone())),
            }
        }
        (changed && self.part_fails(&less)).then_some(less)
    }

    /// The possible values of the culprit's key at its return; `None` when it has several keys or not all
    /// values were tried.
    fn possible(&mut self, part: &Part) -> Option<Vec<Option<Bytes>>> {
        let at = part.kept.iter().position(|(place, _)| *place == part.culprit)?;
        let key = self.history[part.culprit].kind.keys().next()?.clone();
        if self.history[part.culprit].kind.keys().any(|other| *other != key) {
            return None;
        }
        let mut operations = part.operations();
        operations[at].kind = Kind::Get { key: key.clone() };
        let mut found = |value: Option<Bytes>| {
            operations[at].outcome = Outcome::Value(value);
            match decide(&operations, part.start, &mut self.budget) {
                Decision::Linearizable => Some(true),
                Decision::Fails { .. } => Some(false),
                Decision::Unknown => None,
            }
        };
        let candidates = candidates(&key, part.kept.iter().map(|(_, operation)| operation))?;
        // A value longer than all others represents those that no operation names.
        let longest = candidates.iter().flatten().map(Bytes::len).max().unwrap_or_default();
        if found(Some(vec![b'?'; longest + 1].into()))? {
            return None;
        }
        let mut possible = Vec::new();
        for value in candidates {
            if found(value.clone())? {
                possible.push(value);
            }
        }
        Some(possible)
    }

    fn part_fails(&mut self, part: &Part) -> bool {
        self.fails(&part.operations(), part.start)
    }

    fn fails(&mut self, operations: &[Operation], start: Start) -> bool {
        self.tries += 1;
        self.budget.steps = self.budget.steps.saturating_sub(STEPS_PER_OPERATION * operations.len() as u64);
        if self.tries > TRIES_MAX || self.budget.steps == 0 {
            return false;
        }
        matches!(decide(operations, start, &mut self.budget), Decision::Fails { .. })
    }
}

/// Makes the outcome unknown.
fn weaken(mut operation: Operation) -> Operation {
    operation.outcome = Outcome::Unknown;
    operation.ret = None;
    operation
}

/// Whether it changed nothing.
fn is_read(operation: &Operation) -> bool {
    match (&operation.kind, &operation.outcome) {
        (Kind::Get { .. } | Kind::Read { .. }, _) | (_, Outcome::ConditionFailed | Outcome::Refused) => true,
        (Kind::Write { write, .. }, outcome) => *write == Write::Delete && *outcome == Outcome::Existed(false),
        _ => false,
    }
}

/// Every value that the key can have had; `None` when the operations do not determine them, or there are too
/// many.
fn candidates<'a>(key: &Bytes, operations: impl Iterator<Item = &'a Operation>) -> Option<BTreeSet<Option<Bytes>>> {
    let mut values = BTreeSet::from([None]);
    let mut write = |written: &Write, outcome: &Outcome| {
        match (written, outcome) {
            (Write::Put(value), _) => values.insert(Some(value.clone())),
            (Write::Delete, _) => true,
            (Write::Add(_), Outcome::Number(sum)) => values.insert(Some(sum.to_string().into())),
            (Write::Add(_) | Write::Append(_), _) => return None,
        };
        (values.len() <= CANDIDATES_MAX).then_some(())
    };
    for operation in operations {
        match &operation.kind {
            Kind::Get { .. } | Kind::Read { .. } => {}
            Kind::Write { key: written, write: what } if written == key => write(what, &operation.outcome)?,
            Kind::CompareAndSet { key: written, new: Some(new), .. } if written == key => {
                write(&Write::Put(new.clone()), &operation.outcome)?;
            }
            Kind::Write { .. } | Kind::CompareAndSet { .. } => {}
            Kind::Batch { writes, .. } => {
                for (_, what) in writes.iter().filter(|(written, _)| written == key) {
                    write(what, &Outcome::Done)?;
                }
            }
        }
    }
    Some(values)
}
