//! All places there are.

use std::{fmt, str::FromStr};

/// A text names no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("there is no such place")]
pub struct UnknownPlace;

macro_rules! places {
    ($($(#[$doc:meta])+ $place:ident = $name:literal,)+) => {
        /// Where a test build can be made to crash, to fail or to wait.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Place {
            $($(#[$doc])+ $place,)+
        }

        impl Place {
            /// Every place, in the order of a write's life.
            pub const ALL: &[Self] = &[$(Self::$place,)+];

            /// `crate::place`, as in settings and metrics.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$place => $name,)+
                }
            }
        }
    };
}

places! {
    /// Before Raft messages of a flush leave.
    RaftBeforeSend = "raft::before_send",
    /// Messages have left, nothing is handed to the log yet.
    RaftSent = "raft::sent",
    /// Everything of a flush is handed on.
    RaftHandedOn = "raft::handed_on",
    /// Before a beat leaves.
    RaftBeforeBeat = "raft::before_beat",
    /// A configuration change was handed to the core, and nothing of it is written.
    RaftConfChange = "raft::conf_change",
    /// A replica is to be created, and nothing of it is written.
    RaftCreate = "raft::create",
    /// A replica is to be destroyed, and nothing of it is written.
    RaftDestroy = "raft::destroy",
    /// A snapshot is parked until its objects are here.
    RaftSnapshotParked = "raft::snapshot_parked",
    /// Before a message that offers a snapshot leaves.
    FramesSnapshot = "frames::snapshot",
    /// Before a batch is written. May fail.
    WalBeforeWrite = "wal::before_write",
    /// A batch is durable, and nobody knows yet. May fail, as an fsync does whose data arrived all the same.
    WalWritten = "wal::written",
    /// The core was told, and the messages that waited are not sent.
    WalBeforeHeld = "wal::before_held",
    /// The messages that waited are sent.
    WalAfterHeld = "wal::after_held",
    /// Before a batch with what peers said of themselves.
    WalBeforeMarks = "wal::before_marks",
    /// Before a batch that creates a replica.
    WalBeforeCreate = "wal::before_create",
    /// A batch that creates a replica is durable.
    WalCreated = "wal::created",
    /// Before a batch with a checkpoint pointer.
    WalBeforePointer = "wal::before_pointer",
    /// A checkpoint pointer and the truncation with it are durable.
    WalPointerWritten = "wal::pointer_written",
    /// Before a batch with a snapshot that replaces a log.
    WalBeforeClear = "wal::before_clear",
    /// A snapshot has replaced a log.
    WalCleared = "wal::cleared",
    /// Before a batch with an entry that changes a configuration.
    WalBeforeConfEntry = "wal::before_conf_entry",
    /// Before a batch that leaves a tombstone.
    WalBeforeTombstone = "wal::before_tombstone",
    /// A tombstone is durable.
    WalTombstoned = "wal::tombstoned",
    /// Inside the log, before the engine writes and syncs. May fail.
    RaftLogBeforeSync = "raft_log::before_sync",
    /// Inside the log, written and synced, and not in memory. May fail.
    RaftLogSynced = "raft_log::synced",
    /// The log's folder is checked, and not open.
    RaftLogOpen = "raft_log::open",
    /// Before log files are given back or written anew.
    RaftLogBeforeReclaim = "raft_log::before_reclaim",
    /// Log files were given back.
    RaftLogReclaimed = "raft_log::reclaimed",
    /// Before committed entries are applied.
    ApplyBefore = "apply::before",
    /// Applied, and nobody has an answer.
    ApplyDone = "apply::done",
    /// Answers are out.
    ApplyAnswered = "apply::answered",
    /// Before entries with a configuration change pass the state machine.
    ApplyConfChange = "apply::conf_change",
    /// Before a memtable is closed.
    ApplyBeforeFreeze = "apply::before_freeze",
    /// A memtable is closed.
    ApplyFrozen = "apply::frozen",
    /// Before a replica is opened.
    ApplyOpen = "apply::open",
    /// A replica's records are loaded, and it does not serve.
    ApplyLoaded = "apply::loaded",
    /// Before a replica's records are forgotten.
    ApplyClose = "apply::close",
    /// Before a checkpoint is built.
    CheckpointBeforeBuild = "checkpoint::before_build",
    /// Records of a checkpoint are written, and not synced. May fail.
    CheckpointRunWritten = "checkpoint::run_written",
    /// Before runs are folded into the base.
    CheckpointBeforeFold = "checkpoint::before_fold",
    /// Runs are folded, and not synced.
    CheckpointFolded = "checkpoint::folded",
    /// A checkpoint's objects are durable, and nothing names them.
    CheckpointBuilt = "checkpoint::built",
    /// Before the view takes a checkpoint.
    CheckpointBeforeSettle = "checkpoint::before_settle",
    /// The view knows that it is about to change.
    CheckpointAnnounced = "checkpoint::announced",
    /// The view is fed, its marker is not.
    CheckpointFed = "checkpoint::fed",
    /// The view's marker is written, the memtable is still there.
    CheckpointConfirmed = "checkpoint::confirmed",
    /// The checkpoint is settled, and the core does not know.
    CheckpointSettled = "checkpoint::settled",
    /// Before a replica's records are loaded from objects or the view.
    SnapshotBeforeLoad = "snapshot::before_load",
    /// Before a snapshot replaces a replica's records.
    SnapshotBeforeInstall = "snapshot::before_install",
    /// A snapshot has replaced a replica's records.
    SnapshotInstalled = "snapshot::installed",
    /// Before the objects of a snapshot are asked for.
    SnapshotBeforePull = "snapshot::before_pull",
    /// Objects have come, and are not stored.
    SnapshotFetched = "snapshot::fetched",
    /// Objects are stored, and not synced.
    SnapshotImported = "snapshot::imported",
    /// All objects are durable, and the core does not know.
    SnapshotSynced = "snapshot::synced",
    /// Before objects are read for a peer.
    SnapshotServe = "snapshot::serve",
    /// Before an object is written. May fail.
    ObjectsBeforeAppend = "objects::before_append",
    /// A segment file was begun, its header is written, its name is not synced.
    ObjectsSegmentBegun = "objects::segment_begun",
    /// Before segment files are synced. May fail.
    ObjectsBeforeSync = "objects::before_sync",
    /// Segment files are synced, their folder is not.
    ObjectsFilesSynced = "objects::files_synced",
    /// Objects are durable, and the index does not say so.
    ObjectsSynced = "objects::synced",
    /// Held objects were copied out of a segment, which is about to be deleted.
    ObjectsBeforeDelete = "objects::before_delete",
    /// Before a file of the data folder is written beside. May fail.
    FolderBeforeWrite = "folder::before_write",
    /// It is written beside, and not synced.
    FolderBeside = "folder::beside",
    /// It is synced, and has not taken the old one's place. May fail.
    FolderSynced = "folder::synced",
    /// It is in place, and the folder is not synced. May fail.
    FolderRenamed = "folder::renamed",
    /// It is in place for good.
    FolderReplaced = "folder::replaced",
    /// The cached metadata is about to be kept.
    FeedBeforeKeep = "feed::before_keep",
    /// The cached metadata is kept.
    FeedKept = "feed::kept",
    /// The key for a join is kept, and nobody was asked.
    JoinKeyKept = "join::key_kept",
    /// The cluster has let this node in, and nothing of it is kept.
    JoinAnswered = "join::answered",
    /// The identity is kept, the key for the join is still there.
    JoinIdentityKept = "join::identity_kept",
    /// The founder has an identity, and the cluster does not exist.
    FoundIdentityKept = "found::identity_kept",
    /// The cluster exists, and the founder does not know.
    FoundBeforeDone = "found::before_done",
    /// Whether left-over objects may be collected is about to be decided: a number is the grace for them, in milliseconds.
    ObjectsGrace = "objects::grace",
    /// The wall clock is read: a number moves it by so many milliseconds.
    ClockWall = "clock::wall",
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Place {
    type Err = UnknownPlace;

    fn from_str(text: &str) -> Result<Self, UnknownPlace> {
        Self::ALL.iter().copied().find(|place| place.name() == text).ok_or(UnknownPlace)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_place_has_a_name_of_its_own_and_is_found_by_it() {
        let names: BTreeSet<_> = Place::ALL.iter().map(|place| place.name()).collect();
        assert_eq!(names.len(), Place::ALL.len());
        for place in Place::ALL {
            assert_eq!(place.name().parse(), Ok(*place));
        }
        assert_eq!("wal::nowhere".parse::<Place>(), Err(UnknownPlace));
    }
}
