//! The list of all places.

use std::{fmt, str::FromStr};

/// The text is not the name of a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("there is no such place")]
pub struct UnknownPlace;

macro_rules! places {
    ($($(#[$doc:meta])+ $place:ident = $name:literal,)+) => {
        /// A place where a test build can crash, fail or wait.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Place {
            $($(#[$doc])+ $place,)+
        }

        impl Place {
            /// Every place, in the order in which a write reaches them.
            pub const ALL: &[Self] = &[$(Self::$place,)+];

            /// The name, `component::place`, as used in settings and metrics.
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
    /// Before the Raft messages of a flush are sent.
    RaftBeforeSend = "raft::before_send",
    /// The messages are sent; nothing is passed to the log yet.
    RaftSent = "raft::sent",
    /// All effects of a flush are passed on to their executors.
    RaftHandedOn = "raft::handed_on",
    /// Before a node heartbeat is sent.
    RaftBeforeNodeHeartbeat = "raft::before_node_heartbeat",
    /// The core has a configuration change; nothing of it is written.
    RaftConfChange = "raft::conf_change",
    /// A replica is to be created; nothing of it is written.
    RaftCreate = "raft::create",
    /// A replica is to be destroyed; nothing of it is written.
    RaftDestroy = "raft::destroy",
    /// A snapshot waits for its objects.
    RaftSnapshotParked = "raft::snapshot_parked",
    /// Before a message that offers a snapshot is sent.
    FramesSnapshot = "frames::snapshot",
    /// Before a batch is written. May fail.
    WalBeforeWrite = "wal::before_write",
    /// A batch is durable and not yet reported. May fail, like an fsync whose data reached the disk all the
    /// same.
    WalWritten = "wal::written",
    /// The core knows that a batch is durable; the messages that waited for it are not sent.
    WalBeforeHeld = "wal::before_held",
    /// The messages that waited for a batch are sent.
    WalAfterHeld = "wal::after_held",
    /// Before a batch with the highest sequences seen of peers.
    WalBeforePeerSequences = "wal::before_peer_sequences",
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
    /// A snapshot has replaced a log durably.
    WalCleared = "wal::cleared",
    /// Before a batch with an entry that changes a configuration.
    WalBeforeConfEntry = "wal::before_conf_entry",
    /// Before a batch that leaves a tombstone.
    WalBeforeTombstone = "wal::before_tombstone",
    /// A tombstone is durable.
    WalTombstoned = "wal::tombstoned",
    /// Inside the log, before the engine writes and syncs. May fail.
    RaftLogBeforeSync = "raft_log::before_sync",
    /// Inside the log: written and synced, not yet in memory. May fail.
    RaftLogSynced = "raft_log::synced",
    /// The log's folder is checked and not yet open.
    RaftLogOpen = "raft_log::open",
    /// Before log files are deleted or rewritten.
    RaftLogBeforeReclaim = "raft_log::before_reclaim",
    /// Log files are deleted.
    RaftLogReclaimed = "raft_log::reclaimed",
    /// Before committed entries are applied.
    ApplyBefore = "apply::before",
    /// Entries are applied and not yet answered.
    ApplyDone = "apply::done",
    /// The answers are sent.
    ApplyAnswered = "apply::answered",
    /// Before entries with a configuration change pass through the state machine.
    ApplyConfChange = "apply::conf_change",
    /// An entry of a shard writes something else than it should: with the number 1 by its state machine, with 2
    /// in the engine.
    ApplyFlaw = "apply::flaw",
    /// Before a memtable is frozen.
    ApplyBeforeFreeze = "apply::before_freeze",
    /// A memtable is frozen.
    ApplyFrozen = "apply::frozen",
    /// Before a replica is opened.
    ApplyOpen = "apply::open",
    /// A replica's records are loaded; it does not serve yet.
    ApplyLoaded = "apply::loaded",
    /// Before a replica's records are dropped.
    ApplyClose = "apply::close",
    /// Before a checkpoint is built.
    CheckpointBeforeBuild = "checkpoint::before_build",
    /// The records of a checkpoint are written and not synced. May fail.
    CheckpointRunWritten = "checkpoint::run_written",
    /// Before runs are folded into the base.
    CheckpointBeforeFold = "checkpoint::before_fold",
    /// Runs are merged or folded, and not synced.
    CheckpointFolded = "checkpoint::folded",
    /// A checkpoint's objects are durable; nothing refers to them.
    CheckpointBuilt = "checkpoint::built",
    /// Before the view installs a checkpoint.
    CheckpointBeforeInstall = "checkpoint::before_install",
    /// The view has recorded that it is about to change.
    CheckpointAnnounced = "checkpoint::announced",
    /// The view contains the records; its marker is not written.
    CheckpointFed = "checkpoint::fed",
    /// The view's marker is written; the memtable is not dropped yet.
    CheckpointConfirmed = "checkpoint::confirmed",
    /// The checkpoint is installed; the core does not know yet.
    CheckpointInstalled = "checkpoint::installed",
    /// Before a replica's records are loaded from objects or the view.
    SnapshotBeforeLoad = "snapshot::before_load",
    /// Before a snapshot replaces a replica's records.
    SnapshotBeforeInstall = "snapshot::before_install",
    /// A snapshot has replaced a replica's records.
    SnapshotInstalled = "snapshot::installed",
    /// Before the objects of a snapshot are requested.
    SnapshotBeforePull = "snapshot::before_pull",
    /// Objects have arrived and are not stored.
    SnapshotFetched = "snapshot::fetched",
    /// Objects are stored and not synced.
    SnapshotImported = "snapshot::imported",
    /// All objects are durable; the core does not know yet.
    SnapshotSynced = "snapshot::synced",
    /// Before objects are read for a peer.
    SnapshotServe = "snapshot::serve",
    /// An object was read for a peer: with a number, the byte at that offset is sent as another one.
    SnapshotFlaw = "snapshot::flaw",
    /// Before an object is written. May fail.
    ObjectsBeforeAppend = "objects::before_append",
    /// A segment file is created and its header written; its name is not synced.
    ObjectsSegmentBegun = "objects::segment_begun",
    /// Before segment files are synced. May fail.
    ObjectsBeforeSync = "objects::before_sync",
    /// Segment files are synced; their folder is not.
    ObjectsFilesSynced = "objects::files_synced",
    /// Objects are durable; the index does not say so yet.
    ObjectsSynced = "objects::synced",
    /// A closed segment is durable, without its table of contents. May fail.
    ObjectsBeforeFooter = "objects::before_footer",
    /// A closed segment's table of contents is written, not synced.
    ObjectsFooterWritten = "objects::footer_written",
    /// Live objects are copied out of a segment, which is about to be deleted.
    ObjectsBeforeDelete = "objects::before_delete",
    /// Before the temporary file that replaces a file of the data folder is written. May fail.
    FolderBeforeWrite = "folder::before_write",
    /// The temporary file is written and not synced.
    FolderBeside = "folder::beside",
    /// The temporary file is synced and not renamed. May fail.
    FolderSynced = "folder::synced",
    /// The file is renamed; the folder is not synced. May fail.
    FolderRenamed = "folder::renamed",
    /// The file is replaced durably.
    FolderReplaced = "folder::replaced",
    /// Before the metadata cache is written.
    FeedBeforeKeep = "feed::before_keep",
    /// The metadata cache is written.
    FeedKept = "feed::kept",
    /// The key for a join is stored; no request was sent.
    JoinKeyKept = "join::key_kept",
    /// The cluster has admitted this node; nothing of the answer is stored.
    JoinAnswered = "join::answered",
    /// The identity is stored; the key for the join still exists.
    JoinIdentityKept = "join::identity_kept",
    /// The founder's identity is stored; the cluster does not exist yet.
    FoundIdentityKept = "found::identity_kept",
    /// The cluster exists; the founder has not recorded that.
    FoundBeforeDone = "found::before_done",
    /// The grace period before orphaned objects are collected: a number sets it, in milliseconds.
    ObjectsGrace = "objects::grace",
    /// The wall clock is read: a number shifts it by that many milliseconds.
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
    fn every_place_has_a_unique_name_that_parses() {
        let names: BTreeSet<_> = Place::ALL.iter().map(|place| place.name()).collect();
        assert_eq!(names.len(), Place::ALL.len());
        for place in Place::ALL {
            assert_eq!(place.name().parse(), Ok(*place));
        }
        assert_eq!("wal::nowhere".parse::<Place>(), Err(UnknownPlace));
    }
}
