//! Settings of the engine.

use std::time::Duration;

/// Bounds and thresholds of an [`Engine`](crate::Engine).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// How the records of checkpoints are found.
    pub view: ViewOptions,
    /// Size at which runs are split and around which base chunks are cut, in bytes; a chunk has up to four times as many.
    /// Smaller ones mean that a change touches less, larger ones that a checkpoint names fewer objects. 64 KiB–8 MiB;
    /// four times this must not exceed `objects.object_bytes_max`. A record that is larger gets an object of its own.
    pub piece_bytes: usize,
    /// Runs are folded into the base once their bytes exceed this share of the base's, in percent. Higher writes less
    /// and makes checkpoints larger.
    pub fold_percent: u64,
    /// Runs of fewer bytes in all are not folded for their size.
    pub fold_bytes_min: u64,
    /// More runs than this are folded whatever their size: each one costs a merge source of `piece_bytes` of memory.
    pub runs_max: usize,
    /// Objects left by an earlier run of the process are collected only when no replica was opened for so long: until
    /// then a replica that needs them may still be on its way.
    pub inherited_grace: Duration,
    /// Bounds of the object store.
    pub objects: flotilla_objects::Options,
}

/// How the records of checkpoints are found: the two differ in cost, not in what they answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ViewOptions {
    /// In the checkpoints' own objects, which are sorted. A checkpoint reads what it has just written once more, a start reads
    /// nothing; a read asks the filter of each run and reads one block of a file.
    Objects {
        /// Memory for indexes of pieces, for the whole node: about 1 % of the records that are in use. At least 1 MiB.
        index_bytes: u64,
    },
    /// In sled, which every checkpoint is fed to.
    Sled {
        /// sled's cache, for the whole node. The process takes about twice as much. At least 1 MiB.
        cache_bytes: u64,
    },
}

impl Default for ViewOptions {
    fn default() -> Self {
        Self::Objects { index_bytes: 64 << 20 }
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            view: ViewOptions::default(),
            piece_bytes: 1 << 20,
            fold_percent: 100,
            fold_bytes_min: 1 << 20,
            runs_max: 16,
            inherited_grace: Duration::from_secs(300),
            objects: flotilla_objects::Options::default(),
        }
    }
}
