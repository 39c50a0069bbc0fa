//! What the index knows of each segment: its objects, and how many of its bytes are live.
//!
//! Closed segments are ordered by live bytes, so that a collection finds those that are worth it without a
//! look at the others.

use std::collections::{BTreeSet, HashMap};

use slab::Slab;

use crate::node::Slot;

/// A number for a segment that exists, shorter than that of its file: at most 28 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SegmentKey(pub(crate) u32);

const KEY_MAX: usize = (1 << 28) - 1;

/// A segment that is no longer appended to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Closed {
    /// Bytes of its file.
    pub(crate) bytes: u64,
    /// Whether an earlier run wrote it: its objects may belong to holders that have not named them yet.
    pub(crate) inherited: bool,
}

#[derive(Debug)]
pub(crate) struct Table {
    key: SegmentKey,
    /// Nodes of objects that are or were in the segment, some perhaps twice.
    slots: Vec<Slot>,
    /// Bytes of the records of its objects that are held.
    pub(crate) live_bytes: u64,
    /// Its records that no sync covered.
    unsynced: usize,
    /// `None` while the segment is appended to.
    closed: Option<Closed>,
}

/// Every segment.
#[derive(Debug, Default)]
pub(crate) struct Tables {
    pub(crate) tables: HashMap<u64, Table>,
    /// The numbers of the segments, by key.
    numbers: Slab<u64>,
    /// Live bytes and number of every closed segment of this run.
    own: BTreeSet<(u64, u64)>,
    /// Live bytes and number of every segment of earlier runs.
    inherited: BTreeSet<(u64, u64)>,
    closed_bytes: u64,
}

/// A closed segment, as a collection sees it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Candidate {
    pub(crate) bytes: u64,
    pub(crate) live_bytes: u64,
    pub(crate) unsynced: bool,
}

impl Tables {
    /// Begins a segment.
    pub(crate) fn begin(&mut self, segment: u64) {
        self.table(segment);
    }

    /// The table of a segment, which begins if there is none.
    fn table(&mut self, segment: u64) -> &mut Table {
        let Self { tables, numbers, .. } = self;
        tables.entry(segment).or_insert_with(|| {
            let key = numbers.insert(segment);
            assert!(key <= KEY_MAX, "more than 2^28 segments");
            Table { key: SegmentKey(key as u32), slots: Vec::new(), live_bytes: 0, unsynced: 0, closed: None }
        })
    }

    pub(crate) fn key(&mut self, segment: u64) -> SegmentKey {
        self.table(segment).key
    }

    pub(crate) fn number(&self, key: SegmentKey) -> u64 {
        self.numbers[key.0 as usize]
    }

    /// A segment is complete.
    pub(crate) fn close(&mut self, segment: u64, closed: Closed) {
        let table = self.table(segment);
        table.slots.shrink_to_fit();
        table.closed = Some(closed);
        let key = (table.live_bytes, segment);
        self.closed_bytes += closed.bytes;
        self.order(closed).insert(key);
    }

    /// A closed segment has grown by its table of contents.
    pub(crate) fn grown(&mut self, segment: u64, bytes: u64) {
        if let Some(closed) = self.tables.get_mut(&segment).and_then(|table| table.closed.as_mut()) {
            closed.bytes += bytes;
            self.closed_bytes += bytes;
        }
    }

    pub(crate) fn remove(&mut self, segment: u64) {
        let Some(table) = self.tables.remove(&segment) else { return };
        self.numbers.remove(table.key.0 as usize);
        if let Some(closed) = table.closed {
            self.closed_bytes -= closed.bytes;
            self.order(closed).remove(&(table.live_bytes, segment));
        }
    }

    /// Every closed segment and the active one, with their bytes.
    pub(crate) fn segments(&self, active: Option<(u64, u64)>) -> Vec<(u64, u64)> {
        let closed = self.tables.iter().filter_map(|(number, table)| Some((*number, table.closed?.bytes)));
        // It may have been closed since the caller looked.
        let active = active.filter(|(number, _)| self.tables.get(number).is_some_and(|table| table.closed.is_none()));
        closed.chain(active).collect()
    }

    /// Number of segments, and bytes of the closed ones.
    pub(crate) fn usage(&self) -> (usize, u64) {
        (self.tables.len(), self.closed_bytes)
    }

    /// A record was appended to a segment.
    pub(crate) fn appended(&mut self, segment: u64) {
        if let Some(table) = self.tables.get_mut(&segment) {
            table.unsynced += 1;
        }
    }

    /// A record of a segment is durable.
    pub(crate) fn synced(&mut self, segment: u64) {
        if let Some(table) = self.tables.get_mut(&segment) {
            table.unsynced = table.unsynced.saturating_sub(1);
        }
    }

    pub(crate) fn list(&mut self, segment: u64, slot: Slot) {
        self.table(segment).slots.push(slot);
    }

    pub(crate) fn slots(&self, segment: u64) -> &[Slot] {
        self.tables.get(&segment).map_or(&[], |table| &table.slots)
    }

    pub(crate) fn change_live(&mut self, segment: u64, bytes: u64, live: bool) {
        let Some(table) = self.tables.get_mut(&segment) else { return };
        let before = table.live_bytes;
        table.live_bytes = if live { before + bytes } else { before - bytes };
        let (after, closed) = (table.live_bytes, table.closed);
        if let Some(closed) = closed {
            let order = self.order(closed);
            order.remove(&(before, segment));
            order.insert((after, segment));
        }
    }

    pub(crate) fn candidate(&self, segment: u64) -> Option<Candidate> {
        let table = self.tables.get(&segment)?;
        let Closed { bytes, .. } = table.closed?;
        Some(Candidate { bytes, live_bytes: table.live_bytes, unsynced: table.unsynced > 0 })
    }

    /// Closed segments with fewer live bytes than a limit, those with the fewest first.
    pub(crate) fn candidates(&self, live_bytes: u64, with_inherited: bool) -> Vec<u64> {
        let below = |order: &BTreeSet<(u64, u64)>| order.range(..(live_bytes, 0)).copied().collect();
        let mut found: Vec<_> = below(&self.own);
        if with_inherited {
            found.append(&mut below(&self.inherited));
            found.sort_unstable();
        }
        found.into_iter().map(|(_, segment)| segment).collect()
    }

    fn order(&mut self, closed: Closed) -> &mut BTreeSet<(u64, u64)> {
        if closed.inherited { &mut self.inherited } else { &mut self.own }
    }

    /// Whether the ordered sets and totals are those of the tables.
    #[cfg(test)]
    pub(crate) fn audit(&self) {
        assert_eq!(self.numbers.len(), self.tables.len());
        assert!(self.tables.iter().all(|(number, table)| self.number(table.key) == *number));
        let mut again = Self::default();
        for (segment, table) in &self.tables {
            if let Some(closed) = table.closed {
                again.closed_bytes += closed.bytes;
                again.order(closed).insert((table.live_bytes, *segment));
            }
        }
        assert_eq!(again.closed_bytes, self.closed_bytes);
        assert_eq!((again.own, again.inherited), (self.own.clone(), self.inherited.clone()));
    }
}
