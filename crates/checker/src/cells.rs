//! Interns keys and values as small numbers.
//!
//! A *cell* is one key with one value that it may have, or with its absence. Cells of different keys differ,
//! so counts per cell are counts per key and value. Each key has one more cell, *any*: its content is not
//! known yet.

use std::collections::HashMap;

use bytes::Bytes;

/// A key of the history.
pub(crate) type Key = u32;
/// A key with a value, or absent.
pub(crate) type Cell = u32;

/// All interned keys and cells.
#[derive(Debug, Default)]
pub(crate) struct Cells {
    keys: HashMap<Bytes, Key>,
    /// By key: its cell for "absent".
    absent: Vec<Cell>,
    ids: HashMap<(Key, Option<Bytes>), Cell>,
    cells: Vec<(Key, Option<Bytes>)>,
}

impl Cells {
    pub(crate) fn key(&mut self, name: &Bytes) -> Key {
        if let Some(key) = self.keys.get(name) {
            return *key;
        }
        let key = self.absent.len() as Key;
        self.keys.insert(name.clone(), key);
        let absent = self.push(key, None);
        self.absent.push(absent);
        // The cell *any* follows directly; it has no entry in `ids`.
        self.cells.push((key, None));
        key
    }

    pub(crate) fn cell(&mut self, key: Key, value: Option<Bytes>) -> Cell {
        let Some(value) = value else { return self.absent[key as usize] };
        match self.ids.get(&(key, Some(value.clone()))) {
            Some(cell) => *cell,
            None => self.push(key, Some(value)),
        }
    }

    fn push(&mut self, key: Key, value: Option<Bytes>) -> Cell {
        let cell = self.cells.len() as Cell;
        self.ids.insert((key, value.clone()), cell);
        self.cells.push((key, value));
        cell
    }

    pub(crate) fn absent(&self, key: Key) -> Cell {
        self.absent[key as usize]
    }

    pub(crate) fn any(&self, key: Key) -> Cell {
        self.absent(key) + 1
    }

    pub(crate) fn is_any(&self, cell: Cell) -> bool {
        cell == self.any(self.key_of(cell))
    }

    pub(crate) fn key_of(&self, cell: Cell) -> Key {
        self.cells[cell as usize].0
    }

    pub(crate) fn value_of(&self, cell: Cell) -> Option<&Bytes> {
        self.cells[cell as usize].1.as_ref()
    }

    pub(crate) fn keys_len(&self) -> usize {
        self.absent.len()
    }

    pub(crate) fn len(&self) -> usize {
        self.cells.len()
    }

    /// The cell after an addition; `None` when the value is not a number or the sum overflows.
    pub(crate) fn add(&mut self, cell: Cell, delta: i64) -> Option<Cell> {
        let before = self.value_of(cell).map_or(Some(0), |text| number(text))?;
        let sum = before.checked_add(delta)?;
        Some(self.cell(self.key_of(cell), Some(text(sum))))
    }

    /// The cell after an append.
    pub(crate) fn append(&mut self, cell: Cell, suffix: &Bytes) -> Cell {
        let before = self.value_of(cell).map_or(&[][..], |bytes| bytes);
        self.cell(self.key_of(cell), Some([before, suffix].concat().into()))
    }
}

/// The canonical text of a number.
pub(crate) fn text(number: i64) -> Bytes {
    number.to_string().into()
}

/// Parses the canonical text of a number; `None` for any other text.
fn number(text: &[u8]) -> Option<i64> {
    let number: i64 = std::str::from_utf8(text).ok()?.parse().ok()?;
    (number.to_string().as_bytes() == text).then_some(number)
}
