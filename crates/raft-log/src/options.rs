//! Settings of the log.
//!
//! Everything else is fixed on purpose: files are never recycled, since a recycled file keeps old batches
//! after its end, and at most 256 KiB are zero-filled ahead (see `zero_fill`), so that an idle log is small.

use raft_engine::{Config, ReadableSize, RecoveryMode};

use crate::{OpenError, witness};

/// Threads that read the log's files while it is opened.
const RECOVERY_THREADS: usize = 2;

/// A log below this is not worth the copying.
const PURGE_THRESHOLD_BYTES_MIN: u64 = 8 << 20;

/// Settings of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Bytes at which a file is closed and the next one started; at least 4 KiB, 16 MiB by default. Space is
    /// reclaimed by whole files, and the last file is read twice at every start: small files are reclaimed
    /// and checked sooner, large files need fewer syncs of the folder.
    pub target_file_size_bytes: u64,
    /// Bytes of log above which space is reclaimed; at least four files, 256 MiB by default. Choose it well
    /// above what all replicas keep since their checkpoints, or live entries are copied repeatedly.
    pub purge_threshold_bytes: u64,
    /// A folder on a memory-backed file system, `/dev/shm` by default, in which the log records what it
    /// synced (see `evidence`). It must survive the process and not the machine. In a container, mount one
    /// that outlives the container.
    pub witness_dir: &'static str,
}

impl Default for Options {
    fn default() -> Self {
        Self { target_file_size_bytes: 16 << 20, purge_threshold_bytes: 256 << 20, witness_dir: witness::WITNESS_DIR }
    }
}

impl Options {
    /// Settings for a node whose replicas checkpoint after this many bytes of log each: space is reclaimed
    /// above four times as much, and above 8 MiB. With 64 MiB, the defaults.
    #[must_use]
    pub fn for_replica_log_bytes(log_bytes: u64) -> Self {
        let defaults = Self::default();
        let purge_threshold_bytes = log_bytes.saturating_mul(4).clamp(PURGE_THRESHOLD_BYTES_MIN, u64::MAX / 2);
        Self {
            target_file_size_bytes: (purge_threshold_bytes / 16).min(defaults.target_file_size_bytes),
            purge_threshold_bytes,
            ..defaults
        }
    }

    /// The smallest file worth a sync of the folder, in bytes.
    pub const TARGET_FILE_SIZE_BYTES_MIN: u64 = 4 << 10;
    /// The minimum of `purge_threshold_bytes`, in files: one file is always being written.
    pub const FILES_MIN: u64 = 4;

    /// Checks that the settings are valid together.
    pub fn validate(&self) -> Result<(), OpenError> {
        if self.target_file_size_bytes < Self::TARGET_FILE_SIZE_BYTES_MIN {
            return Err(OpenError::Options("target_file_size_bytes is below 4 KiB"));
        }
        if self.purge_threshold_bytes / Self::FILES_MIN < self.target_file_size_bytes {
            return Err(OpenError::Options("purge_threshold_bytes is below four times target_file_size_bytes"));
        }
        Ok(())
    }

    /// The engine's settings for a log in the folder `dir`.
    pub(crate) fn config(&self, dir: String) -> Config {
        Config {
            dir,
            // A power failure leaves a torn end. `tail::check` finds damage before the end.
            recovery_mode: RecoveryMode::TolerateTailCorruption,
            recovery_threads: RECOVERY_THREADS,
            target_file_size: ReadableSize(self.target_file_size_bytes),
            purge_threshold: ReadableSize(self.purge_threshold_bytes),
            enable_log_recycle: false,
            prefill_for_recycle: false,
            ..Config::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_of_the_folder_follows_from_the_log_of_a_replica() {
        assert_eq!(Options::for_replica_log_bytes(64 << 20), Options::default());
        let small = Options::for_replica_log_bytes(4 << 20);
        assert_eq!((small.target_file_size_bytes, small.purge_threshold_bytes), (1 << 20, 16 << 20));
        for log_bytes in [0, 1, 2 << 20, 1 << 30, u64::MAX] {
            assert!(Options::for_replica_log_bytes(log_bytes).validate().is_ok());
        }
    }

    #[test]
    fn invalid_settings_are_refused() {
        assert!(Options::default().validate().is_ok());
        assert!(Options { target_file_size_bytes: 1, ..Options::default() }.validate().is_err());
        assert!(Options { purge_threshold_bytes: 20 << 20, ..Options::default() }.validate().is_err());
    }
}
