//! The bounds of a scan, in one place so that every reader stops at the same record.

use bytes::Bytes;

/// The result of a scan, filled until a bound is reached; takes at least one record.
pub(crate) struct Page {
    items: Vec<(Bytes, Bytes)>,
    items_max: usize,
    bytes: usize,
    bytes_max: usize,
}

impl Page {
    /// `items_max` and `bytes_max` as in [`crate::StateReader::scan`].
    pub(crate) fn new(items_max: usize, bytes_max: usize) -> Self {
        Self { items: Vec::new(), items_max, bytes: 0, bytes_max }
    }

    /// Whether a bound is reached.
    pub(crate) fn is_full(&self) -> bool {
        !self.items.is_empty() && (self.items.len() >= self.items_max || self.bytes >= self.bytes_max)
    }

    /// Adds the next record.
    pub(crate) fn push(&mut self, key: Bytes, value: Bytes) {
        self.bytes += key.len() + value.len();
        self.items.push((key, value));
    }

    /// The collected records.
    pub(crate) fn into_items(self) -> Vec<(Bytes, Bytes)> {
        self.items
    }
}
