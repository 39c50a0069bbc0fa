//! Garbage collection: deletes and compacts closed segments.
//!
//! The live (held) objects of a sparse segment are copied and fsynced first. Then, under the index lock, the
//! index switches to the copies and drops the dead objects. Then the file is deleted. An object that is
//! pinned in between keeps its segment. A crash in between leaves duplicates, which only cost space.

use std::collections::HashMap;

use flotilla_failpoints::{Place, reached};
use flotilla_types::ObjectId;

use crate::{
    ObjectError, ObjectStore,
    index::{Entry, Location},
};

/// Which segments a collection may touch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Segments written since the store was opened: safe while some owners have not set their roots yet.
    SinceOpen,
    /// All segments. Objects of owners that have not set their roots since the store was opened are lost.
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

type ObjectsBySegment = HashMap<u64, Vec<(ObjectId, Entry)>>;

impl ObjectStore {
    /// Deletes closed segments of which only a small share is live, after copying what is. Copies a bounded
    /// number of bytes; call it again for more. Does nothing while another collection runs.
    pub fn collect(&self, scope: Scope) -> Result<Collected, ObjectError> {
        let mut done = Collected::default();
        let Some(_guard) = self.collecting.try_lock() else { return Ok(done) };
        self.check_healthy()?;
        let mut candidates: Vec<_> = {
            let writer = self.writer.lock();
            let since_open = scope == Scope::SinceOpen;
            let eligible = writer.segments.iter().filter(|(_, segment)| !(since_open && segment.found_at_open));
            eligible.map(|(number, segment)| (*number, segment.bytes)).collect()
        };
        let mut by_segment = ObjectsBySegment::new();
        let mut live_bytes: HashMap<u64, u64> = HashMap::new();
        {
            let index = self.index.read();
            for (id, entry) in index.iter() {
                by_segment.entry(entry.location.segment).or_default().push((id, entry));
                if index.is_held(id) {
                    *live_bytes.entry(entry.location.segment).or_default() += u64::from(entry.location.len);
                }
            }
        }
        // Dead segments first: on a full disk nothing can be copied before something was deleted.
        candidates.sort_by_key(|(number, _)| live_bytes.get(number).copied().unwrap_or(0));
        for (number, bytes) in candidates {
            let objects = by_segment.remove(&number).unwrap_or_default();
            let live = live_bytes.get(&number).copied().unwrap_or(0);
            let dense = live * 100 >= self.options.segment_bytes * u64::from(self.options.live_percent_min) && live > 0;
            let over_budget = done.moved_bytes > 0 && done.moved_bytes + live > self.options.compact_bytes_max;
            // Objects that are not durable yet stay where they are until their sync.
            if dense || over_budget || objects.iter().any(|(_, entry)| !entry.synced) {
                continue;
            }
            self.reclaim_segment(number, bytes, &objects, &mut done)?;
        }
        Ok(done)
    }

    fn reclaim_segment(
        &self,
        number: u64,
        bytes: u64,
        objects: &[(ObjectId, Entry)],
        done: &mut Collected,
    ) -> Result<(), ObjectError> {
        let moves = self.copy_held(objects)?;
        if !moves.is_empty() {
            self.sync()?;
        }
        let mut index = self.index.write();
        for (id, from, to) in &moves {
            index.relocate(*id, *from, *to);
            done.moved_bytes += u64::from(to.len);
        }
        let mut still_held = false;
        for (id, entry) in objects {
            if index.entry(*id).is_some_and(|now| now.location == entry.location) {
                if index.is_held(*id) {
                    still_held = true;
                } else {
                    index.forget(*id, entry.location);
                }
            }
        }
        drop(index);
        if !still_held {
            reached(Place::ObjectsBeforeDelete);
            self.delete(number)?;
            self.writer.lock().segments.remove(&number);
            done.segments += 1;
            done.freed_bytes += bytes;
        }
        Ok(())
    }

    /// Copies held objects to the active segment. The index is not changed.
    fn copy_held(&self, objects: &[(ObjectId, Entry)]) -> Result<Vec<(ObjectId, Location, Location)>, ObjectError> {
        let mut moves = Vec::new();
        for (id, entry) in objects {
            if !self.index.read().is_held(*id) {
                continue;
            }
            match self.get(*id) {
                Ok(bytes) => {
                    let to = self.append(&mut self.writer.lock(), *id, &bytes)?;
                    moves.push((*id, entry.location, to));
                }
                // The loss is recorded; the segment need not stay for it.
                Err(ObjectError::Damaged(_) | ObjectError::Missing(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(moves)
    }
}
