//! Compiles operations and their outcomes to guards on keys and changes of keys.
//!
//! Everything that an outcome implies about the state before the operation becomes a guard, so that the
//! search never deals with outcomes: "the counter is 3 after adding 2" becomes the guard "it is 1" and the
//! change "set it to 3".

use bytes::Bytes;

use crate::{
    cells::{Cell, Cells, Key, text},
    operation::{Condition, Kind, Operation, Outcome, Write},
};

/// An operation as the search sees it. Its slots are key numbers of the history at first, and slots of its
/// partition after [`Compiled::place`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Compiled {
    pub(crate) mode: Mode,
    pub(crate) guards: Vec<Guard>,
    pub(crate) changes: Vec<Change>,
}

/// How guards and changes depend on each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Mode {
    /// All guards held, and all changes happened.
    Must,
    /// Not all guards held, and nothing changed.
    MustNot,
    /// All guards held and all changes happened, or nothing changed, or it never took effect.
    May,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Guard {
    pub(crate) slot: u32,
    pub(crate) test: Test,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Test {
    Is(Cell),
    /// One of the two: the number 0, absent or written.
    Either(Cell, Cell),
    /// Anything but this.
    Not(Cell),
    Never,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Change {
    pub(crate) slot: u32,
    pub(crate) act: Act,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Act {
    Set(Cell),
    Add(i64),
    /// With the resulting length, if known.
    Append(Bytes, Option<i64>),
}

impl Test {
    pub(crate) fn holds(&self, cell: Cell) -> bool {
        match self {
            Self::Is(is) => cell == *is,
            Self::Either(one, other) => cell == *one || cell == *other,
            Self::Not(not) => cell != *not,
            Self::Never => false,
        }
    }
}

impl Compiled {
    /// `None` when the operation constrains nothing: it was refused, or it changes nothing and its outcome is
    /// unknown.
    pub(crate) fn new(cells: &mut Cells, operation: &Operation) -> Option<Self> {
        let mode = match operation.outcome {
            Outcome::Refused => return None,
            Outcome::Unknown => Mode::May,
            Outcome::ConditionFailed => Mode::MustNot,
            _ => Mode::Must,
        };
        let mut compiled = Self { mode, guards: Vec::new(), changes: Vec::new() };
        match (&operation.kind, &operation.outcome) {
            (Kind::Get { key }, Outcome::Value(value)) => compiled.observe(cells, key, value.as_ref()),
            (Kind::Read { keys }, Outcome::Values(values)) => {
                for (key, value) in keys.iter().zip(values) {
                    compiled.observe(cells, key, value.as_ref());
                }
            }
            (Kind::Get { .. } | Kind::Read { .. }, _) => return None,
            (Kind::Write { key, write }, outcome) => compiled.write(cells, key, write, outcome),
            (Kind::CompareAndSet { key, expected, new }, _) => {
                compiled.condition(cells, key, expected);
                let key = cells.key(key);
                compiled.change(key, Act::Set(cells.cell(key, new.clone())));
            }
            (Kind::Batch { conditions, writes }, _) => {
                for (key, condition) in conditions {
                    compiled.condition(cells, key, condition);
                }
                for (key, write) in writes {
                    compiled.write(cells, key, write, &Outcome::Done);
                }
            }
        }
        if mode == Mode::MustNot {
            compiled.changes.clear();
        }
        let unconstrained = compiled.changes.is_empty() && (mode == Mode::May || compiled.guards.is_empty());
        (!unconstrained).then_some(compiled)
    }

    fn observe(&mut self, cells: &mut Cells, key: &Bytes, value: Option<&Bytes>) {
        let slot = cells.key(key);
        self.guards.push(Guard { slot, test: Test::Is(cells.cell(slot, value.cloned())) });
    }

    fn condition(&mut self, cells: &mut Cells, key: &Bytes, condition: &Condition) {
        let slot = cells.key(key);
        let test = match condition {
            Condition::Absent => Test::Is(cells.absent(slot)),
            Condition::Present => Test::Not(cells.absent(slot)),
            Condition::Equals(value) => Test::Is(cells.cell(slot, Some(value.clone()))),
        };
        self.guards.push(Guard { slot, test });
    }

    fn write(&mut self, cells: &mut Cells, key: &Bytes, write: &Write, outcome: &Outcome) {
        let slot = cells.key(key);
        let absent = cells.absent(slot);
        match (write, outcome) {
            (Write::Put(value), _) => self.change(slot, Act::Set(cells.cell(slot, Some(value.clone())))),
            (Write::Delete, Outcome::Existed(true)) => {
                self.guards.push(Guard { slot, test: Test::Not(absent) });
                self.change(slot, Act::Set(absent));
            }
            // Nothing changed: an observation.
            (Write::Delete, Outcome::Existed(false)) => self.guards.push(Guard { slot, test: Test::Is(absent) }),
            (Write::Delete, _) => self.change(slot, Act::Set(absent)),
            (Write::Add(delta), Outcome::Number(sum)) => {
                let test = match sum.checked_sub(*delta) {
                    Some(0) => Test::Either(absent, cells.cell(slot, Some(text(0)))),
                    Some(before) => Test::Is(cells.cell(slot, Some(text(before)))),
                    None => Test::Never,
                };
                self.guards.push(Guard { slot, test });
                self.change(slot, Act::Set(cells.cell(slot, Some(text(*sum)))));
            }
            (Write::Add(delta), _) => self.change(slot, Act::Add(*delta)),
            (Write::Append(bytes), Outcome::Number(length)) => {
                self.change(slot, Act::Append(bytes.clone(), Some(*length)));
            }
            (Write::Append(bytes), _) => self.change(slot, Act::Append(bytes.clone(), None)),
        }
    }

    fn change(&mut self, slot: u32, act: Act) {
        self.changes.push(Change { slot, act });
    }

    /// The keys, possibly with repetitions. Call it before [`Compiled::place`].
    pub(crate) fn keys(&self) -> impl Iterator<Item = Key> {
        let guards = self.guards.iter().map(|guard| guard.slot);
        guards.chain(self.changes.iter().map(|change| change.slot))
    }

    /// Replaces keys by slots of its partition.
    pub(crate) fn place(&mut self, slot_of: &[u32]) {
        for guard in &mut self.guards {
            guard.slot = slot_of[guard.slot as usize];
        }
        for change in &mut self.changes {
            change.slot = slot_of[change.slot as usize];
        }
    }
}
