//! The scrub: reads what is stored, a bounded number of bytes at a time, and verifies it against its id.
//!
//! A pass visits the segments that exist when it begins, in their order, and reads what the index has in
//! them at the time of its visit. Objects that a collection moves meanwhile are verified by it, and those
//! that are stored meanwhile are for the next pass. So a pass ends however much is written. It works beside
//! all other calls, keeps one segment open, and holds the locations of that segment's objects in memory.
//!
//! The page cache may have a good copy of what is bad on disk, so the scrub drops the pages of an object
//! before it reads it; pages that were not in memory before are not afterwards either. It verifies payloads
//! only: what is wrong with headers and tables of contents is noticed when the store is opened.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, IoSliceMut},
    num::NonZero,
    os::unix::fs::FileExt,
};

use flotilla_types::{Holder, ObjectId};
use rustix::{
    fs::{Advice, fadvise},
    io::{ReadWriteFlags, preadv2},
};

use crate::{
    ObjectError, ObjectStore,
    error::at,
    index::Location,
    segment::{FoundRecord, RECORD_HEADER_BYTES_MAX},
};

/// Bytes that are read and hashed at once.
const CHUNK_BYTES: usize = 256 << 10;
/// Bytes of a page of memory. Where pages are larger, those at the ends of an object may stay in memory.
const PAGE_BYTES: u64 = 4_096;

/// The position of a pass over all objects.
#[derive(Debug, Default)]
pub struct ScrubPass {
    /// Segments to visit, with the bytes of their files as of the beginning.
    segments: VecDeque<(u64, u64)>,
    /// The one that is visited.
    current: Option<Current>,
    /// Bytes of the segments that were visited.
    visited_bytes: u64,
    total_bytes: u64,
}

#[derive(Debug)]
struct Current {
    number: u64,
    bytes: u64,
    file: Option<File>,
    records: VecDeque<FoundRecord>,
    /// Where the last record that was read ends.
    end: u64,
}

/// What a call of [`ObjectStore::scrub`] has read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scrubbed {
    /// Objects read.
    pub objects: u64,
    /// Bytes of their records.
    pub bytes: u64,
    /// Objects whose bytes do not match their ids. They count as missing from now on.
    pub damaged: Vec<ObjectId>,
    /// Objects that the disk failed to read. They stay as they are.
    pub unreadable: Vec<ObjectId>,
    /// Whether the pass has ended.
    pub ended: bool,
}

impl ScrubPass {
    /// Bytes of segment files that were visited, and those of all, as of the beginning of the pass.
    #[must_use]
    pub fn progress_bytes(&self) -> (u64, u64) {
        let within = self.current.as_ref().map_or(0, |current| current.end.min(current.bytes));
        (self.visited_bytes + within, self.total_bytes)
    }

    fn leave_segment(&mut self) {
        self.visited_bytes += self.current.take().map_or(0, |current| current.bytes);
    }
}

impl ObjectStore {
    /// Begins a pass over all objects.
    #[must_use]
    pub fn begin_scrub(&self) -> ScrubPass {
        let active = self.active_segment();
        let mut segments = self.index.read().tables.segments(active);
        segments.sort_unstable();
        let total_bytes = segments.iter().map(|(_, bytes)| bytes).sum();
        ScrubPass { segments: segments.into(), total_bytes, ..ScrubPass::default() }
    }

    /// Reads and verifies the next objects of a pass: at least one, and no more once `bytes_max` are read.
    /// After an error the call may be repeated.
    pub fn scrub(&self, pass: &mut ScrubPass, bytes_max: u64) -> Result<Scrubbed, ObjectError> {
        let mut done = Scrubbed::default();
        while done.bytes < bytes_max.max(1) {
            self.check_healthy()?;
            let Some(current) = &mut pass.current else {
                let Some((number, bytes)) = pass.segments.pop_front() else {
                    done.ended = true;
                    break;
                };
                let records = self.index.read().contents(number, false).into();
                pass.current = Some(Current { number, bytes, file: None, records, end: 0 });
                continue;
            };
            let Some(record) = current.records.front() else {
                pass.leave_segment();
                continue;
            };
            let location = Location { segment: current.number, offset: record.offset, lengths: record.lengths };
            let id = record.id;
            if !self.is_durable_at(id, location) {
                current.records.pop_front();
                continue;
            }
            let file = match &current.file {
                Some(file) => Ok(file),
                None => self.open_segment(current.number).map(|file| {
                    // No reading ahead: it would fill the memory with what nobody asked for.
                    let _ = fadvise(&file, 0, None, Advice::Random);
                    &*current.file.insert(file)
                }),
            };
            let verified = match file {
                Ok(file) => self.is_intact_on_disk(file, id, location),
                // A collection takes an object out of the index before it deletes the file.
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
                Err(error) => return Err(error.into()),
            };
            current.end = record.end();
            current.records.pop_front();
            done.objects += 1;
            done.bytes += RECORD_HEADER_BYTES_MAX + u64::from(location.lengths.stored);
            match verified {
                Ok(true) => {}
                Ok(false) if self.is_durable_at(id, location) => {
                    tracing::error!(object = %id, segment = location.segment, "a scrub found a damaged object");
                    self.index.write().forget(id, location);
                    done.damaged.push(id);
                }
                Ok(false) => {}
                Err(error) => {
                    let error = at(&self.segment_path(location.segment))(error);
                    tracing::error!(object = %id, %error, "a scrub could not read an object");
                    done.unreadable.push(id);
                }
            }
        }
        Ok(done)
    }

    /// Objects that are held and were found damaged, by holder: each with some of their ids, at most `ids_max`.
    /// Empty again once they are stored again or nobody needs them. Takes time only if there are some.
    #[must_use]
    pub fn damaged(&self, ids_max: usize) -> Vec<(Holder, Vec<ObjectId>)> {
        self.index.read().damaged(ids_max)
    }

    /// Whether the bytes on disk match the id; `false` also if the file is too short.
    fn is_intact_on_disk(&self, file: &File, id: ObjectId, location: Location) -> io::Result<bool> {
        let Location { offset, lengths, .. } = location;
        if lengths.is_compressed() {
            let mut frame = vec![0; lengths.stored as usize];
            let was_read = read_from_disk(file, offset, &mut frame)?;
            let plain = if was_read { self.compression.plain_of(frame.into(), lengths) } else { None };
            return Ok(plain.is_some_and(|plain| ObjectId::of(&plain) == id));
        }
        let len = u64::from(lengths.stored);
        let mut hasher = blake3::Hasher::new();
        let mut buffer = vec![0; CHUNK_BYTES.min(lengths.stored as usize)];
        let mut at = 0;
        while at < len {
            let chunk = &mut buffer[..CHUNK_BYTES.min((len - at) as usize)];
            if !read_from_disk(file, offset + at, chunk)? {
                return Ok(false);
            }
            hasher.update(chunk);
            at += chunk.len() as u64;
        }
        Ok(ObjectId(*hasher.finalize().as_bytes()) == id)
    }

    fn is_durable_at(&self, id: ObjectId, location: Location) -> bool {
        let entry = self.index.read().entry(id);
        entry.is_some_and(|entry| entry.location == location && entry.stored.synced)
    }
}

/// Reads what the disk has, not what is in memory. `false` if the file is too short.
fn read_from_disk(file: &File, offset: u64, buffer: &mut [u8]) -> io::Result<bool> {
    let was_in_memory = is_in_memory(file, offset, buffer);
    drop_pages(file, offset, buffer.len());
    match file.read_exact_at(buffer, offset) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
        Err(error) => return Err(error),
    }
    if !was_in_memory {
        drop_pages(file, offset, buffer.len());
    }
    Ok(true)
}

/// Whether a read would not wait for the disk. Overwrites the buffer.
fn is_in_memory(file: &File, offset: u64, buffer: &mut [u8]) -> bool {
    let len = buffer.len();
    preadv2(file, &mut [IoSliceMut::new(buffer)], offset, ReadWriteFlags::NOWAIT).is_ok_and(|read| read == len)
}

/// Lets the kernel forget the pages that hold these bytes; it ignores parts of pages. A hint: where it is
/// ignored, the scrub verifies what readers would get.
fn drop_pages(file: &File, offset: u64, len: usize) {
    let from = offset - offset % PAGE_BYTES;
    let to = (offset + len as u64).next_multiple_of(PAGE_BYTES);
    let _ = fadvise(file, from, NonZero::new(to - from), Advice::DontNeed);
}
