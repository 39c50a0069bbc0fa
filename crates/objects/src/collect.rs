//! Giving disk space back.
//!
//! Only closed segments are touched. Held objects of a segment worth compacting are copied and fsynced first; then, under
//! the index lock, the index moves to the copies and forgets what nobody holds; then the file goes. An object that is
//! pinned meanwhile keeps its segment. A crash in between leaves objects twice, which costs space and nothing else.

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
    /// Those written since the store was opened: safe while owners have yet to name their objects.
    Fresh,
    /// All. Objects of owners that have not set their roots since the store was opened are lost.
    All,
}

/// What a collection did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Collected {
    /// Segment files deleted.
    pub segments: u64,
    /// Bytes of those files.
    pub freed_bytes: u64,
    /// Bytes of objects that were copied first.
    pub moved_bytes: u64,
}

type Residents = HashMap<u64, Vec<(ObjectId, Entry)>>;

impl ObjectStore {
    /// Deletes closed segments that hold little that is pinned, rooted or not yet durable. Copies a bounded number of
    /// bytes; call it again for more. While another collection runs, does nothing.
    pub fn collect(&self, scope: Scope) -> Result<Collected, ObjectError> {
        let mut done = Collected::default();
        let Some(_one) = self.collecting.try_lock() else { return Ok(done) };
        self.healthy()?;
        let candidates: Vec<_> = {
            let writer = self.writer.lock();
            let fresh_only = scope == Scope::Fresh;
            writer.segments.iter().filter(|(_, s)| !(fresh_only && s.inherited)).map(|(n, s)| (*n, s.bytes)).collect()
        };
        let mut residents = Residents::new();
        let mut live_bytes: HashMap<u64, u64> = HashMap::new();
        {
            let index = self.index.read();
            for (id, entry) in index.iter() {
                residents.entry(entry.location.segment).or_default().push((id, entry));
                if index.is_held(id) {
                    *live_bytes.entry(entry.location.segment).or_default() += u64::from(entry.location.len);
                }
            }
        }
        for (number, bytes) in candidates {
            let inhabitants = residents.remove(&number).unwrap_or_default();
            let live = live_bytes.get(&number).copied().unwrap_or(0);
            let dense = live * 100 >= self.options.segment_bytes * u64::from(self.options.live_percent_min) && live > 0;
            let over_budget = done.moved_bytes > 0 && done.moved_bytes + live > self.options.compact_bytes_max;
            // What is not durable yet is left where it is: its sync is on its way.
            if dense || over_budget || inhabitants.iter().any(|(_, entry)| !entry.synced) {
                continue;
            }
            self.empty_segment(number, bytes, &inhabitants, &mut done)?;
        }
        Ok(done)
    }

    fn empty_segment(
        &self,
        number: u64,
        bytes: u64,
        inhabitants: &[(ObjectId, Entry)],
        done: &mut Collected,
    ) -> Result<(), ObjectError> {
        let moves = self.copy_held(inhabitants)?;
        if !moves.is_empty() {
            self.sync()?;
        }
        let mut index = self.index.write();
        for (id, from, to) in &moves {
            index.relocate(*id, *from, *to);
            done.moved_bytes += u64::from(to.len);
        }
        let mut pinned_meanwhile = false;
        for (id, entry) in inhabitants {
            if index.entry(*id).is_some_and(|now| now.location == entry.location) {
                if index.is_held(*id) {
                    pinned_meanwhile = true;
                } else {
                    index.forget(*id, entry.location);
                }
            }
        }
        drop(index);
        if !pinned_meanwhile {
            reached(Place::ObjectsBeforeDelete);
            self.delete(number)?;
            self.writer.lock().segments.remove(&number);
            done.segments += 1;
            done.freed_bytes += bytes;
        }
        Ok(())
    }

    /// Appends what is held to the active segment; the index does not know of the copies yet.
    fn copy_held(&self, inhabitants: &[(ObjectId, Entry)]) -> Result<Vec<(ObjectId, Location, Location)>, ObjectError> {
        let mut moves = Vec::new();
        for (id, entry) in inhabitants {
            if !self.index.read().is_held(*id) {
                continue;
            }
            match self.get(*id) {
                Ok(bytes) => {
                    let to = self.append(&mut self.writer.lock(), *id, &bytes)?;
                    moves.push((*id, entry.location, to));
                }
                // The loss is known now; the segment need not stay for it.
                Err(ObjectError::Damaged(_) | ObjectError::Missing(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(moves)
    }
}
