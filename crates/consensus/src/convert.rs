//! Conversions between plain Raft data and raft-rs types, field by field and without protobuf encoding.

use std::collections::BTreeMap;

use flotilla_types::{
    Checkpoint, ConfState, Entry, EntryKind, HardState, LogIndex, Message, MessageKind, ReplicaId, Snapshot, Term,
};
use raft::eraftpb;

const KINDS: [(MessageKind, eraftpb::MessageType); 12] = [
    (MessageKind::Append, eraftpb::MessageType::MsgAppend),
    (MessageKind::AppendResponse, eraftpb::MessageType::MsgAppendResponse),
    (MessageKind::RequestVote, eraftpb::MessageType::MsgRequestVote),
    (MessageKind::RequestVoteResponse, eraftpb::MessageType::MsgRequestVoteResponse),
    (MessageKind::RequestPreVote, eraftpb::MessageType::MsgRequestPreVote),
    (MessageKind::RequestPreVoteResponse, eraftpb::MessageType::MsgRequestPreVoteResponse),
    (MessageKind::Heartbeat, eraftpb::MessageType::MsgHeartbeat),
    (MessageKind::HeartbeatResponse, eraftpb::MessageType::MsgHeartbeatResponse),
    (MessageKind::Snapshot, eraftpb::MessageType::MsgSnapshot),
    (MessageKind::TimeoutNow, eraftpb::MessageType::MsgTimeoutNow),
    (MessageKind::ReadIndex, eraftpb::MessageType::MsgReadIndex),
    (MessageKind::ReadIndexResponse, eraftpb::MessageType::MsgReadIndexResp),
];

/// Converts a message of raft-rs. `None` for kinds that never leave a replica, and for appends whose entries
/// do not follow their index. `offered` holds the checkpoints of outgoing snapshots, by index.
pub(crate) fn message_from_raft(message: eraftpb::Message, offered: &BTreeMap<u64, Checkpoint>) -> Option<Message> {
    let kind = KINDS.iter().find(|(_, raft)| *raft == message.msg_type)?.0;
    // raft-rs 0.7 with `batch_append` adds entries to an empty append for another position (its continuity
    // check passes if the message has no entries yet). A follower would acknowledge, and commit, entries that
    // it never received. Such a message is dropped: the next rejection repairs a lost append.
    if message.entries.first().is_some_and(|first| kind == MessageKind::Append && first.index != message.index + 1) {
        return None;
    }
    let snapshot = match kind {
        MessageKind::Snapshot => {
            let index = message.snapshot.as_ref()?.get_metadata().index;
            Some(Snapshot { checkpoint: offered.get(&index)?.clone() })
        }
        _ => None,
    };
    Some(Message {
        kind,
        from: ReplicaId(message.from),
        to: ReplicaId(message.to),
        term: Term(message.term),
        log_term: Term(message.log_term),
        index: LogIndex(message.index),
        entries: message.entries.into_vec().into_iter().map(entry_from_raft).collect(),
        commit: LogIndex(message.commit),
        commit_term: Term(message.commit_term),
        snapshot,
        reject: message.reject,
        reject_hint: LogIndex(message.reject_hint),
        context: message.context,
        priority: message.priority,
    })
}

pub(crate) fn message_to_raft(message: Message) -> eraftpb::Message {
    let mut raft = eraftpb::Message::default();
    if let Some((_, kind)) = KINDS.iter().find(|(kind, _)| *kind == message.kind) {
        raft.msg_type = *kind;
    }
    raft.from = message.from.0;
    raft.to = message.to.0;
    raft.term = message.term.0;
    raft.log_term = message.log_term.0;
    raft.index = message.index.0;
    raft.entries = message.entries.into_iter().map(entry_to_raft).collect::<Vec<_>>().into();
    raft.commit = message.commit.0;
    raft.commit_term = message.commit_term.0;
    if let Some(snapshot) = message.snapshot {
        raft.set_snapshot(snapshot_to_raft(&snapshot.checkpoint));
    }
    raft.reject = message.reject;
    raft.reject_hint = message.reject_hint.0;
    raft.context = message.context;
    raft.priority = message.priority;
    raft
}

/// Converts the metadata only: raft-rs does not need the object ids.
pub(crate) fn snapshot_to_raft(checkpoint: &Checkpoint) -> eraftpb::Snapshot {
    let mut snapshot = eraftpb::Snapshot::default();
    let metadata = snapshot.mut_metadata();
    metadata.index = checkpoint.position.index.0;
    metadata.term = checkpoint.position.term.0;
    metadata.set_conf_state(conf_to_raft(&checkpoint.position.conf));
    snapshot
}

pub(crate) fn entry_from_raft(entry: eraftpb::Entry) -> Entry {
    Entry {
        index: LogIndex(entry.index),
        term: Term(entry.term),
        kind: match entry.entry_type {
            eraftpb::EntryType::EntryNormal => EntryKind::of_normal(&entry.data, &entry.context),
            eraftpb::EntryType::EntryConfChange | eraftpb::EntryType::EntryConfChangeV2 => EntryKind::ConfChange,
        },
        data: entry.data,
        context: entry.context,
    }
}

pub(crate) fn entry_to_raft(entry: Entry) -> eraftpb::Entry {
    eraftpb::Entry {
        index: entry.index.0,
        term: entry.term.0,
        entry_type: match entry.kind {
            EntryKind::Normal | EntryKind::Shard => eraftpb::EntryType::EntryNormal,
            EntryKind::ConfChange => eraftpb::EntryType::EntryConfChangeV2,
        },
        data: entry.data,
        context: entry.context,
        ..eraftpb::Entry::default()
    }
}

pub(crate) fn hard_state_from_raft(state: &eraftpb::HardState) -> HardState {
    HardState { term: Term(state.term), vote: ReplicaId(state.vote), commit: LogIndex(state.commit) }
}

pub(crate) fn conf_to_raft(conf: &ConfState) -> eraftpb::ConfState {
    let ids = |replicas: &[ReplicaId]| replicas.iter().map(|replica| replica.0).collect();
    eraftpb::ConfState {
        voters: ids(&conf.voters),
        voters_outgoing: ids(&conf.voters_outgoing),
        learners: ids(&conf.learners),
        learners_next: ids(&conf.learners_next),
        ..eraftpb::ConfState::default()
    }
}

/// Converts and sorts, so that equal configurations compare equal on every replica.
pub(crate) fn conf_from_raft(conf: &eraftpb::ConfState) -> ConfState {
    let ids = |raft: &[u64]| {
        let mut ids: Vec<_> = raft.iter().copied().map(ReplicaId).collect();
        ids.sort_unstable();
        ids
    };
    ConfState {
        voters: ids(&conf.voters),
        voters_outgoing: ids(&conf.voters_outgoing),
        learners: ids(&conf.learners),
        learners_next: ids(&conf.learners_next),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_append_whose_entries_do_not_follow_its_index_is_dropped() {
        let append = |index, first| {
            let entry = eraftpb::Entry { index: first, term: 2, ..eraftpb::Entry::default() };
            let message = eraftpb::Message {
                msg_type: eraftpb::MessageType::MsgAppend,
                index,
                entries: vec![entry].into(),
                ..eraftpb::Message::default()
            };
            message_from_raft(message, &BTreeMap::new())
        };
        assert!(append(7, 8).is_some());
        assert!(append(7, 3).is_none());
    }
}
