//! Splits in the in-memory engine: both checkpoints name the same tables, each with its part of them.

use bytes::Bytes;
use flotilla_types::{Checkpoint, KeyRange, ObjectId, Position, ReplicaId, TableKind, TableRef, Tables};

use super::{Frozen, State, compaction::Named, store::Store};
use crate::{EngineError, KeyRanges, Manifest, SplitOff, records};

/// Whether a clip hides a part of the table, which a fold may give back.
pub(super) fn is_clipped(table: &TableRef) -> bool {
    table.clip != KeyRange::all()
}

/// What a replica gives up when its shard is split.
#[derive(Debug, Clone)]
pub(super) struct GivenUp {
    /// The keys of the new replica.
    keys: KeyRanges,
    /// The keys that the two have together.
    pub(super) of_both: KeyRanges,
    position: Position,
    system: Bytes,
}

impl State {
    /// Freezes the memtable, unless another one is frozen.
    pub(super) fn freeze(&mut self, position: Position, system: Bytes, split: Option<SplitOff>) -> bool {
        if self.frozen.is_some() {
            return false;
        }
        let records = std::mem::take(&mut self.active);
        self.frozen_pins = std::mem::take(&mut self.active_pins);
        let split = split.map(|SplitOff { at, position, system }| {
            let (left, keys) = self.keys.split_at(&at);
            let of_both = std::mem::replace(&mut self.keys, left);
            GivenUp { keys, of_both, position, system }
        });
        self.frozen = Some(Frozen { records, position, system, split });
        true
    }
}

impl Store {
    /// The first checkpoint of the new replica, from the tables of the other one.
    pub(super) fn put_split(
        &mut self,
        replica: ReplicaId,
        split: &GivenUp,
        named: &Named,
    ) -> Result<Checkpoint, EngineError> {
        let mut tables = self.clipped(replica, named, &split.keys)?.tables;
        if let Tables::Manifests(tables) = &mut tables {
            // The log of the new replica orders no fold of before.
            tables.iter_mut().for_each(|table| table.fold = None);
        }
        Ok(Checkpoint { position: split.position.clone(), system: self.put_system(&split.system), tables })
    }

    pub(super) fn put_system(&mut self, system: &Bytes) -> Option<ObjectId> {
        (!system.is_empty()).then(|| self.put(system.clone(), &[], true))
    }

    /// The parts of tables with manifests that lie within these keys and hold records.
    pub(super) fn clipped(
        &mut self,
        replica: ReplicaId,
        named: &Named,
        keys: &KeyRanges,
    ) -> Result<Named, EngineError> {
        let Tables::Manifests(tables) = &named.tables else { return Ok(named.clone()) };
        let mut run_ends = named.run_ends.iter();
        let mut clipped = Named { tables: Tables::Manifests(Vec::new()), run_ends: Vec::new() };
        let Tables::Manifests(parts) = &mut clipped.tables else { return Ok(clipped) };
        for table in tables {
            let end = if table.kind == TableKind::Run { run_ends.next() } else { None };
            for clip in keys.within(&table.clip) {
                let part = TableRef { clip, ..table.clone() };
                if !self.changes(replica, &part)?.is_empty() {
                    parts.push(part);
                    clipped.run_ends.extend(end);
                }
            }
        }
        Ok(clipped)
    }

    /// Bytes of the records that the clip of a table shows.
    pub(super) fn shown_bytes(&self, table: &TableRef) -> u64 {
        let bytes = |id: &ObjectId| self.objects.get(id).map(|object| object.bytes.clone());
        let manifest = bytes(&table.manifest).and_then(|bytes| Manifest::decode(bytes).ok()).unwrap_or_default();
        let pieces = manifest.pieces.iter().filter_map(|piece| records::decode(&bytes(&piece.id)?).ok());
        pieces.map(|piece| piece.clipped(&table.clip).size_bytes() as u64).sum()
    }
}
