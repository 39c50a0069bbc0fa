//! Cutting a value into objects while it arrives.

use std::{collections::VecDeque, mem};

use bytes::Bytes;
use flotilla_types::ObjectId;

use crate::{Chunking, List, ListNode, Part, TooLong, ValueRef, content::ContentHash, list::ListBuilder};

/// An object of a value, to be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// The BLAKE3 hash of the bytes.
    pub id: ObjectId,
    /// Its bytes, in memory of their own.
    pub bytes: Bytes,
    /// What it is.
    pub kind: ObjectKind,
}

/// What an object is to its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ObjectKind {
    /// A part of the content.
    Chunk {
        /// Where the chunk begins in the value.
        offset: u64,
    },
    /// A part of the list of chunks. Its children come before it.
    List(ListNode),
}

/// The end of a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    /// The value.
    pub value: ValueRef,
    /// The objects that no push has returned: chunks of at most [`Chunking::max`] bytes together, and lists.
    pub objects: Vec<Object>,
}

/// Cuts a value into objects while its bytes are pushed.
///
/// Keeps less than [`Chunking::max`] bytes of the content to cut and less than 64 KiB to hash, the objects
/// that one push makes ready, and less than 30 KiB of the list.
#[derive(Debug)]
pub struct Cutter {
    chunking: Chunking,
    bytes_max: u64,
    /// Bytes that are in no chunk yet, fewer than a chunk may have.
    open: Vec<u8>,
    /// Length of all chunks.
    cut_bytes: u64,
    content: ContentHash,
    list: ListBuilder,
    /// Objects that `push` has not returned yet: of one chunk, and of the nodes that end with it.
    ready: VecDeque<Object>,
}

/// Cuts a value that is in memory. The result has all its objects, children before their parents.
///
/// # Errors
/// It is longer than [`Chunking::value_bytes_max`].
pub fn cut(content: &[u8], chunking: Chunking) -> Result<Finished, TooLong> {
    let mut cutter = Cutter::new(chunking, u64::MAX);
    let (mut rest, mut objects) = (content, Vec::new());
    while let Some(object) = cutter.push(&mut rest)? {
        objects.push(object);
    }
    let finished = cutter.finish();
    objects.extend(finished.objects);
    Ok(Finished { value: finished.value, objects })
}

impl Object {
    /// Ids of the objects that this one needs. Can repeat.
    pub fn children(&self) -> impl Iterator<Item = ObjectId> {
        let list = match &self.kind {
            ObjectKind::Chunk { .. } => None,
            ObjectKind::List(node) => Some(node),
        };
        list.into_iter().flat_map(ListNode::needs).map(|need| need.id)
    }
}

impl Cutter {
    /// For one value of at most `bytes_max` bytes, and never more than [`Chunking::value_bytes_max`].
    #[must_use]
    pub fn new(chunking: Chunking, bytes_max: u64) -> Self {
        Self {
            chunking,
            bytes_max: bytes_max.min(chunking.value_bytes_max()),
            open: Vec::new(),
            cut_bytes: 0,
            content: ContentHash::default(),
            list: ListBuilder::default(),
            ready: VecDeque::new(),
        }
    }

    /// Takes bytes from the front of `input` until an object is ready. Returns none when it took all.
    ///
    /// Call it with the same `input` until it returns none.
    pub fn push(&mut self, input: &mut &[u8]) -> Result<Option<Object>, TooLong> {
        if self.bytes() + input.len() as u64 > self.bytes_max {
            return Err(TooLong { bytes_max: self.bytes_max });
        }
        while self.ready.is_empty() && !input.is_empty() {
            self.take(input);
        }
        Ok(self.ready.pop_front())
    }

    /// How many bytes were taken.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.cut_bytes + self.open.len() as u64
    }

    /// Ends the value.
    #[must_use]
    pub fn finish(mut self) -> Finished {
        let rest = mem::take(&mut self.open);
        let mut rest = rest.as_slice();
        while !rest.is_empty() {
            let (chunk, after) = rest.split_at(self.chunking.cut(rest));
            self.add_chunk(chunk);
            rest = after;
        }
        let mut objects = Vec::from(self.ready);
        let list = self.list.finish(&mut |object| objects.push(object));
        let etag = match &list {
            List::Chunks(chunks) if chunks.len() == 1 => chunks[0].id,
            _ => self.content.finish(),
        };
        Finished { value: ValueRef::new(self.cut_bytes, etag, list), objects }
    }

    /// Takes bytes until a chunk is complete, or all.
    fn take(&mut self, input: &mut &[u8]) {
        let max = self.chunking.max() as usize;
        // A cut depends on so many bytes, or on the end of the value.
        if self.open.is_empty() && input.len() >= max {
            let (chunk, rest) = input.split_at(self.chunking.cut(&input[..max]));
            self.add_chunk(chunk);
            *input = rest;
            return;
        }
        let before = self.open.len();
        let (more, rest) = input.split_at(input.len().min(max - before));
        self.open.reserve_exact(max - before);
        self.open.extend_from_slice(more);
        if self.open.len() < max {
            *input = rest;
            return;
        }
        let mut window = mem::take(&mut self.open);
        let cut = self.chunking.cut(&window);
        self.add_chunk(&window[..cut]);
        // What follows the chunk stays in the input as far as it came from there, and is not copied again.
        *input = &input[cut.saturating_sub(before)..];
        window.truncate(before.max(cut));
        window.drain(..cut);
        self.open = window;
    }

    fn add_chunk(&mut self, chunk: &[u8]) {
        let id = ObjectId::of(chunk);
        self.content.add(chunk);
        let object =
            Object { id, bytes: Bytes::copy_from_slice(chunk), kind: ObjectKind::Chunk { offset: self.cut_bytes } };
        self.cut_bytes += chunk.len() as u64;
        self.ready.push_back(object);
        let part = Part { id, bytes: chunk.len() as u32 };
        self.list.add(part, &mut |node| self.ready.push_back(node));
    }
}
