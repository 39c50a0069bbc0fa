//! Folds and merges of the in-memory engine.
//!
//! A view that is pinned for a fold is a copy of the records.

use std::sync::Arc;

use bytes::Bytes;
use flotilla_types::{
    Checkpoint, CheckpointFormat, Folding, Holder, LogIndex, ObjectId, ReplicaId, TableKind, TableRef, Tables,
};

use super::{
    Pinned, State,
    split::is_clipped,
    store::{self, Pins, Store},
};
use crate::{
    CompactionDue, EngineError, Fold, KeyRanges, Value,
    records::{Memtable, Records},
};

/// Runs of a checkpoint that are folded into the base if they have half of its bytes.
const RUNS_MIN: usize = 4;
/// Runs that are folded whatever their bytes.
const RUNS_MAX: usize = 16;
/// Runs of which the oldest are merged, where no fold is due.
const MERGE_RUNS_MIN: usize = 6;
/// Runs that are merged at a time.
const MERGED_RUNS: usize = 4;
/// The size that pieces of the base are given.
const PIECE_BYTES: u32 = 256;

/// The tables of a checkpoint, with the last entry that each of the runs has.
#[derive(Debug, Clone)]
pub(super) struct Named {
    pub(super) tables: Tables,
    pub(super) run_ends: Vec<LogIndex>,
}

impl Named {
    /// The tables of a checkpoint that nothing more is known of.
    pub(super) fn of(checkpoint: &Checkpoint) -> Self {
        let runs = store::base_and_runs(&checkpoint.tables).1.len();
        Self { tables: checkpoint.tables.clone(), run_ends: vec![checkpoint.position.index; runs] }
    }
}

/// What a compaction has made.
#[derive(Debug, Clone)]
pub(super) enum Compacted {
    /// The first replace the oldest tables.
    Merged { replaced: Tables, by: Named },
    /// A base that replaces all tables without later records. It has these keys only.
    Folded { fold: Fold, base: Vec<TableRef>, keys: KeyRanges },
}

impl Compacted {
    pub(super) fn objects(&self) -> Vec<ObjectId> {
        match self {
            Self::Merged { by, .. } => by.tables.objects().collect(),
            Self::Folded { base, .. } => base.iter().map(|table| table.manifest).collect(),
        }
    }

    /// Whether a checkpoint at this entry may name it.
    pub(super) fn is_usable_at(&self, index: LogIndex) -> bool {
        match self {
            Self::Merged { .. } => true,
            Self::Folded { fold, .. } => fold.index <= index,
        }
    }

    /// These tables of a replica with these keys, with those replaced that it stands for; `None` if they are not among
    /// them any more.
    pub(super) fn apply(
        &self,
        store: &mut Store,
        replica: ReplicaId,
        before: &Named,
        keys: &KeyRanges,
    ) -> Option<Named> {
        match self {
            Self::Merged { replaced, by } => {
                let replaced_runs = store::base_and_runs(replaced).1.len();
                let tables = match (&before.tables, replaced, &by.tables) {
                    (
                        Tables::Pieces { base, runs },
                        Tables::Pieces { base: old_base, runs: old_runs },
                        Tables::Pieces { base: new_base, runs: new_runs },
                    ) => {
                        let rest = runs.strip_prefix(&old_runs[..]).filter(|_| base == old_base)?;
                        Tables::Pieces { base: new_base.clone(), runs: [new_runs, rest].concat() }
                    }
                    (Tables::Manifests(tables), Tables::Manifests(old), Tables::Manifests(new)) => {
                        Tables::Manifests([new, tables.strip_prefix(&old[..])?].concat())
                    }
                    _ => return None,
                };
                let run_ends = [&by.run_ends, &before.run_ends[replaced_runs..]].concat();
                Some(Named { tables, run_ends })
            }
            Self::Folded { fold, base, keys: of_view } => {
                let Ok(Tables::Manifests(tables)) = store.with_manifests(replica, &before.tables) else { return None };
                let runs = tables.into_iter().filter(|table| table.kind == TableKind::Run);
                let later = |(_, end): &(TableRef, &LogIndex)| **end > fold.index;
                let (kept, run_ends): (Vec<_>, Vec<_>) = runs.zip(&before.run_ends).filter(later).unzip();
                let mut bases = Named { tables: Tables::Manifests(base.clone()), run_ends: Vec::new() };
                if of_view != keys {
                    // The replica was split since.
                    bases = store.clipped(replica, &bases, keys).ok()?;
                }
                let Tables::Manifests(base) = bases.tables else { return None };
                let tables = Tables::Manifests([base, kept].concat());
                Some(Named { tables, run_ends: run_ends.into_iter().copied().collect() })
            }
        }
    }
}

impl State {
    /// The records as of now.
    pub(super) fn records(&self) -> Records {
        let mut records = self.base.clone();
        if let Some(frozen) = &self.frozen {
            frozen.records.apply_to(&mut records);
        }
        self.active.apply_to(&mut records);
        records
    }

    /// What keeps all that the records of now refer to.
    pub(super) fn all_pins(&self, store: &mut Store) -> Vec<Arc<Pins>> {
        let tables = store.pin(self.checkpoint.objects().collect());
        [tables].into_iter().chain(self.active_pins.iter().chain(&self.frozen_pins).cloned()).collect()
    }

    pub(super) fn compaction_due(&self, store: &Store) -> CompactionDue {
        let is_waiting = self.compacted.is_some();
        let is_fold_due = self.pinned.is_none() && !is_waiting && self.is_fold_due(store);
        CompactionDue {
            compact: self.pinned.is_some() || (!is_waiting && self.may_merge()),
            fold: is_fold_due.then_some(PIECE_BYTES),
            made: is_waiting,
        }
    }

    fn is_fold_due(&self, store: &Store) -> bool {
        if let Tables::Manifests(tables) = &self.named.tables
            && tables.iter().any(is_clipped)
        {
            return true;
        }
        let (base, runs) = store::base_and_runs(&self.named.tables);
        let is_large = || 2 * store.total_bytes(&runs) >= store.total_bytes(&base);
        runs.len() >= RUNS_MIN && (runs.len() >= RUNS_MAX || is_large())
    }

    fn may_merge(&self) -> bool {
        self.named.tables.format() == CheckpointFormat::Manifests && self.named.run_ends.len() >= MERGE_RUNS_MIN
    }

    /// Does what is due; `None` if nothing is.
    pub(super) fn compact(
        &mut self,
        store: &mut Store,
        replica: ReplicaId,
        folding: Folding,
    ) -> Result<Option<Compacted>, EngineError> {
        if let Some(Pinned { fold, records, keys, .. }) = self.pinned.take() {
            let base = store.put_fold(fold, &records);
            return Ok(Some(Compacted::Folded { fold, base, keys }));
        }
        if self.compacted.is_some() {
            return Ok(self.compacted.clone());
        }
        if folding == Folding::Local && self.is_fold_due(store) {
            let replaced = self.named.tables.clone();
            let tables = store.put_base(replaced.format(), &self.base);
            return Ok(Some(Compacted::Merged { replaced, by: Named { tables, run_ends: Vec::new() } }));
        }
        if self.may_merge() { self.merge(store, replica).map(Some) } else { Ok(None) }
    }

    /// Merges the oldest runs.
    fn merge(&self, store: &mut Store, replica: ReplicaId) -> Result<Compacted, EngineError> {
        let Tables::Manifests(tables) = &self.named.tables else {
            return Err(EngineError::Corrupt { replica, reason: "only runs with manifests are merged" });
        };
        let bases = tables.len() - self.named.run_ends.len();
        let (mut merged, replaced) = (Memtable::default(), &tables[..bases + MERGED_RUNS]);
        for run in &replaced[bases..] {
            merged.write(store.changes(replica, run)?);
        }
        let run_ends = vec![self.named.run_ends[MERGED_RUNS - 1]];
        let mut by = Tables::Manifests(replaced[..bases].to_vec());
        store.put_run(&mut by, &merged);
        Ok(Compacted::Merged { replaced: Tables::Manifests(replaced.to_vec()), by: Named { tables: by, run_ends } })
    }
}

impl Store {
    /// Lets a replica's holder name the objects of its checkpoint, and what was made beside it.
    pub(super) fn hold_checkpoint(&mut self, replica: ReplicaId, state: &State) {
        let waiting = state.compacted.iter().flat_map(Compacted::objects);
        self.hold(Holder::Checkpoint(replica), state.checkpoint.objects().chain(waiting).collect());
    }

    /// Stores the base of a fold: the same one for the same records.
    fn put_fold(&mut self, fold: Fold, records: &Records) -> Vec<TableRef> {
        let mut pieces = vec![Vec::<(Bytes, Option<Value>)>::new()];
        let mut bytes = 0;
        for (key, value) in records {
            if bytes >= fold.piece_bytes as usize {
                pieces.push(Vec::new());
                bytes = 0;
            }
            bytes += key.len() + value.size_bytes();
            pieces.last_mut().into_iter().for_each(|piece| piece.push((key.clone(), Some(value.clone()))));
        }
        let pieces = pieces.into_iter().filter(|piece| !piece.is_empty()).map(|piece| {
            let mut changes = Memtable::default();
            changes.write(piece);
            changes
        });
        let pieces: Vec<_> = pieces.collect();
        if pieces.is_empty() {
            return Vec::new();
        }
        let base = self.put_table(TableKind::Base, pieces);
        vec![TableRef { fold: Some(fold.index), ..base }]
    }
}
