//! Merging sorted sources of records, newest first.
//!
//! Memory is one record of each source beside what a source buffers itself. Deletions are passed on: whether one may be
//! dropped depends on what lies underneath, which the caller knows.

use std::iter::Peekable;

use bytes::Bytes;
use flotilla_storage::EngineError;

/// A key and its value, or its deletion.
pub(crate) type Record = (Bytes, Option<Bytes>);

/// Records in ascending key order, each key once.
pub(crate) type Source<'a> = Box<dyn Iterator<Item = Result<Record, EngineError>> + 'a>;

/// Each key once, in order, from the first source that has it. Ends after an error.
pub(crate) struct Merge<'a> {
    sources: Vec<Peekable<Source<'a>>>,
}

impl<'a> Merge<'a> {
    /// The newest source comes first.
    pub(crate) fn new(newest_first: impl IntoIterator<Item = Source<'a>>) -> Self {
        Self { sources: newest_first.into_iter().map(Iterator::peekable).collect() }
    }

    /// The source to take from: the newest of those with the smallest key, or one that failed.
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
        Box::new(records.iter().map(|(key, value)| Ok((Bytes::from(*key), value.map(Bytes::from)))))
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
    fn a_failed_source_ends_the_merge_before_anything_behind_it_is_believed() {
        let failed: Source<'_> = Box::new([Err(EngineError::NotOpen(ReplicaId(1)))].into_iter());
        let mut merge = Merge::new([source(&[("a", None)]), failed]);
        assert!(matches!(merge.next(), Some(Err(EngineError::NotOpen(_)))));
        assert!(merge.next().is_none());
    }
}
