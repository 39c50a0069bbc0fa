//! The stored form of entries: the protobuf-2 type of raft-rs, which never leaves this crate.
//!
//! raft-engine supports only protobuf-2 messages; this one is stable on disk. Its bytes come from blocks that
//! matched their checksum, never from a peer.

use flotilla_types::{Entry, EntryKind, LogIndex, Term};
use raft::eraftpb;
use raft_engine::MessageExt;

/// Tells the engine how to read the index of an entry.
pub(crate) struct Stored;

impl MessageExt for Stored {
    type Entry = eraftpb::Entry;

    fn index(entry: &eraftpb::Entry) -> u64 {
        entry.index
    }
}

pub(crate) fn to_stored(entry: &Entry) -> eraftpb::Entry {
    let mut stored = eraftpb::Entry::default();
    stored.set_entry_type(match entry.kind {
        EntryKind::Normal | EntryKind::Shard => eraftpb::EntryType::EntryNormal,
        EntryKind::ConfChange => eraftpb::EntryType::EntryConfChangeV2,
    });
    stored.index = entry.index.0;
    stored.term = entry.term.0;
    stored.data = entry.data.clone();
    stored.context = entry.context.clone();
    stored
}

pub(crate) fn from_stored(stored: eraftpb::Entry) -> Entry {
    let kind = match stored.get_entry_type() {
        eraftpb::EntryType::EntryNormal => EntryKind::of_normal(stored.get_data(), stored.get_context()),
        eraftpb::EntryType::EntryConfChange | eraftpb::EntryType::EntryConfChangeV2 => EntryKind::ConfChange,
    };
    Entry { index: LogIndex(stored.index), term: Term(stored.term), kind, data: stored.data, context: stored.context }
}
