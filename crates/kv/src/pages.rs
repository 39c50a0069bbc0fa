//! Reads all records of a range, of which only a bounded page is in memory at a time.

use bytes::Bytes;
use flotilla_storage::{EngineError, StateReader, successor};
use flotilla_types::KeyRange;

/// Records that are read at once.
const PAGE_ITEMS: usize = 4_096;
/// Bytes of their keys and values.
const PAGE_BYTES: usize = 8 << 20;

/// The records of a range in key order. After an error it goes on with the next page or fails again.
pub(crate) struct Pages<'a> {
    records: &'a dyn StateReader,
    rest: KeyRange,
    page: std::vec::IntoIter<(Bytes, Bytes)>,
}

impl<'a> Pages<'a> {
    pub(crate) fn new(range: KeyRange, records: &'a dyn StateReader) -> Self {
        Self { records, rest: range, page: Vec::new().into_iter() }
    }
}

impl Iterator for Pages<'_> {
    type Item = Result<(Bytes, Bytes), EngineError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.page.len() == 0 && !self.rest.is_empty() {
            let page = match self.records.scan(&self.rest, PAGE_ITEMS, PAGE_BYTES) {
                Ok(page) => page,
                Err(error) => return Some(Err(error)),
            };
            if let Some((last, _)) = page.last() {
                self.rest.start = successor(last);
            }
            self.page = page.into_iter();
        }
        self.page.next().map(Ok)
    }
}
