//! Garbage collection: deletes and compacts closed segments.
//!
//! Candidates are found by the live bytes that are counted per segment, and their objects by the segment's
//! own table: the cost is that of what is garbage. The live (held) objects of a sparse segment are copied and
//! fsynced first, which switches the index to the copies. Then the index drops the dead objects, some at a
//! time, and the file is deleted. An object that is pinned in between keeps its segment. A crash in between
//! leaves duplicates, which only cost space.
//!
//! Garbage stays in the active segment until that is closed, and in a closed one until the live bytes are
//! fewer than `live_percent_min` of `segment_bytes`. A collection within its budget leaves no other segment
//! with garbage but those that it closed itself, by its copies; those are for the next one.

use flotilla_failpoints::{Place, reached};
use flotilla_types::ObjectId;

use crate::{
    ObjectError, ObjectStore,
    index::Location,
    read::Payload,
    segment::{FoundRecord, Lengths},
    store::{Record, Replaces},
    tables::Candidate,
};

/// Objects that are forgotten while nobody else may use the index.
const FORGOTTEN_PER_LOCK_MAX: usize = 1_024;

/// Which segments a collection may touch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Segments written since the store was opened: safe while some holders have not named their roots yet.
    SinceOpen,
    /// All segments. Objects of holders that have not named them since the store was opened are lost.
    All,
}

/// The result of a collection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Collected {
    /// Segment files deleted.
    pub segments: u64,
    /// Bytes of those files.
    pub freed_bytes: u64,
    /// Bytes of live objects that were copied.
    pub moved_bytes: u64,
}

impl ObjectStore {
    /// Deletes closed segments of which only a small share is live, after copying what is. Copies a bounded
    /// number of bytes; call it again for more. Does nothing while another collection runs.
    pub fn collect(&self, scope: Scope) -> Result<Collected, ObjectError> {
        let mut done = Collected::default();
        let Some(_guard) = self.collecting.try_lock() else { return Ok(done) };
        self.check_healthy()?;
        let live_min = (self.options.segment_bytes * u64::from(self.options.live_percent_min)).div_ceil(100).max(1);
        // Dead segments first: on a full disk nothing can be copied before something was deleted.
        let candidates = self.index.read().tables.candidates(live_min, scope == Scope::All);
        for number in candidates {
            let Some(Candidate { bytes, live_bytes, unsynced }) = self.index.read().tables.candidate(number) else {
                continue;
            };
            let over_budget = done.moved_bytes > 0 && done.moved_bytes + live_bytes > self.options.compact_bytes_max;
            // Objects that are not durable yet stay where they are until their sync.
            if live_bytes >= live_min || over_budget || unsynced {
                continue;
            }
            self.reclaim_segment(number, bytes, &mut done)?;
        }
        Ok(done)
    }

    fn reclaim_segment(&self, number: u64, bytes: u64, done: &mut Collected) -> Result<(), ObjectError> {
        let objects = self.index.read().contents(number, false);
        let location =
            |object: &FoundRecord| Location { segment: number, offset: object.offset, lengths: object.lengths };
        let mut copied = false;
        for object in &objects {
            if self.copy_if_needed(object.id, location(object))? {
                copied = true;
                done.moved_bytes += u64::from(object.lengths.stored);
            }
        }
        if copied {
            self.sync()?;
        }
        let mut still_held = false;
        for objects in objects.chunks(FORGOTTEN_PER_LOCK_MAX) {
            self.change(|index| {
                for object in objects {
                    if index.entry(object.id).is_some_and(|now| now.location == location(object)) {
                        if index.must_stay(object.id) {
                            still_held = true;
                        } else {
                            index.forget(object.id, location(object));
                        }
                    }
                }
            });
        }
        if !still_held {
            reached(Place::ObjectsBeforeDelete);
            self.delete(number)?;
            self.index.write().tables.remove(number);
            done.segments += 1;
            done.freed_bytes += bytes;
        }
        Ok(())
    }

    /// Copies an object that must stay to the active segment. The next sync switches the index to the copy.
    fn copy_if_needed(&self, id: ObjectId, from: Location) -> Result<bool, ObjectError> {
        if !self.index.read().must_stay(id) {
            return Ok(false);
        }
        match self.get_payload(id) {
            Ok(Payload { stored, plain }) => {
                let mut writer = self.writer.lock();
                let children = self.index.read().children(id);
                let lengths = Lengths { stored: stored.len() as u32, plain: plain.len() as u32 };
                let record = Record { id, stored: &stored, lengths, children: &children };
                self.append(&mut writer, record, Replaces::Copy(from))?;
                Ok(true)
            }
            // The loss is recorded; the segment need not stay for it.
            Err(ObjectError::Damaged(_) | ObjectError::Missing(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }
}
