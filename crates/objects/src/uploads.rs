//! Uploads: objects that stay for a while although no record or entry names them yet.
//!
//! Whoever stores a large value asks first which of its objects are not here. Those that are must stay until
//! the value is written, so that [`ObjectStore::need`] holds them for the upload in the same step: nothing is
//! collected between its answer and what the asker does with it. An upload ends at its deadline unless that is
//! renewed, and with the process: it is in memory only. Time is an argument.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    time::{Duration, Instant},
};

use flotilla_types::{Holder, ObjectId};

use crate::{
    ObjectError, ObjectStore,
    index::Index,
    node::Slot,
    segment::{ID_BYTES, RECORD_HEADER_BYTES_MAX},
};

/// The longest time to the deadline of an upload. A value of 64 MiB at 1 Mbit/s takes 9 minutes.
pub const UPLOAD_TIME_MAX: Duration = Duration::from_secs(600);
/// Ids that one answer of [`ObjectStore::need`] names: 512 KiB.
pub const MISSING_MAX: usize = 16_384;

/// Uploads at a time.
const UPLOADS_MAX: usize = 1_024;
/// Objects that all uploads hold, not counting what these need: each takes a few bytes of memory.
const OBJECTS_MAX: usize = 1 << 20;
/// Bytes of these objects on disk, which nothing may delete: 128 values of 64 MiB.
const BYTES_MAX: u64 = 8 << 30;
/// No upload may hold more than this part of all.
const SHARE: u64 = 8;
/// Ids that are looked up at a time, while nobody else may use the index.
const IDS_PER_LOCK_MAX: usize = 1_024;
/// Objects that are looked at meanwhile, besides those that the last of the ids needs.
const VISITED_PER_LOCK_MAX: usize = 16_384;
/// Objects that are verified before the index is asked again.
const VERIFIED_AT_ONCE_MAX: usize = 1_024;

/// Bounds of all uploads to a store. One upload may hold an eighth of the objects and bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UploadBounds {
    /// Uploads at a time.
    pub uploads_max: usize,
    /// Objects that they hold.
    pub objects_max: usize,
    /// Bytes of these objects on disk. At most half of what the disk has.
    pub bytes_max: u64,
}

impl Default for UploadBounds {
    fn default() -> Self {
        Self { uploads_max: UPLOADS_MAX, objects_max: OBJECTS_MAX, bytes_max: BYTES_MAX }
    }
}

/// An upload cannot go on.
#[derive(Debug, Clone, thiserror::Error)]
pub enum UploadError {
    /// The upload is not known: its deadline has passed, or the process was started since it began. What it held
    /// may be gone: begin again, and ask for all of its objects again.
    #[error("upload {0} has ended; begin it again")]
    Ended(u64),
    /// There are as many uploads as may be. Nothing was changed; retry later.
    #[error("there are {0} uploads already; retry later")]
    TooManyUploads(usize),
    /// Uploads hold as much as they may. What this one held before the call, and what the call came to before,
    /// stays held until it ends; retry later.
    #[error("uploads hold {objects} objects of {bytes} bytes already; retry later")]
    Full {
        /// Objects that uploads hold.
        objects: usize,
        /// Bytes of these objects on disk.
        bytes: u64,
    },
    /// The store refuses all work.
    #[error(transparent)]
    Store(#[from] ObjectError),
}

/// What uploads hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct UploadUsage {
    /// Uploads.
    pub uploads: usize,
    /// Objects that they hold, not counting what these need.
    pub objects: usize,
    /// Bytes of these objects on disk.
    pub bytes: u64,
}

#[derive(Debug)]
struct Upload {
    deadline: Instant,
    held: HashSet<Slot>,
    bytes: u64,
}

/// Every upload.
#[derive(Debug, Default)]
pub(crate) struct Uploads {
    uploads: HashMap<u64, Upload>,
    by_deadline: BTreeSet<(Instant, u64)>,
    objects: usize,
    bytes: u64,
}

impl Uploads {
    fn check(&self, number: u64) -> Result<(), UploadError> {
        if self.uploads.contains_key(&number) { Ok(()) } else { Err(UploadError::Ended(number)) }
    }

    /// What each upload holds.
    pub(crate) fn roots(&self) -> impl Iterator<Item = (Holder, Vec<Slot>)> {
        let of = |(number, upload): (&u64, &Upload)| (Holder::Upload(*number), upload.held.iter().copied().collect());
        self.uploads.iter().map(of)
    }

    fn renew(&mut self, number: u64, deadline: Instant) -> Result<(), UploadError> {
        let upload = self.uploads.get_mut(&number).ok_or(UploadError::Ended(number))?;
        self.by_deadline.remove(&(upload.deadline, number));
        self.by_deadline.insert((deadline, number));
        upload.deadline = deadline;
        Ok(())
    }

    fn begin(&mut self, number: u64, deadline: Instant, bounds: &UploadBounds) -> Result<(), UploadError> {
        if self.uploads.contains_key(&number) {
            return self.renew(number, deadline);
        }
        if self.uploads.len() >= bounds.uploads_max {
            return Err(UploadError::TooManyUploads(self.uploads.len()));
        }
        self.uploads.insert(number, Upload { deadline, held: HashSet::new(), bytes: 0 });
        self.by_deadline.insert((deadline, number));
        Ok(())
    }

    /// Whether an upload may hold one more object. It may if it holds the object already.
    fn check_room(
        &self,
        number: u64,
        slot: Option<Slot>,
        bytes: u64,
        bounds: &UploadBounds,
    ) -> Result<(), UploadError> {
        let upload = self.uploads.get(&number).ok_or(UploadError::Ended(number))?;
        if slot.is_some_and(|slot| upload.held.contains(&slot)) {
            return Ok(());
        }
        let own = (upload.held.len() as u64 + 1, upload.bytes.saturating_add(bytes));
        let all = (self.objects as u64 + 1, self.bytes.saturating_add(bytes));
        let (objects_max, bytes_max) = (bounds.objects_max as u64, bounds.bytes_max);
        let is_over = all.0 > objects_max || all.1 > bytes_max;
        if is_over || own.0 * SHARE > objects_max || own.1.saturating_mul(SHARE) > bytes_max {
            return Err(UploadError::Full { objects: self.objects, bytes: self.bytes });
        }
        Ok(())
    }

    /// Adds an object to what an upload holds; returns whether it is new there.
    fn add(&mut self, number: u64, slot: Slot, bytes: u64, bounds: &UploadBounds) -> Result<bool, UploadError> {
        self.check_room(number, Some(slot), bytes, bounds)?;
        let upload = self.uploads.get_mut(&number).ok_or(UploadError::Ended(number))?;
        if !upload.held.insert(slot) {
            return Ok(false);
        }
        upload.bytes += bytes;
        self.objects += 1;
        self.bytes += bytes;
        Ok(true)
    }

    fn remove(&mut self, number: u64) -> Option<Upload> {
        let upload = self.uploads.remove(&number)?;
        self.by_deadline.remove(&(upload.deadline, number));
        self.objects -= upload.held.len();
        self.bytes -= upload.bytes;
        Some(upload)
    }

    fn first_due(&self, now: Instant) -> Option<u64> {
        self.by_deadline.first().filter(|(deadline, _)| *deadline <= now).map(|(_, number)| *number)
    }

    fn usage(&self) -> UploadUsage {
        UploadUsage { uploads: self.uploads.len(), objects: self.objects, bytes: self.bytes }
    }

    /// Whether the totals are those of the uploads.
    #[cfg(test)]
    pub(crate) fn audit(&self) {
        let bytes: u64 = self.uploads.values().map(|upload| upload.bytes).sum();
        let objects: usize = self.uploads.values().map(|upload| upload.held.len()).sum();
        assert_eq!((self.objects, self.bytes), (objects, bytes));
        let by_deadline = self.uploads.iter().map(|(number, upload)| (upload.deadline, *number)).collect();
        assert_eq!(self.by_deadline, by_deadline);
    }
}

/// Objects that are not here, each once.
#[derive(Debug, Default)]
struct Missing {
    ids: Vec<ObjectId>,
    seen: HashSet<ObjectId>,
}

/// What [`Index::below`] finds.
#[derive(Debug, Default)]
struct Below {
    /// How many ids were looked at.
    ids: usize,
    absent: Vec<ObjectId>,
    /// Objects that are here, and that nobody has read since the store was opened.
    unverified: Vec<ObjectId>,
}

/// What came of a question.
enum Answer {
    /// So many of the ids are answered.
    Ids(usize),
    /// None: these objects have to be verified first.
    Verify(Vec<ObjectId>),
}

impl Missing {
    fn add(&mut self, id: ObjectId) {
        if self.ids.len() < MISSING_MAX && self.seen.insert(id) {
            self.ids.push(id);
        }
    }
}

impl Index {
    /// Ends an upload. What it held and nothing else holds may be collected.
    pub(crate) fn end_upload(&mut self, number: u64) {
        let held = self.uploads.remove(number).map(|upload| upload.held);
        held.into_iter().flatten().for_each(|slot| self.release(slot));
    }

    fn end_due_uploads(&mut self, now: Instant) {
        while let Some(number) = self.uploads.first_due(now) {
            self.end_upload(number);
        }
    }

    /// Holds for an upload what is here of the first of these objects, and names what is missing.
    fn need(
        &mut self,
        upload: u64,
        ids: &[ObjectId],
        bounds: &UploadBounds,
        missing: &mut Missing,
    ) -> Result<Answer, UploadError> {
        self.uploads.check(upload)?;
        let looked_up = self.look_up(ids);
        let below = self.below(&looked_up);
        if !below.unverified.is_empty() {
            return Ok(Answer::Verify(below.unverified));
        }
        for found in &looked_up[..below.ids] {
            match *found {
                Ok(slot) if self.nodes[slot.index()].is_present() => self.hold_for_upload(upload, slot, bounds)?,
                Ok(slot) => missing.add(self.nodes[slot.index()].id),
                Err(id) => missing.add(id),
            }
        }
        below.absent.into_iter().for_each(|id| missing.add(id));
        Ok(Answer::Ids(below.ids))
    }

    fn hold_for_upload(&mut self, upload: u64, slot: Slot, bounds: &UploadBounds) -> Result<(), UploadError> {
        let bytes = self.record_bytes(slot);
        if self.uploads.add(upload, slot, bytes, bounds)? {
            self.count(slot);
        }
        Ok(())
    }

    /// The slots of the first of these objects; ids of those that nobody knows.
    fn look_up(&self, ids: &[ObjectId]) -> Vec<Result<Slot, ObjectId>> {
        ids.iter().take(IDS_PER_LOCK_MAX).map(|id| self.slot(*id).ok_or(*id)).collect()
    }

    /// What is absent or not verified of the first of these objects and of all that they need.
    fn below(&self, roots: &[Result<Slot, ObjectId>]) -> Below {
        let (mut below, mut parents, mut visited) = (Below::default(), HashSet::new(), 0);
        let mut queue: Vec<Slot> = Vec::new();
        for root in roots {
            if visited >= VISITED_PER_LOCK_MAX {
                break;
            }
            below.ids += 1;
            queue.extend(root);
            while let Some(slot) = queue.pop() {
                visited += 1;
                let node = &self.nodes[slot.index()];
                match node.stored() {
                    None => below.absent.push(node.id),
                    Some(stored) if !stored.verified => below.unverified.push(node.id),
                    Some(_) => {}
                }
                if below.unverified.len() >= VERIFIED_AT_ONCE_MAX {
                    return below;
                }
                if node.is_present() && !node.children.is_empty() && parents.insert(slot) {
                    queue.extend_from_slice(self.children_of(slot));
                }
            }
        }
        below
    }
}

impl ObjectStore {
    /// Begins an upload, or renews it if it goes on already. It ends after `time`, at most
    /// [`UPLOAD_TIME_MAX`], unless it is renewed. The number is not in use for anything else: draw it at random.
    pub fn begin_upload(&self, upload: u64, now: Instant, time: Duration) -> Result<(), UploadError> {
        self.check_healthy()?;
        self.end_due_uploads(now);
        self.index.write().uploads.begin(upload, now + time.min(UPLOAD_TIME_MAX), &self.options.uploads)
    }

    /// Moves the deadline of an upload to `time` from now, at most [`UPLOAD_TIME_MAX`].
    pub fn renew_upload(&self, upload: u64, now: Instant, time: Duration) -> Result<(), UploadError> {
        self.check_healthy()?;
        self.end_due_uploads(now);
        self.index.write().uploads.renew(upload, now + time.min(UPLOAD_TIME_MAX))
    }

    /// Which objects an upload needs and are not here: those of `ids` that are absent, and what is absent of all
    /// that the others need. In the same step it holds those that are here, with all that they need. Ask again
    /// for the others once they are stored, and unpin them then.
    ///
    /// An object that was not verified since the store was opened is read first: the asker may have the only
    /// intact copy at hand. It is here if it is intact, and durable after the next [`sync`](Self::sync). An answer
    /// of [`MISSING_MAX`] ids may not be complete.
    pub fn need(&self, upload: u64, now: Instant, ids: &[ObjectId]) -> Result<Vec<ObjectId>, UploadError> {
        self.check_healthy()?;
        self.end_due_uploads(now);
        self.index.read().uploads.check(upload)?;
        let mut missing = Missing::default();
        let mut rest = ids;
        while !rest.is_empty() {
            let answer = self.index.write().need(upload, rest, &self.options.uploads, &mut missing)?;
            match answer {
                Answer::Ids(answered) => rest = &rest[answered..],
                Answer::Verify(objects) => objects.into_iter().try_for_each(|id| self.verify(id))?,
            }
        }
        Ok(missing.ids)
    }

    /// Stores an object as [`import_compressible`](Self::import_compressible) does, and holds it for an upload instead
    /// of pinning it: it stays until the upload ends. Nothing is stored unless the upload has room for the object.
    pub fn import_for_upload(
        &self,
        upload: u64,
        now: Instant,
        id: ObjectId,
        bytes: &[u8],
        children: &[ObjectId],
    ) -> Result<(), UploadError> {
        self.check_healthy()?;
        self.end_due_uploads(now);
        let bounds = &self.options.uploads;
        let index = self.index.read();
        index.uploads.check_room(upload, index.slot(id), record_bytes_max(bytes, children), bounds)?;
        drop(index);
        self.import_compressible(id, bytes, children)?;
        self.change(|index| {
            // A collection may have found it damaged meanwhile.
            let slot = index.slot(id).filter(|slot| index.nodes[slot.index()].is_present());
            let held = slot.ok_or(UploadError::Store(ObjectError::Missing(id)));
            let held = held.and_then(|slot| index.hold_for_upload(upload, slot, bounds));
            index.unpin(id);
            held
        })
    }

    /// Which objects are not here, or are damaged: of these, and of all that those which are here need. Each once.
    ///
    /// Those that were not verified since the store was opened are read first. The others may not be durable before
    /// the next [`sync`](Self::sync).
    pub fn missing(&self, ids: &[ObjectId]) -> Result<BTreeSet<ObjectId>, ObjectError> {
        self.check_healthy()?;
        let mut missing = BTreeSet::new();
        let mut rest = ids;
        while !rest.is_empty() {
            let index = self.index.read();
            let looked_up = index.look_up(rest);
            let Below { ids: answered, absent, unverified } = index.below(&looked_up);
            drop(index);
            if unverified.is_empty() {
                missing.extend(looked_up[..answered].iter().filter_map(|found| found.err()));
                missing.extend(absent);
                rest = &rest[answered..];
            } else {
                unverified.into_iter().try_for_each(|id| self.verify(id))?;
            }
        }
        Ok(missing)
    }

    /// Reads an object. It is absent afterwards if it is damaged.
    pub(crate) fn verify(&self, id: ObjectId) -> Result<(), ObjectError> {
        match self.get(id) {
            Ok(_) | Err(ObjectError::Damaged(_) | ObjectError::Missing(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Ends an upload, before its deadline.
    pub fn end_upload(&self, upload: u64) {
        self.change(|index| index.end_upload(upload));
    }

    /// Ends the uploads whose deadline has passed. The methods above do this too: call it before a
    /// [collection](Self::collect), so that none is kept for lack of other calls.
    pub fn end_due_uploads(&self, now: Instant) {
        self.change(|index| index.end_due_uploads(now));
    }

    /// What uploads hold.
    #[must_use]
    pub fn upload_usage(&self) -> UploadUsage {
        self.index.read().uploads.usage()
    }
}

/// Bytes of an object's record on disk, at most.
fn record_bytes_max(bytes: &[u8], children: &[ObjectId]) -> u64 {
    RECORD_HEADER_BYTES_MAX + ID_BYTES * children.len() as u64 + bytes.len() as u64
}
