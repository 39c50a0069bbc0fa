//! The durable state of a replica at one position of its log.

use std::sync::Arc;

use crate::{ClusterVersion, ConfState, KeyRange, LogIndex, ObjectId, ShardDescriptor, Term};

/// A position in the log, with the configuration and descriptor that hold there. Copies share these: a node has
/// several of each replica, which seldom change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// The last applied entry.
    pub index: LogIndex,
    /// Its term.
    pub term: Term,
    /// The configuration after that entry.
    pub conf: Arc<ConfState>,
    /// The descriptor after that entry.
    pub descriptor: Arc<ShardDescriptor>,
}

/// The durable applied state of a replica at one log position, used by restarts, snapshots and backups.
///
/// It holds the ids of objects, never their bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// The log position up to which entries are applied.
    pub position: Position,
    /// The state machine's own state besides the records (sessions, clock). `None` if nothing was applied.
    pub system: Option<ObjectId>,
    /// The records.
    pub tables: Tables,
}

/// The records of a checkpoint: the *base* (the compacted level), overlaid by *runs* (sorted tables of more
/// recent writes, with deletions); later runs win.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tables {
    /// Format 1: the pieces of all tables.
    Pieces {
        /// Pieces of the base.
        base: Vec<ObjectId>,
        /// Pieces of the runs, oldest first.
        runs: Vec<ObjectId>,
    },
    /// Format 2: one object for each table, oldest first. Written from
    /// [`CHECKPOINT_TABLES`](ClusterVersion::CHECKPOINT_TABLES) on.
    Manifests(Vec<TableRef>),
}

/// A table of a checkpoint. Replicas and shards may share it, each with a clip of its own.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TableRef {
    /// What it is.
    pub kind: TableKind,
    /// Records outside this range do not belong to the checkpoint.
    pub clip: KeyRange,
    /// The object that lists the table's pieces, which are its children.
    pub manifest: ObjectId,
    /// For a base that the shard's log ordered: the entry that did. It holds the records as of that entry, so
    /// every replica whose base has this index names the same manifest. `None` for a run, and for a base that
    /// this or another replica made by itself.
    pub fold: Option<LogIndex>,
}

/// What a table of a checkpoint is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TableKind {
    /// The base, or a part of it: no deletions.
    Base,
    /// Writes, with deletions.
    Run,
}

/// The formats in which checkpoints are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum CheckpointFormat {
    /// [`Tables::Pieces`].
    Pieces,
    /// [`Tables::Manifests`].
    Manifests,
}

impl CheckpointFormat {
    /// The format under a cluster version.
    #[must_use]
    pub fn of(version: ClusterVersion) -> Self {
        if version >= ClusterVersion::CHECKPOINT_TABLES { Self::Manifests } else { Self::Pieces }
    }
}

/// Who decides when the runs of a checkpoint are folded into its base.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Folding {
    /// Each replica for itself.
    Local,
    /// The log of the shard, from [`LOGGED_FOLDS`](ClusterVersion::LOGGED_FOLDS) on.
    Logged,
}

impl Folding {
    /// Who decides under a cluster version.
    #[must_use]
    pub fn of(version: ClusterVersion) -> Self {
        if version >= ClusterVersion::LOGGED_FOLDS { Self::Logged } else { Self::Local }
    }
}

impl Checkpoint {
    /// A checkpoint without records.
    #[must_use]
    pub fn empty(position: Position) -> Self {
        Self { position, system: None, tables: Tables::default() }
    }

    /// The base, if the shard's log ordered it: the entry that did, and the manifest, which is the same one on
    /// every replica.
    #[must_use]
    pub fn logged_base(&self) -> Option<(LogIndex, ObjectId)> {
        let Tables::Manifests(tables) = &self.tables else { return None };
        let mut bases = tables.iter().filter(|table| table.kind == TableKind::Base);
        match (bases.next(), bases.next()) {
            (Some(base), None) => base.fold.map(|fold| (fold, base.manifest)),
            _ => None,
        }
    }

    /// The objects that the checkpoint names, in a fixed order. It also needs the children of these.
    pub fn objects(&self) -> impl Iterator<Item = ObjectId> + '_ {
        self.system.into_iter().chain(self.tables.objects())
    }
}

impl Tables {
    /// The format.
    #[must_use]
    pub fn format(&self) -> CheckpointFormat {
        match self {
            Self::Pieces { .. } => CheckpointFormat::Pieces,
            Self::Manifests(_) => CheckpointFormat::Manifests,
        }
    }

    /// The objects that they name, in a fixed order.
    pub fn objects(&self) -> impl Iterator<Item = ObjectId> + '_ {
        let (base, runs, tables): (&[_], &[_], &[_]) = match self {
            Self::Pieces { base, runs } => (base, runs, &[]),
            Self::Manifests(tables) => (&[], &[], tables),
        };
        base.iter().chain(runs).copied().chain(tables.iter().map(|table| table.manifest))
    }
}

impl Default for Tables {
    fn default() -> Self {
        Self::Pieces { base: Vec::new(), runs: Vec::new() }
    }
}
