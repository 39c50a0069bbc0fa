//! sled as a view of the checkpoints' records: fast to search, and it may be lost at any time.
//!
//! One tree: `0 ‖ replica` holds the replica's marker, `1 ‖ replica ‖ key` its records, `2` the identity of
//! the view.
//!
//! Invariant: sled recovers a prefix of what was written to it, so the markers rely on order. A stage (the
//! records of a checkpoint) is announced in the marker first, then its records are written ("fed"), then it
//! is confirmed. So a view that holds any part of a stage has it in its marker, and is reloaded when the
//! checkpoint to open does not contain that stage.
//!
//! sled may also fail or panic: every call into it is guarded, and the first failure removes the trust file,
//! so that the next start rebuilds the view.

use std::{
    fs::{self, File},
    io,
    ops::Bound,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use bytes::Bytes;
use flotilla_failpoints::{self as failpoints, reached};
use flotilla_objects::ObjectStore;
use flotilla_storage::{EngineError, KeyRanges};
use flotilla_types::{Checkpoint, CheckpointFormat, KeyRange, ObjectId, ReplicaId, TableKind, TableRef, Tables};
use rustix::fs::{FlockOperation, flock};

use super::trust::{BootAndMount, Trust, sync_tree};
use crate::{
    compact::is_live,
    failure::ViewFailure,
    memtable::Frozen,
    merge::{Merge, Record, Source},
    sorted::Cut,
    table::{Table, sources},
};

/// Maximum records in a batch of writes: a batch holds a lock that every reader needs.
const BATCH_RECORDS_MAX: usize = 128;
/// A batch of writes is closed once it has this many bytes.
const BATCH_BYTES_MAX: usize = 64 * 1024;
/// Maximum records in a page of a scan.
const PAGE_RECORDS_MAX: usize = 512;
/// A page of a scan is closed once it has this many bytes.
const PAGE_BYTES_MAX: usize = 256 * 1024;
/// How often sled writes out its buffers; bounds the work to be repeated after a crash.
const FLUSH_EVERY_MS: u64 = 500;
/// sled's threads may hold its folder for a short time after it was dropped in the same process.
const LOCK_ATTEMPTS_MAX: u32 = 250;
const LOCK_RETRY: Duration = Duration::from_millis(20);

const FOLDER: &str = "view";
const TRUST: &str = "view.trust";

const MARKER: u8 = 0;
const RECORD: u8 = 1;
const IDENTITY_KEY: [u8; 1] = [2];
const MARKER_VERSION: u8 = 1;

/// The records of all replicas.
#[derive(Debug)]
pub(crate) struct SledView {
    db: sled::Db,
    folder: PathBuf,
    trust_path: PathBuf,
    trust: Trust,
    failed: AtomicBool,
}

/// The records in a replica's part of the view, identified by the objects they came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stage {
    base: [u8; 32],
    runs_len: u32,
    runs: [u8; 32],
}

/// The marker of a replica's part of the view.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Marker {
    /// All records of this stage are present.
    complete: Option<Stage>,
    /// Some records of this stage may be present as well.
    announced: Option<Stage>,
}

/// The work that makes a replica's part of the view equal to a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Plan {
    /// None.
    Current,
    /// Feed the runs from this index on.
    Runs(usize),
    /// Clear it and feed everything.
    Reload,
}

/// The names of the tables that a stage is identified by: for format 1 those of pieces.
#[derive(Debug)]
struct Names {
    base: Vec<Vec<u8>>,
    runs: Vec<Vec<u8>>,
}

impl Names {
    fn of(tables: &Tables) -> Self {
        match tables {
            Tables::Pieces { base, runs } => {
                let names = |ids: &[ObjectId]| ids.iter().map(|id| id.as_bytes().to_vec()).collect();
                Self { base: names(base), runs: names(runs) }
            }
            Tables::Manifests(tables) => {
                let name = |TableRef { clip: KeyRange { start, end }, manifest, .. }: &TableRef| {
                    [manifest.as_bytes(), &(start.len() as u64).to_le_bytes()[..], start, end].concat()
                };
                let names = |kind| tables.iter().filter(move |table| table.kind == kind).map(name).collect();
                Self { base: names(TableKind::Base), runs: names(TableKind::Run) }
            }
        }
    }

    /// The stage with so many of the runs.
    fn stage(&self, runs_len: usize) -> Option<Stage> {
        let digest = |names: &[Vec<u8>]| {
            let mut hasher = blake3::Hasher::new();
            names.iter().for_each(|name| {
                hasher.update(name);
            });
            *hasher.finalize().as_bytes()
        };
        let runs = self.runs.get(..runs_len)?;
        Some(Stage { base: digest(&self.base), runs_len: runs_len as u32, runs: digest(runs) })
    }
}

impl Stage {
    pub(super) fn of(checkpoint: &Checkpoint) -> Self {
        let names = Names::of(&checkpoint.tables);
        names.stage(names.runs.len()).expect("it has so many runs")
    }

    /// Whether the checkpoint contains this stage, possibly with later runs.
    fn is_within(&self, checkpoint: &Checkpoint) -> bool {
        Names::of(&checkpoint.tables).stage(self.runs_len as usize).as_ref() == Some(self)
    }
}

impl Marker {
    fn plan(self, checkpoint: &Checkpoint) -> Plan {
        let Some(complete) = self.complete.filter(|stage| stage.is_within(checkpoint)) else { return Plan::Reload };
        match self.announced {
            // Records of a stage after this checkpoint may be present, and it is unknown which.
            Some(announced) if !announced.is_within(checkpoint) => Plan::Reload,
            None if complete == Stage::of(checkpoint) => Plan::Current,
            _ => Plan::Runs(complete.runs_len as usize),
        }
    }

    fn encode(self) -> Vec<u8> {
        let mut bytes = vec![MARKER_VERSION];
        for stage in [self.complete, self.announced] {
            bytes.push(u8::from(stage.is_some()));
            if let Some(Stage { base, runs_len, runs }) = stage {
                bytes.extend(base);
                bytes.extend(runs_len.to_le_bytes());
                bytes.extend(runs);
            }
        }
        bytes
    }

    /// `None` when the bytes are not a marker of a known version: the replica is then reloaded.
    fn decode(bytes: &[u8]) -> Option<Self> {
        fn stage(bytes: &mut &[u8]) -> Option<Option<Stage>> {
            let (present, rest) = bytes.split_first()?;
            *bytes = rest;
            if *present == 0 {
                return Some(None);
            }
            let (base, rest) = bytes.split_first_chunk()?;
            let (runs_len, rest) = rest.split_first_chunk()?;
            let (runs, rest) = rest.split_first_chunk()?;
            *bytes = rest;
            Some(Some(Stage { base: *base, runs_len: u32::from_le_bytes(*runs_len), runs: *runs }))
        }
        let (version, mut rest) = bytes.split_first()?;
        let marker = Self { complete: stage(&mut rest)?, announced: stage(&mut rest)? };
        (*version == MARKER_VERSION && rest.is_empty()).then_some(marker)
    }
}

impl SledView {
    /// Opens the view in `dir/view`, or replaces it by an empty one when it is absent, not trusted or broken.
    pub(super) fn open(dir: &Path, cache_bytes: u64) -> Result<Self, EngineError> {
        let (folder, trust_path) = (dir.join(FOLDER), dir.join(TRUST));
        let place = BootAndMount::of(dir);
        if let Some(old) = Trust::read(&trust_path)?.filter(|trust| trust.is_valid_at(place.as_ref())) {
            let trust = Trust { clean: false, place: place.clone(), ..old };
            // Before sled touches a file: from here on the folder is trusted on this boot and mount only.
            trust.write(&trust_path)?;
            match open_sled(&folder, cache_bytes) {
                Ok(db) if stored_identity(&db).as_deref() == Some(trust.identity.as_bytes()) => {
                    return Ok(Self { db, folder, trust_path, trust, failed: AtomicBool::new(false) });
                }
                Ok(_) => tracing::warn!("the view was swapped; rebuilding it"),
                Err(OpenError::InUse) => return Err(ViewFailure::InUse.into()),
                Err(OpenError::Broken(error)) => tracing::warn!(%error, "the view does not open; rebuilding it"),
            }
        } else if folder.exists() {
            tracing::info!("the view was neither closed cleanly nor last used on this boot; rebuilding it");
        }
        Self::remove(dir)?;
        let trust = Trust::of_new_view(place);
        let db = open_sled(&folder, cache_bytes).map_err(|error| match error {
            OpenError::InUse => ViewFailure::InUse.into(),
            OpenError::Broken(error) => error,
        })?;
        let view = Self { db, folder, trust_path, trust, failed: AtomicBool::new(false) };
        view.guard(|| view.db.insert(IDENTITY_KEY, view.trust.identity.as_bytes()))?;
        view.trust.write(&view.trust_path)?;
        Ok(view)
    }

    /// The value under a key of a replica.
    pub(super) fn get(&self, replica: ReplicaId, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        let value = self.guard(|| self.db.get(record_key(replica, key)))?;
        Ok(value.map(|value| Bytes::copy_from_slice(&value)))
    }

    /// Records of a range, read page by page.
    pub(super) fn records<'a>(&'a self, replica: ReplicaId, range: &KeyRange, items_max: usize) -> Source<'a> {
        let (start, end) = bounds(replica, range);
        let items_max = items_max.clamp(1, PAGE_RECORDS_MAX);
        Box::new(Pages { view: self, start, end, items_max, page: Vec::new().into_iter(), done: false })
    }

    /// Makes a replica's part of the view equal to a checkpoint, whose objects are all present.
    pub(super) fn load(
        &self,
        objects: &ObjectStore,
        replica: ReplicaId,
        checkpoint: &Checkpoint,
        tables: &[Arc<Table>],
    ) -> Result<(), EngineError> {
        let stage = Stage::of(checkpoint);
        match self.plan(replica, checkpoint)? {
            Plan::Current => return Ok(()),
            Plan::Runs(first) => {
                tracing::debug!(%replica, "the view lacks runs of its checkpoint");
                self.announce(replica, stage)?;
                let mut named = 0;
                for run in tables.iter().filter(|table| table.cut == Cut::Size) {
                    if named >= first {
                        self.feed(replica, run.records(objects, replica))?;
                    }
                    let is_pieces = checkpoint.tables.format() == CheckpointFormat::Pieces;
                    named += if is_pieces { run.pieces.len() } else { 1 };
                }
            }
            Plan::Reload => {
                self.clear(replica)?;
                self.announce(replica, stage)?;
                self.feed(replica, Merge::new(sources(objects, replica, tables)).filter(is_live))?;
            }
        }
        self.confirm(replica, stage)
    }

    /// Adds the frozen records, which lead from the previous checkpoint to this one of a replica with these keys, and
    /// removes what a split gives up.
    pub(super) fn advance(
        &self,
        replica: ReplicaId,
        frozen: &Frozen,
        checkpoint: &Checkpoint,
        keys: &KeyRanges,
    ) -> Result<(), EngineError> {
        self.announce(replica, Stage::of(checkpoint))?;
        reached(failpoints::Place::CheckpointAnnounced);
        self.feed(replica, frozen.records().filter(|(key, _)| keys.contains(key)).map(Ok))?;
        if let Some(split) = &frozen.split {
            split.keys.within(&KeyRange::of_users()).try_for_each(|range| self.remove_range(replica, &range))?;
        }
        reached(failpoints::Place::CheckpointFed);
        self.confirm(replica, Stage::of(checkpoint))?;
        reached(failpoints::Place::CheckpointConfirmed);
        Ok(())
    }

    /// Removes the view of a folder, if it has one.
    pub(super) fn remove(dir: &Path) -> Result<(), EngineError> {
        Trust::remove(&dir.join(TRUST))?;
        Ok(remove_folder(&dir.join(FOLDER))?)
    }

    /// The work that makes the replica's part of the view equal to a checkpoint.
    fn plan(&self, replica: ReplicaId, checkpoint: &Checkpoint) -> Result<Plan, EngineError> {
        Ok(self.marker(replica)?.map_or(Plan::Reload, |marker| marker.plan(checkpoint)))
    }

    /// Records in the marker that this stage is about to be fed.
    fn announce(&self, replica: ReplicaId, stage: Stage) -> Result<(), EngineError> {
        let complete = self.marker(replica)?.and_then(|marker| marker.complete);
        self.set_marker(replica, Marker { complete, announced: Some(stage) })
    }

    /// Records in the marker that this stage has been fed completely.
    fn confirm(&self, replica: ReplicaId, stage: Stage) -> Result<(), EngineError> {
        self.set_marker(replica, Marker { complete: Some(stage), announced: None })
    }

    /// Writes records to sled in small batches; deletions remove their key.
    fn feed(
        &self,
        replica: ReplicaId,
        records: impl Iterator<Item = Result<Record, EngineError>>,
    ) -> Result<(), EngineError> {
        let (mut batch, mut len, mut bytes) = (sled::Batch::default(), 0, 0);
        for record in records {
            let (key, value) = record?;
            len += 1;
            bytes += key.len() + value.as_ref().map_or(0, |value| value.len());
            match value {
                Some(value) => batch.insert(record_key(replica, &key), &value[..]),
                None => batch.remove(record_key(replica, &key)),
            }
            if len >= BATCH_RECORDS_MAX || bytes >= BATCH_BYTES_MAX {
                let full = std::mem::take(&mut batch);
                self.guard(|| self.db.apply_batch(full))?;
                (len, bytes) = (0, 0);
            }
        }
        if len > 0 { self.guard(|| self.db.apply_batch(batch)) } else { Ok(()) }
    }

    /// Removes a replica's marker first, then its records.
    pub(super) fn clear(&self, replica: ReplicaId) -> Result<(), EngineError> {
        self.guard(|| self.db.remove(marker_key(replica)))?;
        self.remove_range(replica, &KeyRange::all())
    }

    /// Removes the records of a non-empty range.
    fn remove_range(&self, replica: ReplicaId, range: &KeyRange) -> Result<(), EngineError> {
        let (mut start, end) = bounds(replica, range);
        loop {
            let mut batch = sled::Batch::default();
            let range = (start.clone(), end.clone());
            let last = self.guard(|| {
                let mut last = None;
                for key in self.db.range(range).keys().take(BATCH_RECORDS_MAX) {
                    let key = key?;
                    batch.remove(&key);
                    last = Some(key.to_vec());
                }
                Ok(last)
            })?;
            let Some(last) = last else { return Ok(()) };
            self.guard(|| self.db.apply_batch(batch))?;
            start = Bound::Excluded(last);
        }
    }

    /// Closes the view so that the next start trusts it, even after a restart of the machine.
    pub(super) fn close(self) -> Result<(), EngineError> {
        self.guard(|| self.db.flush())?;
        let Self { db, folder, trust_path, trust, failed } = self;
        let dropped = catch_unwind(AssertUnwindSafe(|| drop(db))).is_ok();
        if !dropped || failed.into_inner() {
            return Err(ViewFailure::Panicked.into());
        }
        wait_until_released(&folder)?;
        // sled's flush does not fsync. Nothing writes any more, so fsync makes everything durable.
        sync_tree(&folder)?;
        Ok(Trust { clean: true, ..trust }.write(&trust_path)?)
    }

    fn marker(&self, replica: ReplicaId) -> Result<Option<Marker>, EngineError> {
        let bytes = self.guard(|| self.db.get(marker_key(replica)))?;
        Ok(bytes.and_then(|bytes| Marker::decode(&bytes)))
    }

    fn set_marker(&self, replica: ReplicaId, marker: Marker) -> Result<(), EngineError> {
        self.guard(|| self.db.insert(marker_key(replica), marker.encode())).map(drop)
    }

    /// Calls into sled and catches panics. After a failure the folder is not trusted again.
    fn guard<T>(&self, call: impl FnOnce() -> sled::Result<T>) -> Result<T, EngineError> {
        let error = match catch_unwind(AssertUnwindSafe(call)) {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) => EngineError::View(Arc::new(error)),
            Err(_panic) => ViewFailure::Panicked.into(),
        };
        if !self.failed.swap(true, Ordering::AcqRel) {
            tracing::error!(%error, "the view failed; the next start rebuilds it");
            if let Err(error) = Trust::remove(&self.trust_path) {
                tracing::error!(%error, "the trust file of the failed view could not be removed");
            }
        }
        Err(error)
    }
}

enum OpenError {
    InUse,
    Broken(EngineError),
}

fn open_sled(folder: &Path, cache_bytes: u64) -> Result<sled::Db, OpenError> {
    wait_until_released(folder).map_err(|_| OpenError::InUse)?;
    let config = sled::Config::new().path(folder).cache_capacity(cache_bytes).flush_every_ms(Some(FLUSH_EVERY_MS));
    match catch_unwind(AssertUnwindSafe(|| config.open())) {
        Ok(Ok(db)) => Ok(db),
        Ok(Err(error)) => Err(OpenError::Broken(EngineError::View(Arc::new(error)))),
        Err(_panic) => Err(OpenError::Broken(ViewFailure::Panicked.into())),
    }
}

/// Waits until no earlier sled in this process holds the folder's data file: sled finishes work in the
/// background after it was dropped, and keeps its lock until then.
fn wait_until_released(folder: &Path) -> Result<(), EngineError> {
    let data = match File::open(folder.join("db")) {
        Ok(data) => data,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    for _ in 0..LOCK_ATTEMPTS_MAX {
        if flock(&data, FlockOperation::NonBlockingLockExclusive).is_ok() {
            return Ok(());
        }
        thread::sleep(LOCK_RETRY);
    }
    Err(ViewFailure::InUse.into())
}

fn stored_identity(db: &sled::Db) -> Option<Vec<u8>> {
    let stored = catch_unwind(AssertUnwindSafe(|| db.get(IDENTITY_KEY)));
    stored.ok()?.ok()?.map(|identity| identity.to_vec())
}

fn remove_folder(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

fn marker_key(replica: ReplicaId) -> Vec<u8> {
    let mut key = vec![MARKER];
    key.extend(replica.0.to_be_bytes());
    key
}

/// Where the records of a non-empty range are.
fn bounds(replica: ReplicaId, range: &KeyRange) -> (Bound<Vec<u8>>, Bound<Vec<u8>>) {
    let end =
        if range.end.is_empty() { replica_end(replica) } else { Bound::Excluded(record_key(replica, &range.end)) };
    (Bound::Included(record_key(replica, &range.start)), end)
}

fn record_key(replica: ReplicaId, key: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(9 + key.len());
    bytes.push(RECORD);
    bytes.extend(replica.0.to_be_bytes());
    bytes.extend(key);
    bytes
}

/// The exclusive end of a replica's records.
fn replica_end(replica: ReplicaId) -> Bound<Vec<u8>> {
    let next = replica.0.checked_add(1);
    Bound::Excluded(next.map_or(vec![RECORD + 1], |next| record_key(ReplicaId(next), &[])))
}

struct Pages<'a> {
    view: &'a SledView,
    start: Bound<Vec<u8>>,
    end: Bound<Vec<u8>>,
    items_max: usize,
    page: std::vec::IntoIter<(Bytes, Bytes)>,
    done: bool,
}

impl Pages<'_> {
    fn read_page(&mut self) -> Result<(), EngineError> {
        let range = (self.start.clone(), self.end.clone());
        let (page, last) = self.view.guard(|| {
            let (mut page, mut bytes, mut last) = (Vec::new(), 0, None);
            for record in self.view.db.range(range) {
                let (key, value) = record?;
                bytes += key.len() + value.len();
                page.push((Bytes::copy_from_slice(&key[9..]), Bytes::copy_from_slice(&value)));
                if page.len() >= self.items_max || bytes >= PAGE_BYTES_MAX {
                    last = Some(key.to_vec());
                    break;
                }
            }
            Ok((page, last))
        })?;
        self.page = page.into_iter();
        match last {
            Some(last) => self.start = Bound::Excluded(last),
            None => self.done = true,
        }
        Ok(())
    }
}

impl Iterator for Pages<'_> {
    type Item = Result<Record, EngineError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some((key, value)) = self.page.next() {
                return Some(Ok((key, Some(value.into()))));
            }
            if self.done {
                return None;
            }
            if let Err(error) = self.read_page() {
                self.done = true;
                return Some(Err(error));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use flotilla_types::{Epoch, LogIndex, Position, ShardDescriptor, ShardId, Term};

    use super::*;

    fn checkpoint(base: &[u8], runs: &[u8]) -> Checkpoint {
        let ids = |names: &[u8]| names.iter().map(|name| ObjectId([*name; 32])).collect();
        let epoch = Epoch::default();
        let descriptor = ShardDescriptor { shard: ShardId(1), range: KeyRange::all(), epoch, replicas: Vec::new() };
        let position =
            Position { index: LogIndex(1), term: Term(1), conf: Arc::default(), descriptor: Arc::new(descriptor) };
        Checkpoint { position, system: None, tables: Tables::Pieces { base: ids(base), runs: ids(runs) } }
    }

    fn marker(complete: Option<Checkpoint>, announced: Option<Checkpoint>) -> Marker {
        let stage = |checkpoint: Checkpoint| Stage::of(&checkpoint);
        Marker { complete: complete.map(stage), announced: announced.map(stage) }
    }

    #[test]
    fn only_complete_stages_within_the_checkpoint_are_kept() {
        let now = checkpoint(b"ab", b"12");
        let plan = |complete, announced| marker(complete, announced).plan(&now);
        assert_eq!(plan(Some(checkpoint(b"ab", b"12")), None), Plan::Current);
        assert_eq!(plan(Some(checkpoint(b"ab", b"1")), None), Plan::Runs(1));
        assert_eq!(plan(Some(checkpoint(b"ab", b"")), Some(checkpoint(b"ab", b"1"))), Plan::Runs(0));
        // Partly fed for a checkpoint that the log no longer has.
        assert_eq!(plan(Some(checkpoint(b"ab", b"12")), Some(checkpoint(b"ab", b"123"))), Plan::Reload);
        assert_eq!(plan(Some(checkpoint(b"ab", b"123")), None), Plan::Reload);
        // Another base, other runs, an interrupted load.
        assert_eq!(plan(Some(checkpoint(b"a", b"1")), None), Plan::Reload);
        assert_eq!(plan(Some(checkpoint(b"ab", b"2")), None), Plan::Reload);
        assert_eq!(plan(None, Some(checkpoint(b"ab", b"12"))), Plan::Reload);
    }

    #[test]
    fn markers_round_trip_and_damaged_ones_are_rejected() {
        for marker in [
            Marker::default(),
            marker(Some(checkpoint(b"a", b"1")), None),
            marker(Some(checkpoint(b"a", b"1")), Some(checkpoint(b"a", b"12"))),
        ] {
            let bytes = marker.encode();
            assert_eq!(Marker::decode(&bytes), Some(marker));
            assert!((0..bytes.len()).all(|cut| Marker::decode(&bytes[..cut]).is_none()));
        }
    }

    #[test]
    fn replicas_do_not_see_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let view = SledView::open(dir.path(), 1 << 20).unwrap();
        let replicas = [ReplicaId(1), ReplicaId(2), ReplicaId(u64::MAX)];
        for replica in replicas {
            let record = |key: &'static str| Ok((Bytes::from(key), Some(replica.to_string().into())));
            view.feed(replica, [record(""), record("k"), record("\u{10ffff}")].into_iter()).unwrap();
        }
        view.clear(ReplicaId(1)).unwrap();
        for (replica, left) in replicas.into_iter().zip([0, 3, 3]) {
            let records: Vec<_> = view.records(replica, &KeyRange::all(), 2).map(Result::unwrap).collect();
            assert_eq!(records.len(), left);
            assert!(records.iter().all(|(_, value)| *value == Some(replica.to_string().into())));
        }
    }

    #[test]
    fn a_half_fed_stage_that_the_log_lost_is_rebuilt() {
        let dir = tempfile::tempdir().unwrap();
        let (checkpoint, records) = crate::tests::two_flushes_with_sled(dir.path());
        let view = SledView::open(dir.path(), 1 << 20).unwrap();
        let replica = checkpoint.position.conf.voters[0];
        view.announce(replica, Stage::of(&self::checkpoint(b"other", b"runs"))).unwrap();
        view.feed(replica, [Ok(("key00030".into(), Some("lost".into())))].into_iter()).unwrap();
        drop(view);
        assert_eq!(crate::tests::all(&crate::tests::open_replica_with_sled(dir.path(), &checkpoint)), records);
    }
}
