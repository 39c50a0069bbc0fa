//! Errors of opening and writing the log, and what the operator can do about them.

use std::{error::Error, path::PathBuf, sync::Arc};

use flotilla_storage::LogError;

/// The log could not be opened. Synced data is unchanged. The error reaches the caller inside
/// [`LogError::Engine`](flotilla_storage::LogError::Engine).
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The settings are invalid. Change them and start again.
    #[error("the log's settings are invalid: {0}")]
    Options(&'static str),
    /// The folder's path is not UTF-8. Move the folder.
    #[error("the path {0:?} of the log folder is not UTF-8; move the data folder")]
    Path(PathBuf),
    /// Another process, or another log of this process, has the folder open. Stop it first.
    #[error("the log folder {dir:?} is in use by another process; stop it first")]
    InUse {
        /// The folder.
        dir: PathBuf,
    },
    /// There are log files, but the file `FORMAT` is missing or damaged. Restore the whole folder, or join as
    /// a new node.
    #[error(
        "{file:?} is missing or damaged, but log files exist; restore the whole data folder, or remove it and join again"
    )]
    FormatFile {
        /// The missing or damaged file.
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
    /// Synced batches after this point are unreadable: the disk lost or changed bytes. The node has lost
    /// promises it made to its peers, so it must not continue.
    #[error(
        "the log file {file:?} is damaged at byte {offset}, with synced writes after it; check the disk, then \
         remove this node's data folder and join again as a new node"
    )]
    Damaged {
        /// The file.
        file: PathBuf,
        /// The start of the first batch that does not match its checksum.
        offset: u64,
    },
    /// The engine panicked during recovery. The folder is damaged, or the engine has a bug.
    #[error("the log engine panicked while it read the folder; check the disk, keep a copy of the folder for a report")]
    Panicked,
    /// The engine failed for another reason.
    #[error("the log engine could not open the folder: {0}")]
    Engine(#[source] Box<dyn Error + Send + Sync>),
}

impl From<OpenError> for LogError {
    fn from(error: OpenError) -> Self {
        Self::Engine(Arc::new(error))
    }
}

/// An earlier write failed, so what is durable is unknown.
#[derive(Debug, thiserror::Error)]
#[error("an earlier write of the log failed or one of its threads ended; restart the node")]
pub(crate) struct Stopped;

/// The engine panicked, as it does when a sync fails.
#[derive(Debug, thiserror::Error)]
#[error("the log engine panicked, as it does when a sync fails; check the disk, then restart the node")]
pub(crate) struct Panicked;

/// Converts an engine error that concerns the whole node.
pub(crate) fn from_engine(error: raft_engine::Error) -> LogError {
    match error {
        raft_engine::Error::Io(source) => source.into(),
        other => LogError::Engine(Arc::new(other)),
    }
}
