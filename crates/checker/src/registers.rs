//! The key-value model: registers that hold bytes, are counted up, appended to, compared and set, alone or together.
//!
//! A state is one cell per slot. Counts of what remains of each cell tell the search what is not worth following; each rule
//! is proved where it stands. An *observer* of a cell is an operation with a guard that asks for exactly that cell. A key
//! is *watched* when something observes it otherwise: by a guard that holds for many cells, by a failed condition, or
//! by a change that depends on what it found.

use crate::{
    cells::{Cell, Cells, Key},
    compile::{Act, Compiled, Mode, Test},
    model::Model,
};

/// What remains of one cell.
#[derive(Debug, Clone, Copy, Default)]
struct Counts {
    /// Operations that returned and must have found it.
    needed: u32,
    /// Operations that must or may have found it.
    observers: u32,
    /// Operations that write it.
    producers: u32,
}

/// All that is known of keys and cells, over all partitions.
#[derive(Debug, Default)]
pub(crate) struct Registers {
    pub(crate) cells: Cells,
    counts: Vec<Counts>,
    watched: Vec<bool>,
    /// Keys with changes whose result is not known beforehand: anything may be produced.
    dynamic: Vec<bool>,
}

impl Registers {
    /// Counts an operation in (before it is placed).
    pub(crate) fn prepare(&mut self, operation: &Compiled) {
        self.watched.resize(self.cells.keys_len(), false);
        self.dynamic.resize(self.cells.keys_len(), false);
        for guard in &operation.guards {
            let exact = matches!(guard.test, Test::Is(_) | Test::Either(..) | Test::Never);
            self.watched[guard.slot as usize] |= !exact || operation.mode == Mode::MustNot;
        }
        for change in &operation.changes {
            let dynamic = !matches!(change.act, Act::Set(_));
            self.watched[change.slot as usize] |= dynamic;
            self.dynamic[change.slot as usize] |= dynamic;
        }
        self.counts.resize(self.cells.len(), Counts::default());
        self.put_back(operation);
    }

    /// Whether an operation of unknown outcome can be left out of the history altogether.
    ///
    /// It can when nothing but writes of what nobody observes would come of it: take an order that uses it, and look at a
    /// key that it writes. The next operation on that key has no guard on it, for no guard of anybody holds for the
    /// cell that was written, and no change that depends on it, for the key is not watched. So it does the same to
    /// whatever was there before; and so do all until the key is set by another. Without the operation the order is as good.
    pub(crate) fn may_be_dropped(&self, operation: &Compiled) -> bool {
        operation.mode == Mode::May && self.is_unobserved(operation)
    }

    fn is_unobserved(&self, operation: &Compiled) -> bool {
        operation.changes.iter().all(|change| match change.act {
            Act::Set(cell) => self.count(cell).observers == 0 && !self.is_watched(cell),
            Act::Add(_) | Act::Append(..) => false,
        })
    }

    /// Whether something must have found a cell that nothing writes.
    pub(crate) fn is_impossible(&self, operation: &Compiled) -> bool {
        operation.mode == Mode::Must
            && operation.guards.iter().any(|guard| match guard.test {
                Test::Is(cell) => {
                    let key = self.cells.key_of(cell);
                    self.count(cell).producers == 0 && cell != self.cells.absent(key) && !self.dynamic[key as usize]
                }
                Test::Never => true,
                Test::Either(..) | Test::Not(_) => false,
            })
    }

    /// The operation is in the order now.
    pub(crate) fn take(&mut self, operation: &Compiled) {
        self.recount(operation, |count| *count -= 1);
    }

    /// The operation remains.
    fn put_back(&mut self, operation: &Compiled) {
        self.recount(operation, |count| *count += 1);
    }

    fn recount(&mut self, operation: &Compiled, by: impl Fn(&mut u32)) {
        for guard in &operation.guards {
            match guard.test {
                Test::Is(cell) => {
                    let counts = &mut self.counts[cell as usize];
                    by(&mut counts.observers);
                    if operation.mode == Mode::Must {
                        by(&mut counts.needed);
                    }
                }
                Test::Either(one, other) => {
                    by(&mut self.counts[one as usize].observers);
                    by(&mut self.counts[other as usize].observers);
                }
                Test::Not(_) | Test::Never => {}
            }
        }
        for change in &operation.changes {
            if let Act::Set(cell) = change.act {
                by(&mut self.counts[cell as usize].producers);
            }
        }
    }

    fn count(&self, cell: Cell) -> Counts {
        // Cells that a search came upon are not counted: only changes that depend on what they find lead to them.
        self.counts.get(cell as usize).copied().unwrap_or_default()
    }

    fn is_watched(&self, cell: Cell) -> bool {
        self.watched[self.cells.key_of(cell) as usize]
    }

    fn is_dynamic(&self, cell: Cell) -> bool {
        self.dynamic[self.cells.key_of(cell) as usize]
    }
}

/// A state: what each slot holds. One slot is by far the most frequent, and needs no memory of its own.
pub(crate) trait Slots: Clone + Eq + std::hash::Hash {
    fn new(cells: Vec<Cell>) -> Self;
    fn get(&self, slot: u32) -> Cell;
    fn set(&mut self, slot: u32, cell: Cell);
}

impl Slots for Cell {
    fn new(cells: Vec<Cell>) -> Self {
        cells[0]
    }

    fn get(&self, _: u32) -> Cell {
        *self
    }

    fn set(&mut self, _: u32, cell: Cell) {
        *self = cell;
    }
}

impl Slots for Vec<Cell> {
    fn new(cells: Vec<Cell>) -> Self {
        cells
    }

    fn get(&self, slot: u32) -> Cell {
        self[slot as usize]
    }

    fn set(&mut self, slot: u32, cell: Cell) {
        self[slot as usize] = cell;
    }
}

/// The model of one partition.
pub(crate) struct Partition<'a, S> {
    registers: &'a mut Registers,
    /// By slot.
    keys: &'a [Key],
    slots: std::marker::PhantomData<S>,
}

impl<'a, S: Slots> Partition<'a, S> {
    pub(crate) fn new(registers: &'a mut Registers, keys: &'a [Key]) -> Self {
        Self { registers, keys, slots: std::marker::PhantomData }
    }

    fn change(&mut self, state: &S, operation: &Compiled) -> Option<S> {
        let mut after = state.clone();
        for change in &operation.changes {
            let cell = after.get(change.slot);
            let cell = match &change.act {
                Act::Set(cell) => *cell,
                Act::Add(delta) => self.registers.cells.add(cell, *delta)?,
                Act::Append(suffix, length) => {
                    let cell = self.registers.cells.append(cell, suffix);
                    let found = self.registers.cells.value_of(cell).map_or(0, |value| value.len());
                    if length.is_some_and(|length| usize::try_from(length) != Ok(found)) {
                        return None;
                    }
                    cell
                }
            };
            after.set(change.slot, cell);
        }
        Some(after)
    }
}

impl<S: Slots> Model for Partition<'_, S> {
    type Operation = Compiled;
    type State = S;

    fn initial(&mut self) -> S {
        S::new(self.keys.iter().map(|key| self.registers.cells.absent(*key)).collect())
    }

    fn step(&mut self, state: &S, operation: &Compiled) -> Option<S> {
        let holds = operation.guards.iter().all(|guard| guard.test.holds(state.get(guard.slot)));
        match operation.mode {
            Mode::Must if holds => self.change(state, operation),
            Mode::Must => None,
            Mode::MustNot => (!holds).then(|| state.clone()),
            Mode::May if holds => Some(self.change(state, operation).unwrap_or_else(|| state.clone())),
            Mode::May => Some(state.clone()),
        }
    }

    /// An operation that changes nothing comes first without a loss: from wherever it was in the order, it can be
    /// taken to the front, and nothing between notices.
    ///
    /// So does one without guards that sets keys, none of them watched, to what nobody observes, where nobody observes
    /// what is there now. Take an order with it further back. The next operation on such a key sets it without looking at
    /// it (as above, in `may_be_dropped`), and so does the next after the place that it was taken from; so it can stand in
    /// front, and nothing sees it there, and nothing misses it where it was.
    fn commits(&self, state: &S, operation: &Compiled) -> bool {
        if operation.changes.is_empty() {
            return true;
        }
        operation.mode == Mode::Must
            && operation.guards.is_empty()
            && self.registers.is_unobserved(operation)
            && operation.changes.iter().all(|change| self.registers.count(state.get(change.slot)).observers == 0)
    }

    fn linearized(&mut self, operation: &Compiled) {
        self.registers.take(operation);
    }

    fn undone(&mut self, operation: &Compiled) {
        self.registers.put_back(operation);
    }

    /// A step that overwrites what something that remains must still find, and nothing that remains writes again, leads
    /// nowhere. A step of unknown outcome that nobody observes is not needed, for the reason given at `may_be_dropped`.
    fn useless(&self, before: &S, operation: &Compiled, after: &S) -> bool {
        if self.registers.may_be_dropped(operation) {
            return true;
        }
        operation.changes.iter().any(|change| {
            let (old, new) = (before.get(change.slot), after.get(change.slot));
            let counts = self.registers.count(old);
            old != new && counts.needed > 0 && counts.producers == 0 && !self.registers.is_dynamic(old)
        })
    }
}
