//! The objects of the in-memory engine, who holds them, and the tables that consist of them.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bytes::Bytes;
use flotilla_types::{
    Checkpoint, CheckpointFormat, Holder, KeyRange, ObjectId, ReplicaId, TableKind, TableRef, Tables,
};

use super::scrub::{Health, Pass};
use crate::{
    EngineError, Manifest, PieceRef, WriteSet, children_of,
    records::{self, Memtable, Records},
};

/// Chunks of a base, by hash of the key, so that a fold gives new ids only to those that changed.
const CHUNKS: usize = 8;

#[derive(Debug, Default)]
pub(super) struct Store {
    pub(super) objects: HashMap<ObjectId, Object>,
    /// What each holder named; for a replica's checkpoint also what was built since.
    pub(super) held: HashMap<Holder, BTreeSet<ObjectId>>,
    pub(super) pass: Option<Pass>,
}

#[derive(Debug, Clone)]
pub(super) struct Object {
    pub(super) bytes: Bytes,
    synced: bool,
    pub(super) health: Health,
}

impl Store {
    /// The store after a crash: a copy with synced objects only and no holder.
    pub(super) fn reopen(&self) -> Self {
        let synced = self.objects.iter().filter(|(_, object)| object.synced);
        Self { objects: synced.map(|(id, object)| (*id, object.clone())).collect(), ..Self::default() }
    }

    pub(super) fn sync(&mut self) {
        self.objects.values_mut().for_each(|object| object.synced = true);
    }

    pub(super) fn put(&mut self, bytes: Bytes, synced: bool) -> ObjectId {
        let id = ObjectId::of(&bytes);
        let object = self.objects.entry(id).or_insert(Object { bytes, synced: false, health: Health::Intact });
        object.synced |= synced;
        object.health = Health::Intact;
        id
    }

    /// These objects and their children; those of absent ones are not known.
    pub(super) fn reachable<'a>(
        &'a self,
        objects: impl IntoIterator<Item = ObjectId> + 'a,
    ) -> impl Iterator<Item = ObjectId> + 'a {
        objects.into_iter().flat_map(|id| {
            let children = self.objects.get(&id).map(|object| children_of(&object.bytes)).unwrap_or_default();
            [id].into_iter().chain(children)
        })
    }

    pub(super) fn missing(&self, objects: &[ObjectId]) -> Vec<ObjectId> {
        let needed: BTreeSet<_> = self.reachable(objects.iter().copied()).collect();
        needed.into_iter().filter(|id| !self.has(*id)).collect()
    }

    pub(super) fn size_bytes(&self, checkpoint: &Checkpoint) -> u64 {
        self.total_bytes(&checkpoint.objects().collect::<Vec<_>>())
    }

    pub(super) fn total_bytes(&self, objects: &[ObjectId]) -> u64 {
        let sizes = self.reachable(objects.iter().copied()).filter_map(|id| self.objects.get(&id));
        sizes.map(|object| object.bytes.len() as u64).sum()
    }

    /// Replaces what a holder named by these objects, and deletes those that no holder needs any more.
    pub(super) fn hold(&mut self, holder: Holder, objects: BTreeSet<ObjectId>) {
        let before = if objects.is_empty() { self.held.remove(&holder) } else { self.held.insert(holder, objects) };
        let let_go: BTreeSet<_> = self.reachable(before.unwrap_or_default()).collect();
        let needed: BTreeSet<_> = self.reachable(self.held.values().flatten().copied()).collect();
        for object in let_go.difference(&needed) {
            self.objects.remove(object);
        }
    }

    /// Adds objects to those that a holder named.
    pub(super) fn hold_too(&mut self, holder: Holder, objects: impl Iterator<Item = ObjectId>) {
        self.held.entry(holder).or_default().extend(objects);
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
            Tables::Pieces { runs, .. } => runs.push(self.put(records.encode(), true)),
            Tables::Manifests(tables) => tables.push(self.put_table(TableKind::Run, vec![records.clone()])),
        }
    }

    /// Stores a base.
    pub(super) fn put_base(&mut self, format: CheckpointFormat, records: &Records) -> Tables {
        let chunks = chunks(records);
        match format {
            CheckpointFormat::Pieces => {
                let base = chunks.iter().map(|chunk| self.put(chunk.encode(), true)).collect();
                Tables::Pieces { base, runs: Vec::new() }
            }
            CheckpointFormat::Manifests if chunks.is_empty() => Tables::Manifests(Vec::new()),
            CheckpointFormat::Manifests => Tables::Manifests(vec![self.put_table(TableKind::Base, chunks)]),
        }
    }

    pub(super) fn put_table(&mut self, kind: TableKind, pieces: Vec<Memtable>) -> TableRef {
        let mut listed: Vec<_> = pieces.into_iter().map(|records| self.put_piece(&records)).collect();
        listed.sort_by(|left, right| left.first_key.cmp(&right.first_key));
        let manifest = self.put(Manifest { pieces: listed }.encode(), true);
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
            id: self.put(encoded, true),
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
    let mut chunks: [BTreeMap<Bytes, Option<Bytes>>; CHUNKS] = Default::default();
    for (key, value) in records {
        let chunk = usize::from(ObjectId::of(key).as_bytes()[0]) % CHUNKS;
        chunks[chunk].insert(key.clone(), Some(value.clone()));
    }
    chunks.into_iter().filter(|chunk| !chunk.is_empty()).map(Memtable::from).collect()
}
