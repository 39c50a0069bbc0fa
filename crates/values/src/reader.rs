//! Reading a range of a value: which lists to fetch, and which parts of which chunks make it up.
//!
//! A reader walks down to the first chunk of the range and fetches no list that has nothing in it. It keeps
//! one list of each level.

use std::{ops::Range, vec};

use bytes::Bytes;
use flotilla_types::ObjectId;

use crate::{Kind, Need, OutOfRange, ValueRef, VerifyError};

/// Reads a range of a value, step by step.
#[derive(Debug)]
pub struct Reader {
    range: Range<u64>,
    /// What follows on each level, from the reference's own to the lowest that is open.
    open: Vec<Open>,
    /// A list that the caller was told to fetch, and where its part of the value begins.
    awaited: Option<(Need, u64)>,
}

/// What is left of a list.
#[derive(Debug)]
struct Open {
    needs: vec::IntoIter<Need>,
    /// Where the next one begins in the value.
    offset: u64,
}

/// What a reader needs next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Fetch this list and supply it.
    List(Need),
    /// This is the next part of the range. Further steps do not wait for it, so chunks can be fetched ahead.
    Chunk(Slice),
}

/// A part of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slice {
    /// The chunk.
    pub need: Need,
    /// Where the part begins in the chunk.
    pub offset: u32,
    /// Length of the part, bytes; not zero.
    pub len: u32,
}

impl Reader {
    /// For these bytes of a value.
    pub fn new(value: &ValueRef, range: Range<u64>) -> Result<Self, OutOfRange> {
        let bytes = value.bytes();
        if range.start > range.end || range.end > bytes {
            return Err(OutOfRange { start: range.start, end: range.end, bytes });
        }
        let top = Open { needs: value.needs().collect::<Vec<_>>().into_iter(), offset: 0 };
        Ok(Self { range, open: vec![top], awaited: None })
    }

    /// The next step, or none at the end of the range. The same again while a list is to be supplied.
    pub fn step(&mut self) -> Option<Step> {
        loop {
            if let Some((need, _)) = self.awaited {
                return Some(Step::List(need));
            }
            let list = self.open.last_mut()?;
            let Some(need) = list.needs.next() else {
                self.open.pop();
                continue;
            };
            let begin = list.offset;
            let end = begin + need.bytes;
            list.offset = end;
            let part = begin.max(self.range.start)..end.min(self.range.end);
            if begin >= self.range.end {
                self.open.clear();
            } else if part.is_empty() {
                // Nothing of the range is in it.
            } else if need.kind == Kind::Chunk {
                let (offset, len) = ((part.start - begin) as u32, (part.end - part.start) as u32);
                return Some(Step::Chunk(Slice { need, offset, len }));
            } else {
                self.awaited = Some((need, begin));
            }
        }
    }

    /// Takes the list of the last step, after checking it.
    pub fn supply(&mut self, object: &[u8]) -> Result<(), VerifyError> {
        let Some((need, offset)) = self.awaited else {
            return Err(VerifyError::Unexpected(ObjectId::of(object)));
        };
        let list = need.verify(object)?;
        self.awaited = None;
        self.open.extend(list.map(|list| Open { needs: list.needs().collect::<Vec<_>>().into_iter(), offset }));
        Ok(())
    }
}

impl Slice {
    /// The part, from the bytes of the chunk, after checking them.
    pub fn of(&self, chunk: &Bytes) -> Result<Bytes, VerifyError> {
        self.need.verify(chunk)?;
        let offset = self.offset as usize;
        Ok(chunk.slice(offset..offset + self.len as usize))
    }
}
