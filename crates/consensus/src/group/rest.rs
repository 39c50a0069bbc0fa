//! Rest: a group that has nothing to do sends no messages and counts no election timeouts.
//!
//! A leader whose group was not used for [`Config::rest_after_ticks`](crate::Config), and whose followers have
//! everything and know it, sends [`MessageKind::Rest`] in place of its next heartbeat. A follower that agrees
//! (same term, same last entry, everything committed) stops its election timer. From then on the node's
//! heartbeats stand for the leader's: the caller wakes the replicas that depend on a node when that node
//! falls silent, restarts, or says that it leads the shard no more ([`Input::Wake`](crate::Input)). Any other
//! message, a proposal or a read wakes a replica as well. A voter that has been silent for an election timeout
//! does not keep the group awake.
//!
//! Why this is safe: rest only stops timers. A resting leader earns no leases, and those that it has end by
//! the clock. The promise of a follower not to vote (see [`lease`](super::lease)) counts ticks also while it
//! rests, so it ends no later than otherwise.
//!
//! Why a group always wakes when it must: a `Rest` that was lost leaves the follower's election timer running;
//! its pre-vote wakes the others, among them the leader, which sends heartbeats at once. A resting follower
//! ignores that pre-vote, since its count of ticks since the last heartbeat stands still, as raft-rs demands of
//! a follower of a live leader.
//!
//! A replica that is recovered from disk rests until its turn to wake comes or a message for it: thousands of
//! them that campaign at once would wake their whole groups, and a machine that cannot carry all groups awake
//! would never come to rest again.
//!
//! After CockroachDB's quiescence and TiKV's hibernate regions.

use bytes::Bytes;
use flotilla_types::{LogIndex, Message, MessageKind, ReplicaId, ShardId, Term};
use raft::{ProgressState, StateRole};

use super::Group;

/// What a replica needs to rest, and whether it does.
#[derive(Debug)]
pub(super) struct Rest {
    /// Ticks without use after which a leader rests; 0 for never.
    pub(super) after_ticks: usize,
    /// The tick of the last proposal, read or new entry.
    pub(super) used_at: usize,
    /// The tick of the last input other than ticks and responses to heartbeats.
    pub(super) stirred_at: usize,
    pub(super) resting: bool,
    /// Messages that tell followers to rest, not yet collected.
    pub(super) messages: Vec<Message>,
}

/// Heartbeats without other input after which a group rests that was woken and not used.
const SETTLE_HEARTBEATS: usize = 3;

impl Rest {
    /// Of a replica that is opened at this tick, awake.
    pub(super) fn new(after_ticks: usize, tick: usize) -> Self {
        Self { after_ticks, used_at: tick, stirred_at: tick, resting: false, messages: Vec::new() }
    }
}

impl Group {
    /// Whether its timers stand still.
    #[must_use]
    pub fn is_resting(&self) -> bool {
        self.rest.resting
    }

    /// Something happened that timers and responses to heartbeats do not cause: the group is awake.
    pub(super) fn note_stir(&mut self) {
        self.rest.resting = false;
        self.rest.stirred_at = self.counted_ticks;
    }

    /// A client uses the group: it stays awake for a while.
    pub(super) fn note_use(&mut self) {
        self.note_stir();
        self.rest.used_at = self.counted_ticks;
    }

    /// Wakes the replica. If the node of its leader is silent, the ticks since the leader's last message count
    /// towards the election timeout, as if the replica had not rested. A leader that wakes sends heartbeats,
    /// and finds out again which followers are there.
    pub(crate) fn wake(&mut self, leader_is_silent: bool) {
        if !self.rest.resting {
            return;
        }
        self.note_stir();
        let raft = &mut self.node.raft;
        if raft.state == StateRole::Leader {
            // They have a whole election timeout to answer.
            raft.election_elapsed = 0;
            self.silent.clear();
            let followers: Vec<_> = raft.prs().iter().map(|(id, _)| *id).filter(|id| *id != self.replica.0).collect();
            for follower in followers {
                if let Some(progress) = raft.mut_prs().get_mut(follower) {
                    progress.recent_active = false;
                }
            }
            raft.ping();
        } else if leader_is_silent {
            // Not more: the leader may hold a lease by this replica's promise.
            let silent_ticks = self.ticks_since_leader.min(self.election_ticks);
            raft.election_elapsed = raft.election_elapsed.max(silent_ticks);
        }
    }

    /// A replica that was recovered from disk waits until it is woken. Metadata does not: a node that starts
    /// needs it for everything.
    pub(crate) fn rest_until_woken(&mut self) {
        self.rest.resting = self.shard != ShardId::META;
    }

    /// What a message means for the rest of the replica, before it is stepped.
    pub(super) fn wake_for(&mut self, message: &Message) {
        if message.kind == MessageKind::HeartbeatResponse {
            return;
        }
        self.wake(false);
        // The empty entry of a new leader is no use.
        if message.entries.iter().any(|entry| !entry.data.is_empty()) {
            self.note_use();
        } else {
            self.note_stir();
        }
    }

    /// Rests, if this replica leads and its whole group was idle for long enough.
    pub(crate) fn try_rest(&mut self, tick: usize) -> bool {
        let Rest { after_ticks, used_at, stirred_at, resting, .. } = self.rest;
        let settle_ticks = SETTLE_HEARTBEATS * self.node.raft.heartbeat_timeout();
        let is_idle = tick.saturating_sub(used_at) >= after_ticks
            && tick.saturating_sub(stirred_at) >= settle_ticks.min(after_ticks);
        if resting || after_ticks == 0 || !is_idle || !self.may_rest() {
            return false;
        }
        let (term, last) = (Term(self.node.raft.term), self.last());
        let others: Vec<_> = self.node.raft.prs().iter().map(|(id, _)| ReplicaId(*id)).collect();
        for to in others.into_iter().filter(|to| *to != self.replica) {
            self.rest.messages.push(rest_message(self.replica, to, term, last));
        }
        self.rest.resting = true;
        self.release_memory();
        true
    }

    /// Gives back what only a group in use needs: entries in memory that are in the log, and room for more.
    fn release_memory(&mut self) {
        let durable_and_applied = self.persisted.min(self.applied);
        self.node.mut_store().release(durable_and_applied);
        self.node.raft.raft_log.unstable.entries.shrink_to_fit();
        self.unpersisted.shrink_to_fit();
    }

    /// Whether a leader's followers have everything, know it, and respond. A voter that is silent is no obstacle:
    /// when its node is there again, the leader is woken, and if the replica alone was silent, its election
    /// timer still runs. A learner has no such timer, and its node may create it later.
    fn may_rest(&self) -> bool {
        let raft = &self.node.raft;
        let last = raft.raft_log.last_index();
        // Every node follows the metadata, and clients of it wait for nothing else.
        self.shard != ShardId::META
            && raft.state == StateRole::Leader
            && (self.role.0, self.role.1) == (crate::Role::Leader, Term(raft.term))
            && raft.commit_to_current_term()
            && (raft.raft_log.committed, raft.raft_log.persisted) == (last, last)
            && raft.lead_transferee.is_none()
            && !raft.has_pending_conf()
            && !self.conf.is_joint()
            && self.unsynced_vote_round.is_none()
            && raft.prs().iter().filter(|(id, _)| **id != self.replica.0).all(|(id, progress)| {
                let is_current = (progress.matched, progress.committed_index) == (last, last);
                let is_down = self.is_silent(ReplicaId(*id)) && self.conf.is_voter(ReplicaId(*id));
                progress.state != ProgressState::Snapshot && (progress.recent_active && is_current || is_down)
            })
    }

    /// A leader's message to rest. One that does not fit is ignored: the leader wakes when this replica's
    /// election timeout ends.
    pub(super) fn on_rest(&mut self, message: &Message) {
        let raft = &self.node.raft;
        let log = &raft.raft_log;
        self.rest.resting = raft.state == StateRole::Follower
            && (raft.term, raft.leader_id) == (message.term.0, message.from.0)
            && (log.last_index(), log.committed) == (message.commit.0, message.commit.0)
            && self.incoming.is_none();
        if self.rest.resting {
            self.release_memory();
        }
    }

    pub(crate) fn take_rest_messages(&mut self) -> Vec<Message> {
        std::mem::take(&mut self.rest.messages)
    }
}

fn rest_message(from: ReplicaId, to: ReplicaId, term: Term, commit: LogIndex) -> Message {
    Message {
        kind: MessageKind::Rest,
        from,
        to,
        term,
        log_term: Term(0),
        index: LogIndex(0),
        entries: Vec::new(),
        commit,
        commit_term: Term(0),
        snapshot: None,
        reject: false,
        reject_hint: LogIndex(0),
        context: Bytes::new(),
        priority: 0,
    }
}
