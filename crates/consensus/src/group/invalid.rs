//! Detects messages that no correct peer sends, so that they are dropped before raft-rs sees them.
//!
//! raft-rs considers some of them impossible and panics, which would fail the replica; others it would
//! accept.
//!
//! Not detected: false messages that could be true (a vote, an acknowledgement, an entry with other content).
//! Raft trusts its members; this module only keeps a broken member from breaking others.

use std::collections::BTreeSet;

use flotilla_types::{ConfState, LogIndex, Message, MessageKind, ReplicaId, Term};

use super::Group;

/// The highest valid term or index: no group reaches it, and sums with larger numbers could overflow.
const NUMBER_MAX: u64 = 1 << 62;
/// Replicas that a configuration may name: many times as many as placement assigns.
const CONF_REPLICAS_MAX: usize = 64;

impl Group {
    /// Whether the message must be dropped.
    pub(super) fn is_invalid(&self, message: &Message) -> bool {
        let numbers = [message.term.0, message.index.0, message.commit.0];
        // Term 0 marks local messages.
        if message.term == Term(0) || message.from == self.replica || numbers.iter().any(|number| *number > NUMBER_MAX)
        {
            return true;
        }
        match message.kind {
            // Priorities are not used here; a new replica panics when it rejects a vote because of one.
            MessageKind::RequestVote | MessageKind::RequestPreVote => message.priority != 0,
            // raft-rs panics on a commit index beyond the log, unless the message's term is stale.
            MessageKind::Heartbeat => message.commit > self.last() && message.term.0 >= self.node.raft.term,
            MessageKind::Append => !is_contiguous(message),
            // No follower can hold entries that the leader does not.
            MessageKind::AppendResponse => !message.reject && message.index > self.last(),
            // Followers do not request read indexes here.
            MessageKind::ReadIndex | MessageKind::ReadIndexResponse => true,
            MessageKind::Snapshot => !self.may_install(message),
            // For a leader too: the message may demote it first.
            MessageKind::TimeoutNow => self.is_lone_voter_with_unsynced_log(),
            _ => false,
        }
    }

    /// Whether a follower rejects entries that it has acknowledged since: the rejection is older. raft-rs would
    /// send what is before them, as a snapshot if it is truncated, and wait for an acknowledgement that tells
    /// it nothing new.
    pub(super) fn is_stale_rejection(&self, message: &Message) -> bool {
        let raft = &self.node.raft;
        message.kind == MessageKind::AppendResponse
            && message.reject
            && message.term.0 == raft.term
            && raft.prs().get(message.from.0).is_some_and(|progress| message.index.0 <= progress.matched)
    }

    fn may_install(&self, message: &Message) -> bool {
        message.snapshot.as_ref().is_some_and(|snapshot| {
            let position = &snapshot.checkpoint.position;
            let in_bounds =
                (1..=message.term.0).contains(&position.term.0) && (1..=NUMBER_MAX).contains(&position.index.0);
            // raft-rs would never install a snapshot whose configuration does not name this replica.
            in_bounds && position.conf.contains(self.replica) && is_valid(&position.conf)
        })
    }
}

/// Whether an append's entries follow its index without a gap and with non-decreasing terms up to the
/// leader's. After a gap the follower would acknowledge entries that the message does not carry. Term 0
/// belongs to the position before the first entry; raft-rs also uses it for positions beyond the log.
fn is_contiguous(append: &Message) -> bool {
    if (append.log_term == Term(0)) != (append.index == LogIndex(0)) {
        return false;
    }
    let (mut index, mut term) = (append.index.0, append.log_term);
    for entry in &append.entries {
        index += 1;
        if entry.index.0 != index || entry.term < term || entry.term == Term(0) {
            return false;
        }
        term = entry.term;
    }
    term <= append.term
}

/// Whether configuration changes can lead to this configuration; raft-rs panics when it installs any other.
fn is_valid(conf: &ConfState) -> bool {
    let lists = [&conf.voters, &conf.voters_outgoing, &conf.learners, &conf.learners_next];
    let named: usize = lists.iter().map(|list| list.len()).sum();
    let distinct = |list: &Vec<ReplicaId>| list.iter().collect::<BTreeSet<_>>().len() == list.len();
    named <= CONF_REPLICAS_MAX
        && !conf.voters.is_empty()
        && lists.iter().all(|list| distinct(list) && !list.contains(&ReplicaId::NONE))
        && !conf.learners.iter().any(|learner| conf.is_voter(*learner))
        // A voter that becomes a learner still votes in the outgoing half, and only there.
        && conf.learners_next.iter().all(|next| conf.voters_outgoing.contains(next) && !conf.voters.contains(next))
}
