//! The key-value model: registers of bytes with add, append and compare-and-set, on one key or on several
//! atomically.
//!
//! A state is one cell per slot. The search is pruned by counts of the remaining operations per cell; each
//! rule is proved in its doc comment. An *observer* of a cell is an operation with a guard for exactly that
//! cell. A key is *watched* when an operation observes it otherwise: by a guard that holds for many cells, by
//! a failed condition, or by a change that depends on the previous value.
//!
//! A search may start from [`Start::Anything`]: every slot holds the cell *any*, which satisfies any guard
//! and becomes the guard's cell. Where that would be ambiguous, *any* stays. This allows more than any real
//! start state, so that a history that fails from there fails from every state.

use crate::{
    cells::{Cell, Cells, Key},
    compile::{Act, Compiled, Guard, Mode, Test},
    model::Model,
};

/// The content of the keys before the first operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Start {
    Nothing,
    Anything,
}

/// Counts of the remaining operations on one cell.
#[derive(Debug, Clone, Copy, Default)]
struct Counts {
    /// Operations that returned and must have observed it.
    needed: u32,
    /// Operations that must or may have observed it.
    observers: u32,
    /// Those observers that returned, observed nothing else and changed nothing.
    gets: u32,
    /// Operations that write it.
    producers: u32,
}

/// Keys, cells and their counts, over all partitions.
#[derive(Debug, Default)]
pub(crate) struct Registers {
    pub(crate) cells: Cells,
    counts: Vec<Counts>,
    /// By cell: the last invocation of one of its observers.
    last_calls: Vec<u64>,
    watched: Vec<bool>,
    /// Keys with changes whose result depends on the previous value: any cell may be produced.
    dynamic: Vec<bool>,
}

impl Registers {
    /// Counts an operation, invoked at this time. Call it before the operation is placed.
    pub(crate) fn prepare(&mut self, operation: &Compiled, call: u64) {
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
        self.last_calls.resize(self.cells.len(), 0);
        for guard in &operation.guards {
            if let Test::Is(cell) = guard.test {
                let last = &mut self.last_calls[cell as usize];
                *last = call.max(*last);
            }
        }
        self.put_back(operation);
    }

    /// Whether an operation of unknown outcome can be left out of the history.
    ///
    /// It can when it only writes cells that no operation observes. Proof: take an order that uses it, and a
    /// key that it writes. The next operation on that key has no guard on it, because no guard holds for the
    /// written cell, and no change that depends on it, because the key is not watched. So it has the same
    /// effect on the previous cell; the same holds for all operations until another one sets the key. So the
    /// order without the operation is valid too.
    pub(crate) fn may_be_dropped(&self, operation: &Compiled) -> bool {
        operation.mode == Mode::May && self.is_unobserved(operation)
    }

    fn is_unobserved(&self, operation: &Compiled) -> bool {
        operation.changes.iter().all(|change| match change.act {
            Act::Set(cell) => self.count(cell).observers == 0 && !self.is_watched(cell),
            Act::Add(_) | Act::Append(..) => false,
        })
    }

    /// Whether a write can be placed at once if no operation observes what it overwrites, together with all
    /// gets of the cells that it writes: it is their only producer, and all of them (possibly none) may come
    /// next.
    fn is_settled(&self, operation: &Compiled, horizon: u64) -> bool {
        let mut required = operation.mode == Mode::Must;
        let settled = operation.changes.iter().all(|change| {
            let Act::Set(cell) = change.act else { return false };
            let counts = self.count(cell);
            if counts.observers == 0 {
                return !self.is_watched(cell);
            }
            required |= counts.needed > 0;
            counts.gets == counts.observers
                && counts.producers == 1
                && self.last_calls[cell as usize] <= horizon
                && !self.is_watched(cell)
        });
        settled && required
    }

    /// Whether the operation must have observed a cell that no operation writes.
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

    /// Uncounts an operation that was placed in the order.
    pub(crate) fn take(&mut self, operation: &Compiled) {
        self.recount(operation, |count| *count -= 1);
    }

    /// Counts an operation as remaining again.
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
                        if operation.changes.is_empty() && operation.guards.len() == 1 {
                            by(&mut counts.gets);
                        }
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
        // Cells created during a search have no counts: only changes that depend on the previous value
        // produce them.
        self.counts.get(cell as usize).copied().unwrap_or_default()
    }

    fn is_watched(&self, cell: Cell) -> bool {
        self.watched[self.cells.key_of(cell) as usize]
    }

    fn is_dynamic(&self, cell: Cell) -> bool {
        self.dynamic[self.cells.key_of(cell) as usize]
    }
}

/// A state: the cell of each slot. States of one slot are by far the most frequent and need no allocation.
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
    start: Start,
    slots: std::marker::PhantomData<S>,
}

impl<'a, S: Slots> Partition<'a, S> {
    pub(crate) fn new(registers: &'a mut Registers, keys: &'a [Key], start: Start) -> Self {
        Self { registers, keys, start, slots: std::marker::PhantomData }
    }

    fn is_any(&self, state: &S, slot: u32) -> bool {
        self.start == Start::Anything && self.registers.cells.is_any(state.get(slot))
    }

    fn holds(&self, state: &S, guard: &Guard) -> bool {
        guard.test.holds(state.get(guard.slot)) || (guard.test != Test::Never && self.is_any(state, guard.slot))
    }

    fn change(&mut self, state: &S, operation: &Compiled) -> Option<S> {
        let mut after = state.clone();
        for guard in &operation.guards {
            if let Test::Is(cell) = guard.test {
                after.set(guard.slot, cell);
            }
        }
        for change in &operation.changes {
            let cell = after.get(change.slot);
            let cell = match &change.act {
                Act::Set(cell) => *cell,
                Act::Add(_) | Act::Append(..) if self.is_any(&after, change.slot) => cell,
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
        let cells = &self.registers.cells;
        let first = |key: &Key| match self.start {
            Start::Nothing => cells.absent(*key),
            Start::Anything => cells.any(*key),
        };
        S::new(self.keys.iter().map(first).collect())
    }

    fn step(&mut self, state: &S, operation: &Compiled) -> Option<S> {
        let holds = operation.guards.iter().all(|guard| self.holds(state, guard));
        match operation.mode {
            Mode::Must if holds => self.change(state, operation),
            Mode::Must => None,
            Mode::MustNot => {
                let open = operation.guards.iter().any(|guard| self.is_any(state, guard.slot));
                (!holds || open).then(|| state.clone())
            }
            Mode::May if holds => Some(self.change(state, operation).unwrap_or_else(|| state.clone())),
            Mode::May => Some(state.clone()),
        }
    }

    /// An operation that changes nothing can be placed first: from any position in an order it can be moved
    /// to the front without affecting the operations between.
    ///
    /// The same holds for a write without guards to keys that are not watched and whose cells no operation
    /// observes, if each cell that it writes has no observers either, or only gets that may all come next and
    /// have no other producer (then the write is in the order even if its outcome is unknown). Proof: take an
    /// order with the write further back. Its gets come after it and before the key is set again. The next
    /// operation on the key after them sets it without observing it, and so does the next operation on the
    /// key from the current state, if it is not the write itself: no guard holds for the current cell (as in
    /// `may_be_dropped`). So the write and its gets can be moved to the front: no other operation observes
    /// their effect there, and none depends on it at the old position.
    ///
    /// For a history of gets and of puts of distinct values this leaves almost no choices, so that checking
    /// takes polynomial time, whatever the verdict (Gibbons and Korach 1997 show this for such histories).
    ///
    /// Neither rule applies to *any*: observing it changes it, and every operation may observe it.
    fn commits(&self, state: &S, operation: &Compiled, horizon: u64) -> bool {
        let slots = operation.guards.iter().map(|guard| guard.slot);
        if self.start == Start::Anything
            && slots.chain(operation.changes.iter().map(|change| change.slot)).any(|slot| self.is_any(state, slot))
        {
            return false;
        }
        if operation.changes.is_empty() {
            return true;
        }
        operation.guards.is_empty()
            && operation.changes.iter().all(|change| self.registers.count(state.get(change.slot)).observers == 0)
            && self.registers.is_settled(operation, horizon)
    }

    fn linearized(&mut self, operation: &Compiled) {
        self.registers.take(operation);
    }

    fn undone(&mut self, operation: &Compiled) {
        self.registers.put_back(operation);
    }

    /// A step is useless if it overwrites a cell that a remaining operation must still observe and that no
    /// remaining operation writes, or if its outcome is unknown and unobserved, as in `may_be_dropped`.
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
