//! Why a log does not open, and what the operator can do about it.

use std::{error::Error, path::PathBuf, sync::Arc};

use flotilla_storage::LogError;

/// The log could not be opened. Nothing that was synced is changed. It reaches the caller inside
/// [`LogError::Engine`](flotilla_storage::LogError::Engine).
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The settings do not fit together. Change them and start again.
    #[error("the log's settings are wrong: {0}")]
    Options(&'static str),
    /// The path of the folder is not UTF-8. Move the folder.
    #[error("the path {0:?} of the log folder is not UTF-8; move the data folder")]
    Path(PathBuf),
    /// Another process, or another log of this one, has the folder open. Stop it first.
    #[error("the log folder {dir:?} is in use by another process; stop it first")]
    InUse {
        /// The folder.
        dir: PathBuf,
    },
    /// Log files without the file that says what they are. Restore the folder as a whole, or join as a new node.
    #[error(
        "{file:?} is missing or damaged beside log files; restore the whole data folder, or remove it and join again"
    )]
    Foreign {
        /// The file that should be there.
        file: PathBuf,
    },
    /// A newer version wrote the log. Upgrade the binary.
    #[error("the log has format version {found}, newer than {known}; upgrade this binary")]
    Version {
        /// Version in the folder.
        found: u32,
        /// Newest version known here.
        known: u32,
    },
    /// Synced batches behind this point cannot be reached: the disk lost or changed bytes. What the node promised its
    /// peers is not all there, so it must not go on as if it were.
    #[error(
        "the log file {file:?} is damaged at byte {offset}, with synced writes behind it; check the disk, then \
         remove this node's data folder and join again as a new node"
    )]
    Damaged {
        /// The file.
        file: PathBuf,
        /// Where the first batch starts that does not match its checksum.
        offset: u64,
    },
    /// The engine gave up in the middle of the recovery. The folder is damaged, or there is a bug in the engine.
    #[error("the log engine panicked while it read the folder; check the disk, keep a copy of the folder for a report")]
    Panicked,
    /// The engine refused for a reason of its own.
    #[error("the log engine could not open the folder: {0}")]
    Engine(#[source] Box<dyn Error + Send + Sync>),
}

impl From<OpenError> for LogError {
    fn from(error: OpenError) -> Self {
        Self::Engine(Arc::new(error))
    }
}

/// A write failed earlier, so what is durable is unknown.
#[derive(Debug, thiserror::Error)]
#[error("an earlier write of the log failed or a thread of it is gone; stop the node and start it again")]
pub(crate) struct Stopped;

/// The engine panicked, as it does when a sync fails.
#[derive(Debug, thiserror::Error)]
#[error("the log engine panicked, as it does when a sync fails; check the disk, then start the node again")]
pub(crate) struct Panicked;

/// Translates an error of the engine that concerns the node.
pub(crate) fn from_engine(error: raft_engine::Error) -> LogError {
    match error {
        raft_engine::Error::Io(source) => source.into(),
        other => LogError::Engine(Arc::new(other)),
    }
}
