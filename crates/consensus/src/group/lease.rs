//! Leader leases: a leader that holds one answers reads without asking a quorum each time.
//!
//! After Ongaro's dissertation, §6.4.1. A lease keeps reads linearizable only together with a promise of the
//! voters:
//!
//! **The voter's promise.** A replica that received a message of a leader neither grants votes nor campaigns
//! for `election_ticks` of its own ticks. raft-rs keeps such a promise while it remembers a leader
//! (`check_quorum`), but forgets the leader when its term grows other than by a vote, when it is asked to
//! campaign, and when the process ends. Here the promise counts from the leader's last message, whatever
//! happened since. A recovered replica may have made any promise before the restart, so it behaves as if it
//! had heard from a leader when the process started. Votes for a candidate that the leader itself chose
//! (`TimeoutNow`) are exempt: the leader drops its lease before it sends that message. Missed ticks are
//! skipped and the first tick may come at once, so a promise ends at the earliest `election_ticks − 1` whole
//! ticks after it was made. A clock that jumps ahead, by any distance, makes one tick early.
//!
//! **The leader's lease.** A ReadIndex round that a quorum of the applied configuration confirms (both
//! majorities of a joint one) grants a lease, which starts when the heartbeats of the round were *created*:
//! each voter that responded received them later than that. raft-rs counts a response only if its term is the
//! leader's and its context is that of this round or of a later one. The caller decides how long a lease
//! lasts: less than the promise, by the clock drift it allows for. It compares with a clock that it read
//! **after** it accepted the request.
//!
//! Why this is safe wherever the process is paused:
//!
//! - Before the round's heartbeats are created or sent: voters receive them after the start of the lease, so
//!   the promise outlasts the lease.
//! - Between the responses and their being counted: the lease still starts when the round did, and has
//!   expired.
//! - Between accepting a request and reading the clock: the clock includes the pause, so the lease has
//!   expired and the read goes through a round.
//! - Between reading the clock and responding: no other replica led *when the clock was read*, which is after
//!   the request arrived. The read may be ordered at that moment; later writes of others are concurrent with
//!   it.
//! - A voter, at any point: its ticks are skipped, so its promise lasts longer.
//!
//! A lease belongs to one term. Every access asks raft-rs whether this replica still leads that term, so a
//! message that deposes the leader also ends the lease. Applying a configuration change ends it, because
//! majorities two changes apart need not share a voter. Majorities one change apart do, and no replica is
//! further off: a leader proposes a change only after it has applied the previous one, and a replica with a
//! change in its log knows that the previous one is committed. A leadership transfer ends leases for the rest
//! of the term, since a `TimeoutNow` may arrive at any time. No lease starts before the first entry of the
//! term is committed, because no round does; so the commit index at the time of access covers every
//! acknowledged write.
//!
//! Differences from the dissertation: reads start the rounds that grant leases, not every heartbeat, so an
//! idle group costs nothing; the caller's settings bound the clock drift; and restarted voters wait, which
//! the dissertation does not discuss. The `LeaseBased` reads of raft-rs are not used: they trust the ticks of
//! a leader that may have been paused.

use std::collections::VecDeque;

use bytes::Bytes;
use flotilla_types::{LogIndex, Message, MessageKind, ReplicaId, Term};
use raft::StateRole;

use super::{Group, ProposeError};

/// Rounds that are remembered. A round that is confirmed after it was evicted grants no lease.
const PENDING_ROUNDS_MAX: usize = 16;

/// How a replica came to be open in this process, which decides what it may have promised before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Created by this process: it has never received a message of a leader.
    Created,
    /// Created by this process when its shard was split off, with a hard state in which every replica of the shard has
    /// voted for this one: the entry of the split, which a quorum of the shard before has, is their vote. It leads that
    /// term at once, and only now: opened again it could lead the same term with other entries, so it must be
    /// [`Recovered`](Self::Recovered) then. Its hard state must be durable.
    Heir,
    /// Left by an earlier run of the process: it may have heard from a leader until that run ended.
    Recovered,
}

/// A quorum's promise to elect no other leader for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    start_ms: u64,
    index: LogIndex,
}

impl Lease {
    /// Milliseconds left of a lease that lasts `length_ms`; zero if it has expired. `now_ms` must have been
    /// read **after** the caller accepted the request that relies on the result.
    #[must_use]
    pub fn remaining_ms(&self, now_ms: u64, length_ms: u64) -> u64 {
        // A clock that went backwards does not tell how much time has passed.
        now_ms.checked_sub(self.start_ms).map_or(0, |age_ms| length_ms.saturating_sub(age_ms))
    }

    /// Reads may be served once this index is applied.
    #[must_use]
    pub fn index(&self) -> LogIndex {
        self.index
    }
}

/// Pending read-index rounds of a leader, and the start of the lease that confirmed ones granted.
#[derive(Debug, Default)]
pub(super) struct LeaseState {
    /// The term of the rounds and of the lease.
    term: u64,
    /// Rounds in flight: context and start.
    pending_rounds: VecDeque<(Bytes, u64)>,
    /// Start of the latest confirmed round.
    start_ms: Option<u64>,
    /// The last term in which this leader started a leadership transfer.
    transferred_in: Option<u64>,
}

impl LeaseState {
    fn start_round(&mut self, term: u64, context: Bytes, now_ms: u64) {
        if self.term != term {
            self.reset();
            self.term = term;
        }
        if self.pending_rounds.len() == PENDING_ROUNDS_MAX {
            self.pending_rounds.pop_front();
        }
        self.pending_rounds.push_back((context, now_ms));
    }

    fn confirm_round(&mut self, term: u64, context: &[u8]) {
        let Some(at) = self.pending_rounds.iter().position(|(pending, _)| *pending == context) else { return };
        let Some((_, round_start_ms)) = self.pending_rounds.remove(at) else { return };
        if self.term == term {
            self.start_ms = self.start_ms.max(Some(round_start_ms));
        }
    }

    fn reset(&mut self) {
        self.pending_rounds.clear();
        self.start_ms = None;
    }

    fn start_transfer(&mut self, term: u64) {
        self.reset();
        self.transferred_in = Some(term);
    }

    fn start_ms(&self, term: u64) -> Option<u64> {
        self.start_ms.filter(|_| self.term == term && self.transferred_in != Some(term))
    }
}

impl Group {
    /// Starts a read-index round; its confirmation carries the same context. The caller read `now_ms` before
    /// this call.
    pub(crate) fn read_index(&mut self, context: Bytes, now_ms: u64) -> Result<(), ProposeError> {
        if self.node.raft.state != StateRole::Leader {
            return Err(ProposeError::NotLeader);
        }
        // raft-rs drops the request silently before the first commit of the term.
        if !self.node.raft.commit_to_current_term() {
            return Err(ProposeError::Busy);
        }
        self.note_use();
        self.node.read_index(context.to_vec());
        self.lease_state.start_round(self.node.raft.term, context, now_ms);
        Ok(())
    }

    /// Extends the lease after a quorum has confirmed a round.
    pub(super) fn confirm_round(&mut self, context: &[u8]) {
        self.lease_state.confirm_round(self.node.raft.term, context);
    }

    /// Ends the lease because the configuration changed.
    pub(super) fn end_lease(&mut self) {
        self.lease_state.reset();
    }

    /// The lease of this replica, if it leads and a quorum granted one. Whether it has expired is for the
    /// caller's clock to decide.
    #[must_use]
    pub fn lease(&self) -> Option<Lease> {
        let raft = &self.node.raft;
        if raft.state != StateRole::Leader {
            return None;
        }
        let start_ms = self.lease_state.start_ms(raft.term)?;
        Some(Lease { start_ms, index: LogIndex(raft.raft_log.committed) })
    }

    /// The term as of the last message stepped; [`Group::role`] lags until the group is drained.
    #[must_use]
    pub fn term(&self) -> Term {
        Term(self.node.raft.term)
    }

    pub(crate) fn transfer(&mut self, to: ReplicaId) {
        if self.node.raft.state == StateRole::Leader && to != self.replica && self.conf.voters.contains(&to) {
            self.note_stir();
            self.lease_state.start_transfer(self.node.raft.term);
            self.node.transfer_leader(to.0);
        }
    }

    /// Whether this replica still owes a leader the promise not to elect another one.
    fn owes_promise(&self) -> bool {
        self.ticks_since_leader < self.election_ticks
    }

    /// Campaigns without waiting for the election timeout, unless a leader relies on this replica.
    pub(crate) fn campaign(&mut self) {
        if self.node.raft.state != StateRole::Leader
            && self.node.raft.promotable()
            && !self.must_not_campaign()
            && !self.owes_promise()
        {
            self.note_stir();
            let _ = self.node.campaign();
        }
    }

    /// Whether a vote for the sender would break a promise. Such a request gets no response, as within
    /// raft-rs's own lease. A candidate of an older term does get one: it must learn of the newer term.
    pub(super) fn must_not_vote(&self, message: &Message) -> bool {
        let requests_vote = matches!(message.kind, MessageKind::RequestVote | MessageKind::RequestPreVote);
        requests_vote
            && message.term.0 >= self.node.raft.term
            && *message.context != *raft::CAMPAIGN_TRANSFER
            && self.owes_promise()
    }

    /// The term of a message that only a leader sends.
    pub(super) fn leader_term_in(message: &Message) -> Option<u64> {
        let from_leader = matches!(message.kind, MessageKind::Append | MessageKind::Heartbeat | MessageKind::Snapshot);
        from_leader.then_some(message.term.0)
    }

    /// Renews the promise after a leader's message was stepped. Messages of older terms do not count.
    pub(super) fn observe_leader(&mut self, term: u64) {
        if self.node.raft.term == term && self.node.raft.state == StateRole::Follower {
            self.ticks_since_leader = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(number: u8) -> Bytes {
        Bytes::copy_from_slice(&[number])
    }

    #[test]
    fn a_lease_starts_with_its_round_and_expires_after_its_length() {
        let lease = Lease { start_ms: 1_000, index: LogIndex(1) };
        assert_eq!(
            (lease.remaining_ms(1_000, 265), lease.remaining_ms(1_264, 265), lease.remaining_ms(1_265, 265)),
            (265, 1, 0)
        );
        assert_eq!((lease.remaining_ms(999, 265), lease.remaining_ms(u64::MAX, 265)), (0, 0));
    }

    #[test]
    fn late_confirmation_of_an_older_round_does_not_shorten_the_lease() {
        let mut lease_state = LeaseState::default();
        lease_state.start_round(2, context(1), 10);
        lease_state.start_round(2, context(2), 20);
        lease_state.confirm_round(2, &context(2));
        lease_state.confirm_round(2, &context(1));
        assert_eq!(lease_state.start_ms(2), Some(20));
        lease_state.confirm_round(2, &context(9));
        assert_eq!(lease_state.start_ms(2), Some(20));
    }

    #[test]
    fn a_round_of_one_term_grants_no_lease_in_another() {
        let mut lease_state = LeaseState::default();
        lease_state.start_round(2, context(1), 10);
        lease_state.confirm_round(3, &context(1));
        assert_eq!((lease_state.start_ms(2), lease_state.start_ms(3)), (None, None));
        lease_state.start_round(3, context(2), 20);
        lease_state.confirm_round(3, &context(2));
        assert_eq!((lease_state.start_ms(2), lease_state.start_ms(3), lease_state.start_ms(4)), (None, Some(20), None));
    }

    #[test]
    fn a_transfer_prevents_leases_for_the_rest_of_its_term() {
        let mut lease_state = LeaseState::default();
        lease_state.start_round(2, context(1), 10);
        lease_state.start_transfer(2);
        lease_state.confirm_round(2, &context(1));
        lease_state.start_round(2, context(2), 20);
        lease_state.confirm_round(2, &context(2));
        assert_eq!(lease_state.start_ms(2), None);
        lease_state.start_round(3, context(3), 30);
        lease_state.confirm_round(3, &context(3));
        assert_eq!(lease_state.start_ms(3), Some(30));
    }

    #[test]
    fn unconfirmed_rounds_are_bounded() {
        let mut lease_state = LeaseState::default();
        (0..100).for_each(|number| lease_state.start_round(2, context(number), 10 + u64::from(number)));
        assert_eq!(lease_state.pending_rounds.len(), PENDING_ROUNDS_MAX);
        lease_state.confirm_round(2, &context(0));
        assert_eq!(lease_state.start_ms(2), None);
    }
}
