//! Leases: what lets a leader answer reads for a while without asking a quorum each time, and what voters owe it for that.
//!
//! After Ongaro's dissertation, §6.4.1. Two halves, which only together keep a strong read strong:
//!
//! **The voter's promise.** Whoever hears a leader grants no vote and does not campaign for `election_ticks` of its own
//! ticks. raft-rs keeps a promise of that kind while it remembers a leader (`check_quorum`); it forgets the leader when its term
//! grows by something else than a vote, when it is told to campaign, and when the process ends. Here the promise counts from what
//! was heard, whatever became of it since; and a recovered replica, which may have promised anything in its last life, is as silent as
//! one that heard a leader at the moment its process began. Votes for a candidate whom the leader itself sent forward
//! (`TimeoutNow`) are exempt: before such a message leaves, the leader has no lease any more.
//! Ticks that were missed are skipped, so a promise ends at the earliest `election_ticks − 1` whole ticks after it was made: the first
//! tick may come at once. A clock that jumps ahead makes one tick early, whatever its distance.
//!
//! **The leader's lease.** A ReadIndex round that a quorum of the applied configuration confirms (both majorities of a joint one)
//! earns a lease, dated when its heartbeats were *made*: each voter that answered heard it later than that. raft-rs counts an answer
//! only when its term is the leader's and its context that of this round or a later one. The caller says how long a lease
//! lasts, less than the promise by what clocks may differ, and compares with a clock that it read **after** it took the request in.
//!
//! Why that is enough, wherever the process is stopped:
//!
//! | stopped | then |
//! |---|---|
//! | before the round's heartbeats are made, or before they leave | voters hear them after the date: the promise outlasts the lease |
//! | between the answers and their being counted | the lease keeps the date of the question, and has run out |
//! | between taking a request in and reading the clock | the clock counts the pause: the lease has run out, a round asks |
//! | between reading the clock and answering | nobody else led *when the clock was read*, which is after the request came: the read may be ordered at that moment. Whatever others wrote since is concurrent to it |
//! | a voter, anywhere | its ticks are skipped, its promise lasts longer |
//!
//! A lease is of one term, and leadership of that term is asked of raft-rs itself at each look, so that every message that deposes the
//! leader ends it in the same breath. A configuration change that is applied here ends it: majorities two changes apart need not share a
//! voter. Majorities one change apart do, and nobody is further ahead or behind: a leader proposes no change before it applied the last
//! one, and whoever has a change in its log knows that the one before is committed. Offering leadership to somebody ends the
//! lease for the rest of the term, since nobody knows when a `TimeoutNow` arrives. No lease begins before the first entry of
//! the term is committed, because no round does; so the commit index at the moment of the look covers whatever anybody was told.
//!
//! Where this departs from the dissertation: leases come from rounds that reads asked for, not from every heartbeat, so an idle group
//! costs nothing; the drift is bounded by the caller's settings; and restarted voters wait, of which the dissertation does not speak.
//! raft-rs's own `LeaseBased` reads are not used: they trust ticks of a leader that may have been paused.

use std::collections::VecDeque;

use bytes::Bytes;
use flotilla_types::{LogIndex, Message, MessageKind, ReplicaId, Term};
use raft::StateRole;

use super::{Group, ProposeError};

/// Rounds whose dates are remembered. What is confirmed after it was forgotten earns no lease.
const ASKED_MAX: usize = 16;

/// Where a replica comes from, which decides what it may have promised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// It was created in this life of the process: it has never heard a leader.
    Created,
    /// An earlier life left it: it may have heard one until that ended.
    Recovered,
}

/// A quorum has promised to elect nobody else for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    dated_ms: u64,
    index: LogIndex,
}

impl Lease {
    /// How much is left of a lease that lasts `length_ms`, by a clock that was read **after** whatever rests on the answer was
    /// taken in. Zero: there is none.
    #[must_use]
    pub fn left_ms(&self, now_ms: u64, length_ms: u64) -> u64 {
        // A clock that went back says nothing of what has passed.
        now_ms.checked_sub(self.dated_ms).map_or(0, |age_ms| length_ms.saturating_sub(age_ms))
    }

    /// Reads may be served once this is applied.
    #[must_use]
    pub fn index(&self) -> LogIndex {
        self.index
    }
}

/// What a leader has earned.
#[derive(Debug, Default)]
pub(super) struct Earned {
    /// The term of everything that follows.
    term: u64,
    /// Rounds under way: context, and when they were asked.
    asked: VecDeque<(Bytes, u64)>,
    /// When the latest of the confirmed rounds was asked.
    dated_ms: Option<u64>,
    /// The last term in which leadership was offered to somebody.
    offered_in: Option<u64>,
}

impl Earned {
    fn asked(&mut self, term: u64, context: Bytes, now_ms: u64) {
        if self.term != term {
            self.start_anew();
            self.term = term;
        }
        if self.asked.len() == ASKED_MAX {
            self.asked.pop_front();
        }
        self.asked.push_back((context, now_ms));
    }

    fn confirmed(&mut self, term: u64, context: &[u8]) {
        let round = self.asked.iter().position(|(asked, _)| *asked == context);
        if let Some((_, asked_ms)) = round.and_then(|at| self.asked.remove(at))
            && self.term == term
        {
            self.dated_ms = self.dated_ms.max(Some(asked_ms));
        }
    }

    fn start_anew(&mut self) {
        self.asked.clear();
        self.dated_ms = None;
    }

    fn offer(&mut self, term: u64) {
        self.start_anew();
        self.offered_in = Some(term);
    }

    fn dated_ms(&self, term: u64) -> Option<u64> {
        self.dated_ms.filter(|_| self.term == term && self.offered_in != Some(term))
    }
}

impl Group {
    /// Asks the quorum whether this replica still leads; the answer comes with the same context. `now_ms` was read before.
    pub(crate) fn read_index(&mut self, context: Bytes, now_ms: u64) -> Result<(), ProposeError> {
        if self.node.raft.state != StateRole::Leader {
            return Err(ProposeError::NotLeader);
        }
        // raft-rs drops the request silently before the first commit of the term.
        if !self.node.raft.commit_to_current_term() {
            return Err(ProposeError::Busy);
        }
        self.node.read_index(context.to_vec());
        self.earned.asked(self.node.raft.term, context, now_ms);
        Ok(())
    }

    /// A quorum has confirmed a round.
    pub(super) fn round_confirmed(&mut self, context: &[u8]) {
        self.earned.confirmed(self.node.raft.term, context);
    }

    /// Another configuration holds from here on.
    pub(super) fn end_lease(&mut self) {
        self.earned.start_anew();
    }

    /// What this replica has earned while it leads. Whether it still lasts is for the caller's clock to say.
    #[must_use]
    pub fn lease(&self) -> Option<Lease> {
        let raft = &self.node.raft;
        if raft.state != StateRole::Leader {
            return None;
        }
        let dated_ms = self.earned.dated_ms(raft.term)?;
        Some(Lease { dated_ms, index: LogIndex(raft.raft_log.committed) })
    }

    /// The term as of the last message taken in; [`Group::role`] tells it once it is brought out.
    #[must_use]
    pub fn term(&self) -> Term {
        Term(self.node.raft.term)
    }

    pub(crate) fn transfer(&mut self, to: ReplicaId) {
        if self.node.raft.state == StateRole::Leader && to != self.replica && self.conf.voters.contains(&to) {
            self.earned.offer(self.node.raft.term);
            self.node.transfer_leader(to.0);
        }
    }

    /// Whether a leader may count on this replica.
    fn is_promised(&self) -> bool {
        self.silent_ticks < self.election_ticks
    }

    /// Campaigns without waiting, unless a leader counts on this replica.
    pub(crate) fn campaign(&mut self) {
        if self.node.raft.state != StateRole::Leader
            && self.node.raft.promotable()
            && !self.must_not_win_yet()
            && !self.is_promised()
        {
            let _ = self.node.campaign();
        }
    }

    /// Whether a vote for the sender would break a promise. It is not answered, as raft-rs does within its own lease. A candidate of an
    /// older term is: it must learn of the newer one.
    pub(super) fn must_not_vote(&self, message: &Message) -> bool {
        let asks = matches!(message.kind, MessageKind::RequestVote | MessageKind::RequestPreVote);
        asks && message.term.0 >= self.node.raft.term
            && *message.context != *raft::CAMPAIGN_TRANSFER
            && self.is_promised()
    }

    /// What of a message is a leader's voice: its term.
    pub(super) fn voice_of(message: &Message) -> Option<u64> {
        let speaks = matches!(message.kind, MessageKind::Append | MessageKind::Heartbeat | MessageKind::Snapshot);
        speaks.then_some(message.term.0)
    }

    /// A leader's message was taken in; those of older terms count for nothing.
    pub(super) fn heard_leader(&mut self, term: u64) {
        if self.node.raft.term == term && self.node.raft.state == StateRole::Follower {
            self.silent_ticks = 0;
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
    fn a_lease_is_dated_when_its_round_was_asked_and_lasts_less_than_its_length() {
        let lease = Lease { dated_ms: 1_000, index: LogIndex(1) };
        assert_eq!((lease.left_ms(1_000, 265), lease.left_ms(1_264, 265), lease.left_ms(1_265, 265)), (265, 1, 0));
        assert_eq!((lease.left_ms(999, 265), lease.left_ms(u64::MAX, 265)), (0, 0));
    }

    #[test]
    fn a_late_answer_to_an_old_question_takes_nothing_away() {
        let mut earned = Earned::default();
        earned.asked(2, context(1), 10);
        earned.asked(2, context(2), 20);
        earned.confirmed(2, &context(2));
        earned.confirmed(2, &context(1));
        assert_eq!(earned.dated_ms(2), Some(20));
        earned.confirmed(2, &context(9));
        assert_eq!(earned.dated_ms(2), Some(20));
    }

    #[test]
    fn what_was_asked_in_one_term_earns_nothing_in_another() {
        let mut earned = Earned::default();
        earned.asked(2, context(1), 10);
        earned.confirmed(3, &context(1));
        assert_eq!((earned.dated_ms(2), earned.dated_ms(3)), (None, None));
        earned.asked(3, context(2), 20);
        earned.confirmed(3, &context(2));
        assert_eq!((earned.dated_ms(2), earned.dated_ms(3), earned.dated_ms(4)), (None, Some(20), None));
    }

    #[test]
    fn an_offered_leadership_earns_nothing_more_in_its_term() {
        let mut earned = Earned::default();
        earned.asked(2, context(1), 10);
        earned.offer(2);
        earned.confirmed(2, &context(1));
        earned.asked(2, context(2), 20);
        earned.confirmed(2, &context(2));
        assert_eq!(earned.dated_ms(2), None);
        earned.asked(3, context(3), 30);
        earned.confirmed(3, &context(3));
        assert_eq!(earned.dated_ms(3), Some(30));
    }

    #[test]
    fn dates_of_rounds_that_nobody_answers_do_not_pile_up() {
        let mut earned = Earned::default();
        (0..100).for_each(|number| earned.asked(2, context(number), 10 + u64::from(number)));
        assert_eq!(earned.asked.len(), ASKED_MAX);
        earned.confirmed(2, &context(0));
        assert_eq!(earned.dated_ms(2), None);
    }
}
