//! Merges sorted sources of records; for each key the newest source wins.
//!
//! Holds one record of each source in memory, beside what the sources buffer. Deletions are passed on: only
//! the caller knows whether an older level remains below that they must hide.

use std::iter::Peekable;

use bytes::Bytes;
use flotilla_storage::{EngineError, Value};

/// A key and its value, or its deletion.
pub(crate) type Record = (Bytes, Option<Value>);

/// Records in ascending key order, each key once.
pub(crate) type Source<'a> = Box<dyn Iterator<Item = Result<Record, EngineError>> + 'a>;

/// Yields each key once, in order, from the first source that has it. Ends after an error.
pub(crate) struct Merge<'a> {
    sources: Vec<Peekable<Source<'a>>>,
}

impl<'a> Merge<'a> {
    /// The newest source comes first.
    pub(crate) fn new(newest_first: impl IntoIterator<Item = Source<'a>>) -> Self {
        Self { sources: newest_first.into_iter().map(Iterator::peekable).collect() }
    }

    /// The source to take from: the newest one with the smallest key, or one that failed.
    fn next_source(&mut self) -> Option<usize> {
        let mut smallest: Option<(usize, Bytes)> = None;
        for (i, source) in self.sources.iter_mut().enumerate() {
            match source.peek() {
                Some(Ok((key, _))) if smallest.as_ref().is_none_or(|(_, least)| key < least) => {
                    smallest = Some((i, key.clone()));
                }
                Some(Err(_)) => return Some(i),
                _ => {}
            }
        }
        smallest.map(|(i, _)| i)
    }
}

impl Iterator for Merge<'_> {
    type Item = Result<Record, EngineError>;

    fn next(&mut self) -> Option<Self::Item> {
        let from = self.next_source()?;
        let record = match self.sources[from].next()? {
            Ok(record) => record,
            Err(error) => {
                self.sources.clear();
                return Some(Err(error));
            }
        };
        for source in &mut self.sources[from + 1..] {
            source.next_if(|older| matches!(older, Ok((key, _)) if *key == record.0));
        }
        Some(Ok(record))
    }
}

#[cfg(test)]
mod tests {
    use flotilla_types::ReplicaId;

    use super::*;

    fn source(records: &'static [(&'static str, Option<&'static str>)]) -> Source<'static> {
        Box::new(records.iter().map(|(key, value)| Ok((Bytes::from(*key), value.map(Value::from)))))
    }

    #[test]
    fn the_newest_source_decides_and_deletions_pass() {
        let newest = source(&[("b", None), ("d", Some("new"))]);
        let middle = source(&[("a", Some("mid")), ("d", Some("mid"))]);
        let oldest = source(&[("a", Some("old")), ("b", Some("old")), ("c", Some("old"))]);
        let merged: Vec<_> = Merge::new([newest, middle, oldest]).map(Result::unwrap).collect();
        let expected: Vec<Record> = vec![
            ("a".into(), Some("mid".into())),
            ("b".into(), None),
            ("c".into(), Some("old".into())),
            ("d".into(), Some("new".into())),
        ];
        assert_eq!(merged, expected);
    }

    #[test]
    fn a_failed_source_ends_the_merge_before_older_sources_are_read() {
        let failed: Source<'_> = Box::new([Err(EngineError::NotOpen(ReplicaId(1)))].into_iter());
        let mut merge = Merge::new([source(&[("a", None)]), failed]);
        assert!(matches!(merge.next(), Some(Err(EngineError::NotOpen(_)))));
        assert!(merge.next().is_none());
    }
}
