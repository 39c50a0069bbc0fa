//! Reading objects: from the disk or from memory only, and the files that are open for it.

use std::{
    fs::File,
    io::{self, IoSliceMut},
    os::unix::fs::FileExt,
    sync::Arc,
};

use bytes::Bytes;
use flotilla_types::ObjectId;
use rustix::io::{Errno, ReadWriteFlags, preadv2};

use crate::{
    ObjectError, ObjectStore,
    error::at,
    index::{Entry, Location},
    segment::Lengths,
};

/// Attempts of a read whose segment is deleted by a collection meanwhile; an object moves at most once per
/// collection.
const READ_ATTEMPTS_MAX: u32 = 8;

/// Segment files kept open for reading.
const FILES_OPEN_MAX: usize = 128;

/// What is stored of an object, and its bytes.
pub(crate) struct Payload {
    pub(crate) stored: Bytes,
    pub(crate) plain: Bytes,
}

impl ObjectStore {
    /// The bytes of an object, verified against its id. A damaged object counts as missing from then on.
    pub fn get(&self, id: ObjectId) -> Result<Bytes, ObjectError> {
        self.get_payload(id).map(|payload| payload.plain)
    }

    /// As [`get`](Self::get), together with what is stored.
    pub(crate) fn get_payload(&self, id: ObjectId) -> Result<Payload, ObjectError> {
        let (entry, stored) = self.read_entry(id, |lengths| (0, lengths.stored))?;
        let payload = stored.and_then(|stored| {
            let plain = self.compression.plain_of(stored.clone(), entry.location.lengths)?;
            (ObjectId::of(&plain) == id).then_some(Payload { stored, plain })
        });
        let Some(payload) = payload else { return Err(self.found_damaged(id, entry)) };
        if !entry.stored.verified {
            self.index.write().mark_verified(id, entry.location);
        }
        Ok(payload)
    }

    /// `len` bytes of an object from `offset` on (fewer at its end), **not verified**: use them as a hint, or
    /// check them against another checksum. Of a compressed object all of it is read.
    pub fn slice(&self, id: ObjectId, offset: u32, len: u32) -> Result<Bytes, ObjectError> {
        let (entry, bytes) = self.read_entry(id, |lengths| part(lengths, offset, len))?;
        let slice = bytes.and_then(|bytes| self.slice_of(bytes, entry.location.lengths, offset, len));
        slice.ok_or_else(|| self.found_damaged(id, entry))
    }

    /// As [`slice`](Self::slice), but only what needs no wait for the disk: `None` if a byte of it is not in
    /// the page cache, its file is not open, or the file system cannot tell (`RWF_NOWAIT`). Failures are
    /// `None` too; [`slice`](Self::slice) says which.
    #[must_use]
    pub fn slice_in_memory(&self, id: ObjectId, offset: u32, len: u32) -> Option<Bytes> {
        self.check_healthy().ok()?;
        let Location { segment, offset: start, lengths } = self.index.read().entry(id)?.location;
        let file = self.files.lock().get(&segment)?.clone();
        let (from, bytes) = part(lengths, offset, len);
        let mut bytes = vec![0; bytes as usize];
        let buffers = &mut [IoSliceMut::new(&mut bytes)];
        let read = preadv2(&file, buffers, start + u64::from(from), ReadWriteFlags::NOWAIT).ok()?;
        if read < bytes.len() { None } else { self.slice_of(bytes.into(), lengths, offset, len) }
    }

    /// The slice of an object, given the [`part`] of what is stored; `None` if that is damaged.
    fn slice_of(&self, stored: Bytes, lengths: Lengths, offset: u32, len: u32) -> Option<Bytes> {
        if !lengths.is_compressed() {
            return Some(stored);
        }
        let from = offset.min(lengths.plain);
        let to = from + len.min(lengths.plain - from);
        Some(self.compression.plain_of(stored, lengths)?.slice(from as usize..to as usize))
    }

    fn found_damaged(&self, id: ObjectId, entry: Entry) -> ObjectError {
        tracing::error!(object = %id, segment = entry.location.segment, "object is damaged on disk");
        self.index.write().forget(id, entry.location);
        ObjectError::Damaged(id)
    }

    /// Reads what is stored of an object, the given part of it (offset and length), together with its index
    /// entry; no bytes if the file is missing or too short.
    fn read_entry(
        &self,
        id: ObjectId,
        part: impl Fn(Lengths) -> (u32, u32),
    ) -> Result<(Entry, Option<Bytes>), ObjectError> {
        self.check_healthy()?;
        let mut tried = None;
        for _ in 0..READ_ATTEMPTS_MAX {
            let entry = self.index.read().entry(id).ok_or(ObjectError::Missing(id))?;
            let Location { segment, offset: start, lengths } = entry.location;
            let (offset, len) = part(lengths);
            match self.read(segment, start + u64::from(offset), len) {
                Ok(bytes) => return Ok((entry, Some(bytes.into()))),
                // Collection may have moved the object between the look-up and the read.
                Err(error) if error.kind() == io::ErrorKind::NotFound && tried != Some(entry.location) => {
                    tried = Some(entry.location);
                }
                Err(error) if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof) => {
                    return Err(error.into());
                }
                Err(_) => return Ok((entry, None)),
            }
        }
        Err(ObjectError::Missing(id))
    }

    fn read(&self, segment: u64, offset: u64, len: u32) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len as usize];
        let read = self.file(segment).and_then(|file| file.read_exact_at(&mut bytes, offset));
        read.map_err(at(&self.segment_path(segment)))?;
        Ok(bytes)
    }

    /// Opens a segment for one reader.
    pub(crate) fn open_segment(&self, segment: u64) -> io::Result<File> {
        let path = self.segment_path(segment);
        self.open_freeing(|| File::open(&path)).map_err(at(&path))
    }

    fn file(&self, segment: u64) -> io::Result<Arc<File>> {
        let opened = || self.files.lock().get(&segment).cloned();
        if let Some(file) = opened() {
            return Ok(file);
        }
        let _opening = self.opening.lock();
        if let Some(file) = opened() {
            return Ok(file);
        }
        let file = Arc::new(self.open_freeing(|| File::open(self.segment_path(segment)))?);
        let mut files = self.files.lock();
        if files.len() >= FILES_OPEN_MAX
            && let Some(any) = files.keys().next().copied()
        {
            files.remove(&any);
        }
        files.insert(segment, file.clone());
        Ok(file)
    }

    /// Opens a file. While descriptors have run out, closes files that are kept open for reading.
    pub(crate) fn open_freeing(&self, mut open: impl FnMut() -> io::Result<File>) -> io::Result<File> {
        loop {
            let exhausted = match self.fail_open().and_then(|()| open()) {
                Err(error) if is_out_of_descriptors(&error) => error,
                opened => return opened,
            };
            let mut files = self.files.lock();
            let Some(any) = files.keys().next().copied() else { return Err(exhausted) };
            files.remove(&any);
        }
    }

    /// An error that a test injects.
    fn fail_open(&self) -> io::Result<()> {
        #[cfg(test)]
        {
            use std::sync::atomic::Ordering::Relaxed;
            if self.opens_to_fail.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_ok() {
                return Err(Errno::MFILE.into());
            }
        }
        Ok(())
    }
}

/// What has to be read for a slice of an object: its offset and length in what is stored.
fn part(lengths: Lengths, offset: u32, len: u32) -> (u32, u32) {
    if lengths.is_compressed() {
        return (0, lengths.stored);
    }
    let offset = offset.min(lengths.stored);
    (offset, len.min(lengths.stored - offset))
}

/// Whether the process, or the machine, has no file descriptor left.
fn is_out_of_descriptors(error: &io::Error) -> bool {
    Errno::from_io_error(error).is_some_and(|errno| errno == Errno::MFILE || errno == Errno::NFILE)
}
