//! Settings of the engine, with how to choose them.

use std::time::Duration;

/// Bounds and thresholds of an [`Engine`](crate::Engine).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// How the records of checkpoints are read.
    pub view: ViewOptions,
    /// Size at which runs are split, and average size of base chunks, in bytes; a chunk has at most four
    /// times as many. With smaller pieces a change rewrites less; with larger ones a checkpoint names fewer
    /// objects. 64 KiB–8 MiB; four times this must not exceed `objects.object_bytes_max`. A larger record
    /// gets an object of its own.
    pub piece_bytes: usize,
    /// Runs are folded into the base once their size exceeds this share of the base, in percent. Higher
    /// values write less and make checkpoints larger.
    pub fold_percent: u64,
    /// Runs of fewer bytes in total are not folded.
    pub fold_bytes_min: u64,
    /// How long a view that is pinned for a fold may wait for its turn. It keeps the tables that the checkpoint
    /// had when the fold was ordered.
    pub fold_wait_max: Duration,
    /// Memory for memtables that only the views of folds need, for the whole node: a view that would exceed it
    /// is let go, and its fold is skipped. A few memtables.
    pub fold_memory_bytes_max: usize,
    /// Size up to which runs are of the first tier; each tier is four times as large as the one before, and
    /// four adjacent runs of one tier are merged. About what one flush writes.
    pub tier_bytes_min: u64,
    /// Runs of a checkpoint at which a flush merges all of them, because compaction is late: each costs a
    /// piece of memory, and every read a look at its filter.
    pub runs_max: usize,
    /// Objects left by an earlier process are garbage-collected only when no replica was opened for this
    /// long: until then a replica that needs them may still be opened.
    pub inherited_grace: Duration,
    /// About how many bytes of values uploads and pulls store between two garbage collections. Up to as many may
    /// be garbage by then: of values that were overwritten, and of uploads that no write used. One segment file.
    pub collection_bytes: u64,
    /// Bounds of the object store.
    pub objects: flotilla_objects::Options,
}

/// How the records of checkpoints are read: the options differ in cost, not in results.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ViewOptions {
    /// From the checkpoints' own objects, which are sorted. A checkpoint reads back what it has written, a
    /// start reads nothing; a get asks the filter of each run and reads one block of a file.
    Objects {
        /// Memory for indexes of pieces, for the whole node: about 1 % of the size of the records in use. At
        /// least 1 MiB.
        index_bytes: u64,
    },
    /// From sled, to which every checkpoint is written.
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
            fold_wait_max: Duration::from_secs(600),
            fold_memory_bytes_max: 128 << 20,
            tier_bytes_min: 4 << 20,
            runs_max: 48,
            inherited_grace: Duration::from_secs(300),
            collection_bytes: 32 << 20,
            objects: flotilla_objects::Options::default(),
        }
    }
}
