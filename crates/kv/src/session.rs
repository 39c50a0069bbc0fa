//! Sessions remember the outcomes of commands, so that duplicates are applied once.
//!
//! Invariants: a command that was applied in a session is never applied again. Its outcome is kept until the
//! shard's clock passes the command's expiry (from then on the command itself is refused) or the session
//! acknowledges it (from then on the sequence number is refused). The session, with its acknowledged sequence
//! number, is kept until the latest expiry of all its commands has passed. Pruning happens at fixed points of
//! the log, in amortised O(log n) per command.
//!
//! It does not decide whether a command has expired; `machine` does that first.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use flotilla_types::SessionId;

use crate::{Limits, Refusal};

/// Bytes of an encoded outcome that is remembered, at most; of larger ones, only the fact that the command
/// was applied. Enough for the results of about eighty plain writes.
pub const OUTCOME_BYTES_MAX: usize = 512;
/// Bytes of an encoded outcome besides its results, at most.
pub const OUTCOME_FRAME_BYTES: usize = 12;

/// Whether to apply a command.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// It was not applied before: apply it.
    Apply,
    /// It was applied before, with this encoded outcome.
    Duplicate(Bytes),
    /// Refuse it.
    Refuse(Refusal),
}

/// An applied command, as remembered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Remembered {
    pub(crate) expires_at_ms: u64,
    /// `None` when the outcome was too large to keep.
    pub(crate) outcome: Option<Bytes>,
}

/// One session.
#[derive(Debug, Default)]
pub(crate) struct Session {
    pub(crate) acked_below: u64,
    /// The latest expiry of all commands of the session.
    pub(crate) keep_until_ms: u64,
    pub(crate) outcomes: BTreeMap<u64, Remembered>,
}

/// No command has this sequence number; in the queue it stands for the session itself.
const WHOLE_SESSION: u64 = 0;

/// All sessions of a shard.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    sessions: BTreeMap<SessionId, Session>,
    /// Expiry queue (time, session, sequence): one item per outcome at its expiry, and one per session at or
    /// before its `keep_until_ms`. The session's item is postponed when it is due, rather than with every
    /// command.
    queue: BTreeSet<(u64, SessionId, u64)>,
    outcomes: usize,
}

impl Sessions {
    /// Looks a command up, and drops the outcomes that it acknowledges.
    pub(crate) fn admit(&mut self, limits: &Limits, id: SessionId, sequence: u64, acked_below: u64) -> Admission {
        if let Some(session) = self.sessions.get_mut(&id) {
            if acked_below > session.acked_below {
                session.acked_below = acked_below;
                while let Some(first) = session.outcomes.first_entry().filter(|first| *first.key() < acked_below) {
                    let (sequence, remembered) = first.remove_entry();
                    self.queue.remove(&(remembered.expires_at_ms, id, sequence));
                    self.outcomes -= 1;
                }
            }
            if let Some(remembered) = session.outcomes.get(&sequence) {
                return match &remembered.outcome {
                    Some(outcome) => Admission::Duplicate(outcome.clone()),
                    None => Admission::Refuse(Refusal::OutcomeForgotten),
                };
            }
            if sequence < session.acked_below {
                return Admission::Refuse(Refusal::OutcomeForgotten);
            }
            if session.outcomes.len() >= limits.outcomes_per_session_max as usize {
                return Admission::Refuse(Refusal::SessionFull);
            }
        } else if self.sessions.len() >= limits.sessions_max as usize {
            return Admission::Refuse(Refusal::SessionFull);
        }
        if self.outcomes >= limits.outcomes_max as usize {
            return Admission::Refuse(Refusal::SessionFull);
        }
        Admission::Apply
    }

    /// Remembers a command that [`admit`](Self::admit) accepted, with its encoded outcome.
    pub(crate) fn remember(
        &mut self,
        id: SessionId,
        sequence: u64,
        acked_below: u64,
        expires_at_ms: u64,
        outcome: &Bytes,
    ) {
        let outcome = (outcome.len() <= OUTCOME_BYTES_MAX).then(|| outcome.clone());
        let session = self.sessions.entry(id).or_insert_with(|| {
            self.queue.insert((expires_at_ms, id, WHOLE_SESSION));
            Session { acked_below, ..Session::default() }
        });
        session.keep_until_ms = session.keep_until_ms.max(expires_at_ms);
        session.outcomes.insert(sequence, Remembered { expires_at_ms, outcome });
        self.queue.insert((expires_at_ms, id, sequence));
        self.outcomes += 1;
    }

    /// Drops outcomes and sessions that expired before `now_ms`.
    pub(crate) fn expire(&mut self, now_ms: u64) {
        while let Some(&(at_ms, id, sequence)) = self.queue.first().filter(|(at_ms, ..)| *at_ms < now_ms) {
            self.queue.remove(&(at_ms, id, sequence));
            let Some(session) = self.sessions.get_mut(&id) else { continue };
            if sequence != WHOLE_SESSION {
                session.outcomes.remove(&sequence);
                self.outcomes -= 1;
            } else if session.keep_until_ms < now_ms {
                // All its outcomes have expired too; queue items of theirs at the same time find no session.
                self.outcomes -= session.outcomes.len();
                self.sessions.remove(&id);
            } else {
                self.queue.insert((session.keep_until_ms, id, WHOLE_SESSION));
            }
        }
    }

    /// Lets sessions and outcomes that would be kept for longer end at `end_ms`.
    pub(crate) fn end_by(&mut self, end_ms: u64) {
        let sessions = std::mem::take(self).sessions;
        for (id, mut session) in sessions {
            session.keep_until_ms = session.keep_until_ms.min(end_ms);
            for outcome in session.outcomes.values_mut() {
                outcome.expires_at_ms = outcome.expires_at_ms.min(end_ms);
            }
            self.restore(id, session);
        }
    }

    /// Adds the sessions of another shard, which becomes part of this one. A command is in both if it was applied before
    /// one of them was split off the other, or has keys of neither.
    pub(crate) fn unite(&mut self, other: Self) {
        let mut sessions = std::mem::take(self).sessions;
        for (id, theirs) in other.sessions {
            let ours = sessions.entry(id).or_default();
            let acked_below = ours.acked_below.max(theirs.acked_below);
            let mut outcomes = theirs.outcomes;
            outcomes.append(&mut ours.outcomes);
            *ours = Session {
                acked_below,
                keep_until_ms: ours.keep_until_ms.max(theirs.keep_until_ms),
                outcomes: outcomes.split_off(&acked_below),
            };
        }
        sessions.into_iter().for_each(|(id, session)| self.restore(id, session));
    }

    /// Every session, ascending, for a checkpoint.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (SessionId, &Session)> {
        self.sessions.iter().map(|(id, session)| (*id, session))
    }

    /// Restores a session from a checkpoint.
    pub(crate) fn restore(&mut self, id: SessionId, session: Session) {
        self.queue.insert((session.keep_until_ms, id, WHOLE_SESSION));
        self.queue.extend(session.outcomes.iter().map(|(sequence, outcome)| (outcome.expires_at_ms, id, *sequence)));
        self.outcomes += session.outcomes.len();
        self.sessions.insert(id, session);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: SessionId = SessionId(7);

    fn small() -> Limits {
        Limits { sessions_max: 2, outcomes_per_session_max: 3, outcomes_max: 4, ..Limits::default() }
    }

    fn run(sessions: &mut Sessions, id: u64, sequence: u64, acked_below: u64, expires_at_ms: u64) -> Admission {
        let admission = sessions.admit(&small(), SessionId(id), sequence, acked_below);
        if admission == Admission::Apply {
            let outcome = Bytes::from(format!("{id}/{sequence}"));
            sessions.remember(SessionId(id), sequence, acked_below, expires_at_ms, &outcome);
        }
        admission
    }

    #[test]
    fn duplicates_get_the_first_outcome_until_it_is_acknowledged() {
        let mut sessions = Sessions::default();
        assert_eq!(run(&mut sessions, 7, 1, 0, 100), Admission::Apply);
        assert_eq!(run(&mut sessions, 7, 1, 0, 100), Admission::Duplicate(Bytes::from_static(b"7/1")));
        assert_eq!(run(&mut sessions, 7, 2, 2, 100), Admission::Apply);
        assert_eq!(run(&mut sessions, 7, 1, 0, 100), Admission::Refuse(Refusal::OutcomeForgotten));
        assert_eq!((sessions.outcomes, sessions.queue.len()), (1, 2));
    }

    #[test]
    fn a_session_is_kept_until_its_latest_expiry_even_without_outcomes() {
        let mut sessions = Sessions::default();
        run(&mut sessions, 7, 1, 0, 100);
        run(&mut sessions, 7, 2, 2, 50);
        sessions.expire(60);
        assert_eq!(sessions.outcomes, 0);
        // Sequence 1 expires at 100: at 60 a late duplicate must still be refused.
        assert_eq!(run(&mut sessions, 7, 1, 0, 100), Admission::Refuse(Refusal::OutcomeForgotten));
        sessions.expire(100);
        assert_eq!(sessions.sessions.len(), 1);
        sessions.expire(101);
        assert!(sessions.sessions.is_empty() && sessions.queue.is_empty());
    }

    #[test]
    fn large_outcomes_are_forgotten_but_not_applied_again() {
        let mut sessions = Sessions::default();
        sessions.remember(ME, 1, 0, 100, &Bytes::from(vec![0; OUTCOME_BYTES_MAX + 1]));
        assert_eq!(sessions.admit(&small(), ME, 1, 0), Admission::Refuse(Refusal::OutcomeForgotten));
        sessions.remember(ME, 2, 0, 100, &Bytes::from(vec![0; OUTCOME_BYTES_MAX]));
        assert!(matches!(sessions.admit(&small(), ME, 2, 0), Admission::Duplicate(_)));
    }

    #[test]
    fn full_tables_refuse_until_something_is_acknowledged_or_expires() {
        let full = Admission::Refuse(Refusal::SessionFull);
        let mut sessions = Sessions::default();
        for sequence in 1..=3 {
            assert_eq!(run(&mut sessions, 7, sequence, 0, 100), Admission::Apply);
        }
        assert_eq!(run(&mut sessions, 7, 4, 0, 100), full);
        assert_eq!(run(&mut sessions, 8, 1, 0, 200), Admission::Apply);
        assert_eq!(run(&mut sessions, 9, 1, 0, 200), full, "too many sessions");
        assert_eq!(run(&mut sessions, 8, 2, 0, 200), full, "too many outcomes in total");
        assert_eq!(run(&mut sessions, 7, 4, 2, 100), Admission::Apply, "one was acknowledged");
        sessions.expire(101);
        assert_eq!(run(&mut sessions, 9, 1, 0, 200), Admission::Apply, "a session expired");
    }

    #[test]
    fn the_queue_does_not_grow() {
        let mut sessions = Sessions::default();
        for round in 1..1_000 {
            sessions.expire(round);
            run(&mut sessions, 7, round, round, round + 10);
            assert!(sessions.queue.len() <= 2 && sessions.outcomes == 1);
        }
    }
}
