//! The objects of the in-memory engine, who holds them, and the tables that consist of them.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    mem,
    sync::Arc,
};

use bytes::Bytes;
use flotilla_types::{
    Checkpoint, CheckpointFormat, Holder, KeyRange, ObjectId, ReplicaId, TableKind, TableRef, Tables,
};

use parking_lot::Mutex;

use super::{
    scrub::{Health, Pass},
    split::is_clipped,
    uploads::Uploads,
};
use crate::{
    EngineError, Manifest, PieceRef, Value, WriteSet,
    records::{self, Memtable, Records},
};

/// Chunks of a base, by hash of the key, so that a fold gives new ids only to those that changed.
const CHUNKS: usize = 8;

#[derive(Debug, Default)]
pub(super) struct Store {
    pub(super) objects: HashMap<ObjectId, Object>,
    /// What each holder named; for a replica's checkpoint also what was built since.
    pub(super) held: HashMap<Holder, BTreeSet<ObjectId>>,
    /// Holders, pins and held parents of each object, present or not. One that nothing counts for any more is
    /// deleted.
    counts: HashMap<ObjectId, usize>,
    /// Objects of pins that were dropped, and still count.
    unpinned: Arc<Mutex<Vec<ObjectId>>>,
    /// Objects that should be here and are not.
    pub(super) lost: BTreeSet<ObjectId>,
    pub(super) pass: Option<Pass>,
    pub(super) uploads: Uploads,
}

/// Objects that stay until this is dropped, as memtables and snapshots need them.
#[derive(Debug)]
pub(super) struct Pins {
    ids: Vec<ObjectId>,
    unpinned: Arc<Mutex<Vec<ObjectId>>>,
}

impl Drop for Pins {
    /// Whoever drops them may have locked the store.
    fn drop(&mut self) {
        self.unpinned.lock().append(&mut self.ids);
    }
}

#[derive(Debug, Clone)]
pub(super) struct Object {
    pub(super) bytes: Bytes,
    /// Ascending, each once.
    children: Vec<ObjectId>,
    pub(super) synced: bool,
    /// Whether somebody has read it, or stored it, since the engine was opened.
    pub(super) verified: bool,
    pub(super) health: Health,
}

impl Store {
    /// The store after a crash: a copy with synced objects only and no holder.
    pub(super) fn reopen(&self) -> Self {
        let synced = self.objects.iter().filter(|(_, object)| object.synced);
        let reopened = |object: &Object| Object { verified: false, ..object.clone() };
        Self { objects: synced.map(|(id, object)| (*id, reopened(object))).collect(), ..Self::default() }
    }

    pub(super) fn sync(&mut self) {
        self.objects.values_mut().for_each(|object| object.synced = true);
    }

    /// Stores an object. If it is here, children that were not known are added.
    pub(super) fn put(&mut self, bytes: Bytes, children: &[ObjectId], synced: bool) -> ObjectId {
        let id = ObjectId::of(&bytes);
        let new = Object { bytes, children: Vec::new(), synced: false, verified: true, health: Health::Intact };
        let object = self.objects.entry(id).or_insert(new);
        object.synced |= synced;
        (object.health, object.verified) = (Health::Intact, true);
        let known: BTreeSet<_> = object.children.iter().copied().collect();
        let added: BTreeSet<_> = children.iter().copied().filter(|child| !known.contains(child)).collect();
        object.children = known.union(&added).copied().collect();
        self.lost.remove(&id);
        if self.counts.contains_key(&id) {
            added.into_iter().for_each(|child| self.count(child));
        }
        id
    }

    /// These objects and all below them, each once; those below absent ones are not known.
    pub(super) fn reachable(&self, objects: impl IntoIterator<Item = ObjectId>) -> BTreeSet<ObjectId> {
        let (mut queue, mut found): (Vec<_>, _) = (objects.into_iter().collect(), BTreeSet::new());
        while let Some(id) = queue.pop() {
            if found.insert(id) {
                queue.extend(self.objects.get(&id).into_iter().flat_map(|object| object.children.iter().copied()));
            }
        }
        found
    }

    /// Counts one more need of an object.
    pub(super) fn count(&mut self, id: ObjectId) {
        let mut queue = vec![id];
        while let Some(id) = queue.pop() {
            let count = self.counts.entry(id).or_default();
            *count += 1;
            if *count == 1 {
                queue.extend(self.objects.get(&id).into_iter().flat_map(|object| object.children.iter().copied()));
            }
        }
    }

    /// Ends one need of an object, and deletes what nothing needs any more.
    pub(super) fn release(&mut self, id: ObjectId) {
        let mut queue = vec![id];
        while let Some(id) = queue.pop() {
            let Some(count) = self.counts.get_mut(&id) else { continue };
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&id);
                self.lost.remove(&id);
                queue.extend(self.objects.remove(&id).into_iter().flat_map(|object| object.children));
            }
        }
    }

    /// Keeps objects until the result is dropped.
    pub(super) fn pin(&mut self, ids: Vec<ObjectId>) -> Arc<Pins> {
        ids.iter().for_each(|id| self.count(*id));
        Arc::new(Pins { ids, unpinned: self.unpinned.clone() })
    }

    /// Lets go of the objects of dropped pins.
    pub(super) fn release_unpinned(&mut self) {
        let unpinned = mem::take(&mut *self.unpinned.lock());
        unpinned.into_iter().for_each(|id| self.release(id));
    }

    /// Those of these objects, and of all below them, that are absent count as lost.
    pub(super) fn expect(&mut self, objects: &[ObjectId]) {
        let absent = self.missing(objects);
        self.lost.extend(absent.into_iter().filter(|id| self.counts.contains_key(id)));
    }

    pub(super) fn missing(&self, objects: &[ObjectId]) -> Vec<ObjectId> {
        let needed = self.reachable(objects.iter().copied());
        needed.into_iter().filter(|id| !self.has(*id)).collect()
    }

    /// As [`missing`](Self::missing), after reading what nobody has read since the engine was opened.
    pub(super) fn missing_or_damaged(&mut self, objects: &[ObjectId]) -> Vec<ObjectId> {
        for id in self.reachable(objects.iter().copied()) {
            if self.objects.get(&id).is_some_and(|object| !object.verified) {
                // One that is damaged is missing from now on.
                let _ = self.get(id);
            }
        }
        self.missing(objects)
    }

    pub(super) fn size_bytes(&self, checkpoint: &Checkpoint) -> u64 {
        let tables: &[_] = if let Tables::Manifests(tables) = &checkpoint.tables { tables } else { &[] };
        let clipped = || tables.iter().filter(|table| is_clipped(table));
        let hidden: BTreeSet<_> = clipped().map(|table| table.manifest).collect();
        let whole: Vec<_> = checkpoint.objects().filter(|object| !hidden.contains(object)).collect();
        self.total_bytes(&whole) + clipped().map(|table| self.shown_bytes(table)).sum::<u64>()
    }

    pub(super) fn total_bytes(&self, objects: &[ObjectId]) -> u64 {
        let pieces = |id: &ObjectId| {
            let manifest = self.objects.get(id).map(|object| Manifest::decode(object.bytes.clone()));
            manifest.and_then(Result::ok).unwrap_or_default().pieces.into_iter().map(|piece| piece.id)
        };
        let own = objects.iter().copied().chain(objects.iter().flat_map(pieces));
        let sizes = own.filter_map(|id| self.objects.get(&id));
        sizes.map(|object| object.bytes.len() as u64).sum()
    }

    /// Replaces what a holder named by these objects, and deletes those that nothing needs any more.
    pub(super) fn hold(&mut self, holder: Holder, objects: BTreeSet<ObjectId>) {
        let before = self.held.remove(&holder).unwrap_or_default();
        objects.difference(&before).for_each(|id| self.count(*id));
        before.difference(&objects).for_each(|id| self.release(*id));
        if !objects.is_empty() {
            self.held.insert(holder, objects);
        }
        self.release_unpinned();
    }

    /// Adds objects to those that a holder named.
    pub(super) fn hold_too(&mut self, holder: Holder, objects: impl Iterator<Item = ObjectId>) {
        let mut all = self.held.get(&holder).cloned().unwrap_or_default();
        all.extend(objects);
        self.hold(holder, all);
    }

    /// Loads the records of a checkpoint, whose objects must all be here.
    pub(super) fn load(&mut self, replica: ReplicaId, checkpoint: &Checkpoint) -> Result<Records, EngineError> {
        checkpoint.objects().try_for_each(|object| self.get(object).map(drop))?;
        let mut records = Records::new();
        match &checkpoint.tables {
            Tables::Pieces { base, runs } => {
                for piece in base.iter().chain(runs) {
                    self.piece(replica, *piece)?.apply_to(&mut records);
                }
            }
            Tables::Manifests(tables) => {
                for table in tables {
                    Memtable::from_iter(self.changes(replica, table)?).apply_to(&mut records);
                }
            }
        }
        Ok(records)
    }

    /// The records of a table, with deletions.
    pub(super) fn changes(&mut self, replica: ReplicaId, table: &TableRef) -> Result<WriteSet, EngineError> {
        let corrupt = |reason| EngineError::Corrupt { replica, reason };
        let manifest = Manifest::decode(self.get(table.manifest)?).map_err(corrupt)?;
        let mut changes = WriteSet::new();
        for piece in manifest.pieces {
            changes.extend(self.piece(replica, piece.id)?.clipped(&table.clip).into_changes());
        }
        Ok(changes)
    }

    fn piece(&mut self, replica: ReplicaId, piece: ObjectId) -> Result<Memtable, EngineError> {
        records::decode(&self.get(piece)?).map_err(|reason| EngineError::Corrupt { replica, reason })
    }

    /// The same tables with manifests.
    pub(super) fn with_manifests(&mut self, replica: ReplicaId, tables: &Tables) -> Result<Tables, EngineError> {
        let Tables::Pieces { base, runs } = tables else { return Ok(tables.clone()) };
        let mut listed = Vec::new();
        let base = (!base.is_empty()).then_some((TableKind::Base, &base[..]));
        for (kind, pieces) in base.into_iter().chain(runs.chunks(1).map(|run| (TableKind::Run, run))) {
            let decode = |piece: &ObjectId| {
                let decoded = records::decode(&self.get(*piece)?);
                decoded.map_err(|reason| EngineError::Corrupt { replica, reason })
            };
            let tables = pieces.iter().map(decode).collect::<Result<Vec<_>, _>>()?;
            listed.push(self.put_table(kind, tables));
        }
        Ok(Tables::Manifests(listed))
    }

    /// Stores a run behind other tables.
    pub(super) fn put_run(&mut self, tables: &mut Tables, records: &Memtable) {
        match tables {
            Tables::Pieces { runs, .. } => runs.push(self.put(records.encode(), &[], true)),
            Tables::Manifests(tables) => tables.push(self.put_table(TableKind::Run, vec![records.clone()])),
        }
    }

    /// Stores a base.
    pub(super) fn put_base(&mut self, format: CheckpointFormat, records: &Records) -> Tables {
        let chunks = chunks(records);
        match format {
            CheckpointFormat::Pieces => {
                let base = chunks.iter().map(|chunk| self.put(chunk.encode(), &[], true)).collect();
                Tables::Pieces { base, runs: Vec::new() }
            }
            CheckpointFormat::Manifests if chunks.is_empty() => Tables::Manifests(Vec::new()),
            CheckpointFormat::Manifests => Tables::Manifests(vec![self.put_table(TableKind::Base, chunks)]),
        }
    }

    pub(super) fn put_table(&mut self, kind: TableKind, pieces: Vec<Memtable>) -> TableRef {
        let mut listed: Vec<_> = pieces.into_iter().map(|records| self.put_piece(&records)).collect();
        listed.sort_by(|left, right| left.first_key.cmp(&right.first_key));
        let children: Vec<_> = listed.iter().map(|piece| piece.id).collect();
        let manifest = self.put(Manifest { pieces: listed }.encode(), &children, true);
        TableRef { kind, clip: KeyRange::all(), manifest, fold: None }
    }

    fn put_piece(&mut self, records: &Memtable) -> PieceRef {
        let encoded = records.encode();
        PieceRef {
            first_key: records.first_key().cloned().unwrap_or_default(),
            bytes: encoded.len() as u32,
            records: records.len() as u32,
            footer_bytes: 0,
            footer_crc: 0,
            id: self.put(encoded, &records.refs().ids().collect::<Vec<_>>(), true),
        }
    }
}

/// The objects that name the base and the runs.
pub(super) fn base_and_runs(tables: &Tables) -> (Vec<ObjectId>, Vec<ObjectId>) {
    match tables {
        Tables::Pieces { base, runs } => (base.clone(), runs.clone()),
        Tables::Manifests(tables) => {
            let of = |kind| tables.iter().filter(move |table| table.kind == kind).map(|table| table.manifest).collect();
            (of(TableKind::Base), of(TableKind::Run))
        }
    }
}

/// The base as chunks, by hash of the key.
fn chunks(records: &Records) -> Vec<Memtable> {
    let mut chunks: [BTreeMap<Bytes, Option<Value>>; CHUNKS] = Default::default();
    for (key, value) in records {
        let chunk = usize::from(ObjectId::of(key).as_bytes()[0]) % CHUNKS;
        chunks[chunk].insert(key.clone(), Some(value.clone()));
    }
    chunks.into_iter().filter(|chunk| !chunk.is_empty()).map(Memtable::from).collect()
}
