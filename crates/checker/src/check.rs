//! The verdict on a history, and the smallest part of it that fails.
//!
//! Shrinking only ever weakens a history: an operation is cut off at a time, a pure read is left out, or an outcome is made
//! unknown. What fails weakened fails as it was, so a witness is never an artefact of shrinking.

use std::collections::BTreeSet;

use bytes::Bytes;

use crate::{
    decide::{Decision, constraining, decide},
    history::{HistoryError, validate},
    model::Budget,
    operation::{Kind, Operation, Outcome, Write},
    witness::Witness,
};

/// Histories tried to find a smaller witness.
const SHRINK_TRIES_MAX: usize = 2_000;
/// Values tried to say what a key could have been.
const CANDIDATES_MAX: usize = 32;

/// The verdict on a history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Some order of the operations explains everything.
    Linearizable,
    /// None does.
    NotLinearizable(Witness),
    /// The budget was used up before it was known. *Not* a pass.
    Unknown,
}

impl Verdict {
    /// Whether an order was found.
    #[must_use]
    pub fn is_linearizable(&self) -> bool {
        *self == Self::Linearizable
    }

    /// The part that fails, if the history does.
    #[must_use]
    pub fn witness(&self) -> Option<&Witness> {
        match self {
            Self::NotLinearizable(witness) => Some(witness),
            Self::Linearizable | Self::Unknown => None,
        }
    }
}

/// Judges a history, whose operations may come in any order. At the start, no key exists.
///
/// The budget is for the verdict; finding a small witness may cost as much again.
///
/// # Errors
///
/// When an operation makes no sense by itself; nothing was judged then.
pub fn check(history: &[Operation], budget: &Budget) -> Result<Verdict, HistoryError> {
    validate(history)?;
    Ok(match decide(history, &mut budget.clone()) {
        Decision::Linearizable => Verdict::Linearizable,
        Decision::Unknown => Verdict::Unknown,
        Decision::Fails { partition, stuck } => {
            let mut shrinker = Shrinker { history, budget: *budget, tries: 0 };
            Verdict::NotLinearizable(shrinker.shrink(partition, stuck))
        }
    })
}

/// Looks for less that still fails.
struct Shrinker<'a> {
    history: &'a [Operation],
    budget: Budget,
    tries: usize,
}

impl Shrinker<'_> {
    /// A small part of the partition that fails.
    fn shrink(&mut self, mut partition: Vec<usize>, stuck: usize) -> Witness {
        partition.sort_unstable();
        let mut returns: Vec<(u64, usize)> =
            partition.iter().filter_map(|place| Some((self.known_ret(*place)?, *place))).collect();
        returns.sort_unstable();
        let cut = self.shortest_prefix(&partition, &returns, stuck);
        let (until, culprit) = returns[cut];
        let prefix: Vec<usize> = partition.into_iter().filter(|place| self.history[*place].call <= until).collect();
        let kept = self.discard(&prefix, until, culprit);
        let possible = self.possible(&kept, culprit);
        let places: Vec<usize> = kept.into_iter().map(|(place, _)| place).collect();
        Witness {
            culprit: places.iter().position(|place| *place == culprit).expect("the culprit is never discarded"),
            operations: places.iter().map(|place| self.history[*place].clone()).collect(),
            places,
            until,
            possible,
        }
    }

    /// The return of an operation whose outcome says something.
    fn known_ret(&self, place: usize) -> Option<u64> {
        let operation = &self.history[place];
        operation.ret.filter(|_| !matches!(operation.outcome, Outcome::Unknown | Outcome::Refused))
    }

    /// The first return in order of time such that the history up to it fails. Prefixes of a linearizable history are
    /// linearizable, so that all longer ones fail too. Looks near `stuck` first: it is seldom far off.
    fn shortest_prefix(&mut self, partition: &[usize], returns: &[(u64, usize)], stuck: usize) -> usize {
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
        fails
    }

    fn prefix_fails(&mut self, partition: &[usize], until: u64) -> bool {
        let part = partition.iter().filter(|place| self.history[**place].call <= until);
        let part: Vec<Operation> = part.map(|place| self.until(*place, until)).collect();
        self.fails(&part)
    }

    /// The operation as it looked at a time.
    fn until(&self, place: usize, until: u64) -> Operation {
        let operation = self.history[place].clone();
        if operation.ret.is_some_and(|ret| ret > until) { weaken(operation) } else { operation }
    }

    /// Weakens ever smaller runs of operations while the rest still fails. Returns what cannot be missed.
    fn discard(&mut self, prefix: &[usize], until: u64, culprit: usize) -> Vec<(usize, Operation)> {
        let mut kept: Vec<(usize, Operation)> = Vec::new();
        for place in prefix {
            kept.push((*place, self.until(*place, until)));
        }
        let mut run = kept.len().div_ceil(2);
        while run > 0 {
            let mut from = kept.len();
            while from > 0 {
                let start = from.saturating_sub(run);
                from = start;
                if let Some(fewer) = self.without(&kept, start..(start + run).min(kept.len()), culprit) {
                    kept = fewer;
                }
                from = from.min(kept.len());
            }
            run /= 2;
        }
        let part: Vec<Operation> = kept.iter().map(|(_, operation)| operation.clone()).collect();
        constraining(&part).into_iter().map(|at| kept[at].clone()).collect()
    }

    /// The part with a run weakened, if that changes it and it still fails.
    fn without(
        &mut self,
        kept: &[(usize, Operation)],
        run: std::ops::Range<usize>,
        culprit: usize,
    ) -> Option<Vec<(usize, Operation)>> {
        let mut fewer = Vec::with_capacity(kept.len());
        let mut changed = false;
        for (at, (place, operation)) in kept.iter().enumerate() {
            let weaker = run.contains(&at) && *place != culprit && operation.outcome != Outcome::Unknown;
            changed |= weaker;
            match weaker {
                true if is_read(operation) => {}
                true => fewer.push((*place, weaken(operation.clone()))),
                false => fewer.push((*place, operation.clone())),
            }
        }
        (changed && self.part_fails(&fewer)).then_some(fewer)
    }

    /// What the culprit's key could have been when it returned, if the culprit has but one key and all of it was tried.
    fn possible(&mut self, kept: &[(usize, Operation)], culprit: usize) -> Option<Vec<Option<Bytes>>> {
        let asked = &self.history[culprit];
        let key = asked.kind.keys().next()?;
        if asked.kind.keys().any(|other| other != key) {
            return None;
        }
        let mut possible = Vec::new();
        for value in candidates(key, kept.iter().map(|(_, operation)| operation))? {
            let mut part: Vec<Operation> = kept.iter().map(|(_, operation)| operation.clone()).collect();
            let at = kept.iter().position(|(place, _)| *place == culprit)?;
            part[at].kind = Kind::Get { key: key.clone() };
            part[at].outcome = Outcome::Value(value.clone());
            match decide(&part, &mut self.budget) {
                Decision::Linearizable => possible.push(value),
                Decision::Fails { .. } => {}
                Decision::Unknown => return None,
            }
        }
        Some(possible)
    }

    fn part_fails(&mut self, part: &[(usize, Operation)]) -> bool {
        let part: Vec<Operation> = part.iter().map(|(_, operation)| operation.clone()).collect();
        self.fails(&part)
    }

    fn fails(&mut self, part: &[Operation]) -> bool {
        self.tries += 1;
        self.tries <= SHRINK_TRIES_MAX && matches!(decide(part, &mut self.budget), Decision::Fails { .. })
    }
}

/// It may have happened or not, whenever.
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

/// Every value that the key can have had; `None` when they cannot be told from the operations, or are too many.
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
