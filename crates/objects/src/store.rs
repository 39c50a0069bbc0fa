//! The store: writes, reads, syncs and holds objects.
//!
//! Locks are taken in the order sync, writer, index, opening, files; no file is read or fsynced under the
//! writer or index lock, and the lock of open files is held over no I/O at all. Segments found at open are
//! never appended to, so only the last run of the process can have left a torn end. A bounded number of files
//! stays open for reading.

use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions},
    io, mem,
    os::unix::fs::FileExt,
    path::PathBuf,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use flotilla_failpoints::{Place, io as failpoint, reached};
use flotilla_types::{Holder, ObjectId};
use parking_lot::{Mutex, RwLock};

use crate::{
    CHILDREN_MAX, ObjectError, UploadBounds,
    compression::Compression,
    error::at,
    index::{Entry, Index, Known, Location},
    load::{Found, add_footer, load, segment_path},
    node::Stored,
    segment::{Format, Lengths, encode_record_header, encode_segment_header},
    tables::Closed,
};

/// Bytes of a payload that is copied behind its header.
const COPIED_BYTES_MAX: usize = 64 << 10;
/// Bytes that may be stored before they are made durable without being asked: an fsync of more delays those of the
/// log, which a file system orders behind it.
const UNSYNCED_BYTES_MAX: u64 = 2 << 20;

/// Bytes of a segment, unless it has a single object.
const SEGMENT_BYTES_MAX: u64 = 1 << 30;

/// Bounds of a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Bytes at which a segment is closed; a larger object gets its own segment. 1 MiB–1 GiB, which is the most
    /// that is used: larger segments mean fewer files, smaller ones finer collection.
    pub segment_bytes: u64,
    /// Bytes of an object; larger ones are refused. At most 4 GiB − 1, and an object is read into memory
    /// whole.
    pub object_bytes_max: u64,
    /// A closed segment is compacted when its live objects take less than this percentage of `segment_bytes`.
    /// Higher values save disk space and copy more.
    pub live_percent_min: u8,
    /// Bytes that one collection copies, at most; it may exceed this for a single segment.
    pub compact_bytes_max: u64,
    /// What uploads may hold.
    pub uploads: UploadBounds,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            segment_bytes: 32 << 20,
            object_bytes_max: 65 << 20,
            live_percent_min: 50,
            compact_bytes_max: 64 << 20,
            uploads: UploadBounds::default(),
        }
    }
}

/// Disk usage of the store.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StoreUsage {
    /// Objects, live or not.
    pub objects: u64,
    /// Segment files.
    pub segments: u64,
    /// Bytes of those files.
    pub disk_bytes: u64,
}

/// An object store in a folder. All methods may be called from any thread. The caller ensures that only one
/// process at a time opens a folder.
#[derive(Debug)]
pub struct ObjectStore {
    dir: PathBuf,
    /// Open from the start: a sync must not fail for lack of a descriptor.
    folder: File,
    pub(crate) options: Options,
    pub(crate) index: RwLock<Index>,
    pub(crate) writer: Mutex<Writer>,
    pub(crate) collecting: Mutex<()>,
    syncing: Mutex<()>,
    /// Held while a file is opened for reading.
    pub(crate) opening: Mutex<()>,
    /// Files open for reading.
    pub(crate) files: Mutex<HashMap<u64, Arc<File>>>,
    pub(crate) compression: Compression,
    /// Whether compressible objects may be compressed.
    may_compress: AtomicBool,
    /// The fsync that failed.
    poisoned: OnceLock<Arc<io::Error>>,
    #[cfg(test)]
    pub(crate) fail_next_sync: std::sync::atomic::AtomicBool,
    #[cfg(test)]
    pub(crate) opens_to_fail: std::sync::atomic::AtomicUsize,
    /// Bytes of files, by inode, that an fsync covered.
    #[cfg(test)]
    pub(crate) synced_bytes: Mutex<std::collections::BTreeMap<u64, u64>>,
}

#[derive(Debug, Default)]
pub(crate) struct Writer {
    active: Option<Active>,
    next_segment: u64,
    /// The version of the format that new segments have.
    version: u32,
    dirty: Vec<Arc<File>>,
    dirty_folder: bool,
    unsynced: Vec<Unsynced>,
    /// Bytes of those.
    unsynced_bytes: u64,
    /// Closed segments that get a table of contents after their sync.
    closing: Vec<Active>,
}

#[derive(Debug)]
struct Active {
    number: u64,
    file: Arc<File>,
    format: Format,
    end: u64,
    dirty: bool,
}

/// A record that no sync covered.
#[derive(Debug)]
struct Unsynced {
    id: ObjectId,
    /// The location whose place it takes once it is durable; `None` if that of any.
    from: Option<Location>,
    to: Location,
}

/// A record to append.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Record<'a> {
    pub(crate) id: ObjectId,
    /// The object's bytes, or their frame.
    pub(crate) stored: &'a [u8],
    pub(crate) lengths: Lengths,
    pub(crate) children: &'a [ObjectId],
}

impl Record<'_> {
    /// The lowest version of a format that can have it.
    fn version_min(&self) -> u32 {
        match (self.lengths.is_compressed(), self.children) {
            (true, _) => 3,
            (false, [_, ..]) => 2,
            (false, []) => 1,
        }
    }
}

/// Whether an object may be stored compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Plain,
    Compressible,
}

/// Which copy of an object a record replaces.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Replaces {
    /// None: the object is new.
    Nothing,
    /// The copy at a location, unless the object has moved.
    Copy(Location),
    /// Any: the record has more children.
    Any,
}

impl ObjectStore {
    /// Opens the folder, creates it if missing, and indexes its objects by the segments' tables of contents,
    /// or by reading record headers where there is none. Torn tails are truncated; everything found is made
    /// durable.
    pub fn open(dir: impl Into<PathBuf>, options: Options) -> Result<Self, ObjectError> {
        let dir = dir.into();
        let options = Options { segment_bytes: options.segment_bytes.min(SEGMENT_BYTES_MAX), ..options };
        fs::create_dir_all(&dir)?;
        let compression = Compression::default();
        let Found { index, next_segment, version } = load(&dir, &compression)?;
        let writer = Writer { next_segment, version, ..Writer::default() };
        let folder = File::open(&dir)?;
        folder.sync_all()?;
        if let Some(parent) = dir.canonicalize()?.parent() {
            File::open(parent)?.sync_all()?;
        }
        Ok(Self {
            dir,
            folder,
            options,
            index: RwLock::new(index),
            writer: Mutex::new(writer),
            collecting: Mutex::new(()),
            syncing: Mutex::new(()),
            opening: Mutex::default(),
            files: Mutex::default(),
            compression,
            may_compress: AtomicBool::new(version > 2),
            poisoned: OnceLock::new(),
            #[cfg(test)]
            fail_next_sync: false.into(),
            #[cfg(test)]
            opens_to_fail: 0.into(),
            #[cfg(test)]
            synced_bytes: Mutex::default(),
        })
    }

    /// Stores bytes under their hash and pins the object once, whether or not it was present, so that it
    /// cannot be collected before its owner holds it: call [`unpin`](Self::unpin) then. Durable only after
    /// [`sync`](Self::sync).
    ///
    /// `children` are the objects that it needs, at most [`CHILDREN_MAX`]; they need not be present. They
    /// follow from the bytes: for an object that is present, those that were not known are added.
    pub fn put(&self, bytes: &[u8], children: &[ObjectId]) -> Result<ObjectId, ObjectError> {
        let id = ObjectId::of(bytes);
        self.store(id, bytes, children, Form::Plain)?;
        Ok(id)
    }

    /// Like [`put`](Self::put), for an object of which rarely a part is read: it is stored compressed if that
    /// is [allowed](Self::allow_compression), it is no larger than 64 KiB, and this saves a tenth of it.
    pub fn put_compressible(&self, bytes: &[u8], children: &[ObjectId]) -> Result<ObjectId, ObjectError> {
        let id = ObjectId::of(bytes);
        self.store(id, bytes, children, Form::Compressible)?;
        Ok(id)
    }

    /// Like [`put`](Self::put), for bytes from elsewhere. Stores nothing if they do not match the id.
    pub fn import(&self, id: ObjectId, bytes: &[u8], children: &[ObjectId]) -> Result<(), ObjectError> {
        self.import_as(id, bytes, children, Form::Plain)
    }

    /// Like [`import`](Self::import) and [`put_compressible`](Self::put_compressible).
    pub fn import_compressible(&self, id: ObjectId, bytes: &[u8], children: &[ObjectId]) -> Result<(), ObjectError> {
        self.import_as(id, bytes, children, Form::Compressible)
    }

    fn import_as(&self, id: ObjectId, bytes: &[u8], children: &[ObjectId], form: Form) -> Result<(), ObjectError> {
        if ObjectId::of(bytes) != id {
            return Err(ObjectError::Mismatch(id));
        }
        self.store(id, bytes, children, form)
    }

    /// Allows compression from now on. Binaries that do not know segments of format 3 refuse the folder once
    /// there is one: call this when the cluster's version says that they are out of use. A store that finds
    /// such a segment needs no call.
    pub fn allow_compression(&self) {
        self.may_compress.store(true, Ordering::Release);
    }

    /// Makes every object stored so far durable. After an error the store is poisoned.
    pub fn sync(&self) -> Result<(), ObjectError> {
        // One sync at a time: the first caller may be syncing the objects of the second, which must not
        // return before.
        let _guard = self.syncing.lock();
        self.check_healthy()?;
        let (files, folder, unsynced, closing) = {
            let mut writer = self.writer.lock();
            if let Some(active) = &mut writer.active {
                active.dirty = false;
            }
            let folder = mem::take(&mut writer.dirty_folder);
            writer.unsynced_bytes = 0;
            let Writer { dirty, unsynced, closing, .. } = &mut *writer;
            (mem::take(dirty), folder, mem::take(unsynced), mem::take(closing))
        };
        let result = failpoint(Place::ObjectsBeforeSync)
            .and_then(|()| files.iter().try_for_each(|file| self.fsync(file)))
            .inspect(|()| reached(Place::ObjectsFilesSynced))
            .and_then(|()| if folder { self.fsync(&self.folder) } else { Ok(()) });
        if let Err(error) = result {
            // Only one sync runs at a time, so this is the first failure.
            let error = self.poisoned.get_or_init(|| Arc::new(at(&self.dir)(error)));
            return Err(ObjectError::Poisoned(error.clone()));
        }
        reached(Place::ObjectsSynced);
        let mut index = self.index.write();
        for Unsynced { id, from, to } in unsynced {
            index.synced(id, from, to);
        }
        drop(index);
        closing.iter().for_each(|segment| self.finish(segment));
        Ok(())
    }

    /// Adds its table of contents to a closed segment, whose records are durable. Without one, the next open
    /// scans the segment.
    fn finish(&self, segment: &Active) {
        let Active { number, file, format, end, .. } = segment;
        if format.nonce().is_none() {
            return;
        }
        let records = self.index.read().contents(*number, true);
        if failpoint(Place::ObjectsBeforeFooter).is_ok() {
            let bytes = add_footer(file, *format, &records, *end, *number);
            reached(Place::ObjectsFooterWritten);
            self.index.write().tables.grown(*number, bytes);
        }
    }

    /// Whether the object is present and durable. A poisoned store finds nothing:
    /// [`check_healthy`](Self::check_healthy).
    #[must_use]
    pub fn contains(&self, id: ObjectId) -> bool {
        self.check_healthy().is_ok() && self.index.read().entry(id).is_some_and(|entry| entry.stored.synced)
    }

    /// The length of an object that is present, durable or not.
    #[must_use]
    pub fn len_bytes(&self, id: ObjectId) -> Option<u64> {
        self.index.read().entry(id).map(|entry| u64::from(entry.location.lengths.plain))
    }

    /// The objects that an object needs, if they are known: those of one that is not present may not be.
    #[must_use]
    pub fn children(&self, id: ObjectId) -> Vec<ObjectId> {
        self.index.read().children(id)
    }

    /// Pins the object if it is present and durable; returns whether it is. Pins are counted.
    #[must_use]
    pub fn pin(&self, id: ObjectId) -> bool {
        let mut index = self.index.write();
        let durable = self.check_healthy().is_ok() && index.entry(id).is_some_and(|entry| entry.stored.synced);
        if durable {
            index.pin(id);
        }
        durable
    }

    /// Pins objects, whether or not they are present.
    pub fn pin_all(&self, ids: &[ObjectId]) {
        let mut index = self.index.write();
        ids.iter().for_each(|id| index.pin(*id));
    }

    /// An object should be present. If it is held and absent, it counts as damaged until it is stored again.
    pub fn expect(&self, id: ObjectId) {
        self.index.write().expect(id);
    }

    /// Removes one pin of [`put`](Self::put), [`import`](Self::import) or [`pin`](Self::pin).
    pub fn unpin(&self, id: ObjectId) {
        self.change(|index| index.unpin(id));
    }

    /// Replaces the objects that a holder needs, its roots. They and everything that is reachable from them
    /// by children stay. Roots need not be present yet; what they need is held as soon as they are. Without
    /// roots the holder is gone. Takes time for what changes, and for a comparison of the roots.
    pub fn hold(&self, holder: Holder, roots: impl IntoIterator<Item = ObjectId>) {
        self.change(|index| index.hold(holder, roots.into_iter()));
    }

    /// Ends the hold of a holder, or an upload.
    pub fn let_go(&self, holder: Holder) {
        self.hold(holder, []);
        if let Holder::Upload(upload) = holder {
            self.end_upload(upload);
        }
    }

    /// Disk usage of the store.
    #[must_use]
    pub fn usage(&self) -> StoreUsage {
        let writer = self.writer.lock();
        let active_bytes = writer.active.as_ref().map_or(0, |active| active.end);
        let index = self.index.read();
        let (segments, closed_bytes) = index.tables.usage();
        StoreUsage {
            objects: index.present() as u64,
            segments: segments as u64,
            disk_bytes: closed_bytes + active_bytes,
        }
    }

    /// Fails once an fsync has failed. Ask before an object that [`contains`](Self::contains) or
    /// [`pin`](Self::pin) does not find is taken as lost: a poisoned store finds none.
    pub fn check_healthy(&self) -> Result<(), ObjectError> {
        self.poisoned.get().map_or(Ok(()), |error| Err(ObjectError::Poisoned(error.clone())))
    }

    fn store(&self, id: ObjectId, bytes: &[u8], children: &[ObjectId], form: Form) -> Result<(), ObjectError> {
        self.check_healthy()?;
        let bytes_max = self.options.object_bytes_max.min(u64::from(u32::MAX));
        if bytes.len() as u64 > bytes_max {
            return Err(ObjectError::TooLarge { bytes: bytes.len() as u64, bytes_max });
        }
        let mut children = distinct(id, children.to_vec())?;
        if self.pin_intact(id, &children)? {
            return Ok(());
        }
        let compresses = form == Form::Compressible && self.may_compress.load(Ordering::Acquire);
        let frame = if compresses { self.compression.compress(bytes) } else { None };
        let mut writer = self.writer.lock();
        // Another thread may have stored it since the look-up; from here on the writer lock prevents that.
        let mut index = self.index.write();
        let replaces = match index.known(id, &children) {
            Known::Covered => {
                index.pin(id);
                return Ok(());
            }
            Known::Absent => Replaces::Nothing,
            Known::Lacking => {
                children.extend(index.children(id));
                children = distinct(id, children)?;
                Replaces::Any
            }
        };
        drop(index);
        let stored = frame.as_deref().unwrap_or(bytes);
        let lengths = Lengths { stored: stored.len() as u32, plain: bytes.len() as u32 };
        let record = Record { id, stored, lengths, children: &children };
        let location = self.append(&mut writer, record, replaces)?;
        self.change(|index| {
            if index.entry(id).is_some() {
                index.replace_children(id, &children);
            } else {
                index.insert(id, Entry { location, stored: Stored { synced: false, verified: true } }, &children);
            }
            index.pin(id);
        });
        let is_much = writer.unsynced_bytes >= UNSYNCED_BYTES_MAX;
        drop(writer);
        if is_much { self.sync() } else { Ok(()) }
    }

    /// Pins the object if it is present and intact, with these children; returns whether it is. A copy from
    /// an earlier run is verified first: relying on a damaged one would lose the intact bytes at hand.
    fn pin_intact(&self, id: ObjectId, children: &[ObjectId]) -> Result<bool, ObjectError> {
        loop {
            {
                let mut index = self.index.write();
                match index.entry(id) {
                    None => return Ok(false),
                    Some(_) if index.known(id, children) != Known::Covered => return Ok(false),
                    Some(entry) if entry.stored.verified => {
                        index.pin(id);
                        return Ok(true);
                    }
                    Some(_) => {}
                }
            }
            self.verify(id)?;
        }
    }

    /// Appends a record to the active segment. Its sync makes the index use it. The next record overwrites a
    /// failed write.
    pub(crate) fn append(
        &self,
        writer: &mut Writer,
        record: Record<'_>,
        replaces: Replaces,
    ) -> Result<Location, ObjectError> {
        let Record { id, stored, lengths, children } = record;
        writer.version = writer.version.max(record.version_min());
        let (version, bytes_max) = (writer.version, self.options.segment_bytes);
        let is_full = |active: &Active| {
            let header_bytes = active.format.record_header_bytes() + size_of_val(children) as u64;
            active.end + header_bytes + stored.len() as u64 > bytes_max
        };
        let is_unfit = |active: &Active| active.format.version() < version;
        if let Some(full) = writer.active.take_if(|active| is_full(active) || is_unfit(active)) {
            self.index.write().tables.close(full.number, Closed { bytes: full.end, inherited: false });
            writer.closing.push(full);
        }
        if writer.active.is_none() {
            writer.active = Some(self.start_segment(writer)?);
        }
        let Writer { active: Some(active), dirty, unsynced, unsynced_bytes, .. } = writer else {
            return Err(io::Error::other("no active segment").into());
        };
        let mut bytes = encode_record_header(active.format, id, lengths, children);
        let to = Location { segment: active.number, offset: active.end + bytes.len() as u64, lengths };
        let written = failpoint(Place::ObjectsBeforeAppend).and_then(|()| {
            // A small payload is written together with its header: that is one call to the kernel.
            let (together, rest) = if stored.len() <= COPIED_BYTES_MAX { (stored, &[][..]) } else { (&[][..], stored) };
            bytes.extend_from_slice(together);
            active.file.write_all_at(&bytes, active.end)?;
            active.file.write_all_at(rest, to.offset)
        });
        written.map_err(at(&self.segment_path(active.number)))?;
        if !active.dirty {
            active.dirty = true;
            dirty.push(active.file.clone());
        }
        *unsynced_bytes += to.offset + u64::from(lengths.stored) - active.end;
        active.end = to.offset + u64::from(lengths.stored);
        let from = match replaces {
            Replaces::Nothing => Some(to),
            Replaces::Copy(from) => Some(from),
            Replaces::Any => None,
        };
        unsynced.push(Unsynced { id, from, to });
        self.index.write().tables.appended(to.segment);
        Ok(to)
    }

    fn start_segment(&self, writer: &mut Writer) -> Result<Active, ObjectError> {
        let number = writer.next_segment;
        writer.next_segment += 1;
        let path = self.segment_path(number);
        let create = || OpenOptions::new().write(true).create_new(true).open(&path);
        let file = self.open_freeing(create).map_err(at(&path))?;
        let format = Format::new(writer.version);
        if let Err(error) = file.write_all_at(&encode_segment_header(format), 0) {
            // On a full disk each retry would leave one more empty file.
            let _ = fs::remove_file(&path);
            return Err(at(&path)(error).into());
        }
        writer.dirty_folder = true;
        self.index.write().tables.begin(number);
        reached(Place::ObjectsSegmentBegun);
        Ok(Active { number, file: Arc::new(file), format, end: format.segment_header_bytes(), dirty: false })
    }

    /// The segment that is appended to, and its bytes.
    pub(crate) fn active_segment(&self) -> Option<(u64, u64)> {
        self.writer.lock().active.as_ref().map(|active| (active.number, active.end))
    }

    /// Deletes a segment's file. Reads in progress still succeed; the space is freed when they end.
    pub(crate) fn delete(&self, segment: u64) -> io::Result<()> {
        let deleted = fs::remove_file(self.segment_path(segment)).or_else(|error| match error.kind() {
            io::ErrorKind::NotFound => Ok(()),
            _ => Err(error),
        });
        // After the deletion and after readers that may have opened it before, so that none keeps it open.
        let _opening = self.opening.lock();
        self.files.lock().remove(&segment);
        deleted
    }

    pub(crate) fn segment_path(&self, number: u64) -> PathBuf {
        segment_path(&self.dir, number)
    }

    fn fsync(&self, file: &File) -> io::Result<()> {
        #[cfg(test)]
        if self.fail_next_sync.swap(false, std::sync::atomic::Ordering::AcqRel) {
            return Err(io::Error::other("injected"));
        }
        #[cfg(test)]
        {
            use std::os::unix::fs::MetadataExt as _;
            let metadata = file.metadata()?;
            self.synced_bytes.lock().insert(metadata.ino(), metadata.len());
        }
        file.sync_all()
    }
}

/// Children in ascending order, without duplicates and without the object itself.
fn distinct(id: ObjectId, mut children: Vec<ObjectId>) -> Result<Vec<ObjectId>, ObjectError> {
    children.sort_unstable();
    children.dedup();
    children.retain(|child| *child != id);
    if children.len() > CHILDREN_MAX {
        return Err(ObjectError::TooManyChildren { id, children: children.len() });
    }
    Ok(children)
}
