//! Messages that no correct peer sends. raft-rs takes some of them for impossible and panics, which costs the replica; others
//! it would believe. They are dropped before it sees them, as the network may have done.
//!
//! Deliberately absent: lies that could be true (a vote, an acknowledgement, an entry with other content). Raft trusts its
//! members; this keeps a broken one from breaking others.

use std::collections::BTreeSet;

use flotilla_types::{ConfState, LogIndex, Message, MessageKind, ReplicaId, Term};

use super::Group;

/// No group gets there by itself; numbers beyond would overflow when they are counted on.
const NUMBER_MAX: u64 = 1 << 62;
/// Replicas that a configuration may name: many times what placement makes.
const CONF_REPLICAS_MAX: usize = 64;

impl Group {
    /// Whether raft-rs must not see this message.
    pub(super) fn would_misuse(&self, message: &Message) -> bool {
        let numbers = [message.term.0, message.index.0, message.commit.0];
        // Term 0 marks what a replica says to itself.
        if message.term == Term(0) || message.from == self.replica || numbers.iter().any(|number| *number > NUMBER_MAX)
        {
            return true;
        }
        match message.kind {
            // Nobody has a priority here; a new replica that refuses a vote for want of one panics.
            MessageKind::RequestVote | MessageKind::RequestPreVote => message.priority != 0,
            // A commit index beyond our log is fatal to raft-rs, unless the whole message is too old to be looked at.
            MessageKind::Heartbeat => message.commit > self.last() && message.term.0 >= self.node.raft.term,
            MessageKind::Append => !follows(message),
            // Nobody can have what the leader does not have.
            MessageKind::AppendResponse => !message.reject && message.index > self.last(),
            // Followers do not ask for read indexes here.
            MessageKind::ReadIndex | MessageKind::ReadIndexResponse => true,
            MessageKind::Snapshot => !self.may_install(message),
            // Also to a leader: the message may demote it first.
            MessageKind::TimeoutNow => self.is_alone_and_writing(),
            _ => false,
        }
    }

    fn may_install(&self, message: &Message) -> bool {
        message.snapshot.as_ref().is_some_and(|snapshot| {
            let position = &snapshot.checkpoint.position;
            let possible =
                (1..=message.term.0).contains(&position.term.0) && (1..=NUMBER_MAX).contains(&position.index.0);
            // A snapshot of a configuration that does not know us would be ignored for ever.
            possible && position.conf.contains(self.replica) && is_possible(&position.conf)
        })
    }
}

/// Whether an append's entries follow its index without a hole (it would be acknowledged for entries that it does not carry), with
/// terms that only grow and end at the leader's. Term 0 is that of the place before all entries; raft-rs also takes it for that of
/// places that a log does not reach.
fn follows(append: &Message) -> bool {
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

/// Whether changes could have led to this configuration; raft-rs panics when it installs another one.
fn is_possible(conf: &ConfState) -> bool {
    let lists = [&conf.voters, &conf.voters_outgoing, &conf.learners, &conf.learners_next];
    let named: usize = lists.iter().map(|list| list.len()).sum();
    let distinct = |list: &Vec<ReplicaId>| list.iter().collect::<BTreeSet<_>>().len() == list.len();
    named <= CONF_REPLICAS_MAX
        && !conf.voters.is_empty()
        && lists.iter().all(|list| distinct(list) && !list.contains(&ReplicaId::NONE))
        && !conf.learners.iter().any(|learner| conf.is_voter(*learner))
        // Whoever becomes a learner still votes in the outgoing half, and only there.
        && conf.learners_next.iter().all(|next| conf.voters_outgoing.contains(next) && !conf.voters.contains(next))
}
