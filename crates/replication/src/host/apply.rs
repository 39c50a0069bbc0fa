//! The state machines: small entries in place, all else on their own thread.

use std::sync::{Arc, mpsc};

use flotilla_failpoints::{Place, is_enabled, reached};
use flotilla_storage::EngineError;
use flotilla_types::{Entry, EntryKind, ReplicaId};
use tokio::sync::oneshot;

use super::{
    Inbox, Reply, background,
    desk::{Progress, Worker},
};
use crate::{Applied, Applier, ApplyTask, Held, Load, clock, work};

pub(super) enum Job {
    Task(ApplyTask<Reply>),
    Loaded(Load, Result<(), EngineError>),
    /// What a replica holds; `None` while it has nothing.
    Look(ReplicaId, oneshot::Sender<Option<Held>>),
}

/// Entries of more bytes are not applied in place: they may touch many keys that only the disk knows. Nor are queries, which
/// may look at far more than they say.
const SMALL_BYTES_MAX: usize = 16 << 10;

pub(super) struct Apply {
    pub(super) applier: Applier<Reply>,
    pub(super) inbox: Inbox,
    pub(super) background: mpsc::Sender<background::Order>,
    pub(super) fatal: Arc<dyn Fn(&str) + Send + Sync>,
}

impl Worker for Apply {
    type Job = Job;

    const JOBS_MAX: usize = 64;

    fn is_small(job: &Job) -> bool {
        let Job::Task(ApplyTask::Apply { entries, .. }) = job else { return false };
        entries.iter().map(Entry::size_bytes).sum::<usize>() <= SMALL_BYTES_MAX
    }

    fn work(&mut self, jobs: Vec<Job>) -> Progress {
        // What the core is told waits for all jobs, because each word wakes the raft thread.
        let mut told = Vec::new();
        for job in jobs {
            let mut applied = Applied::default();
            match job {
                Job::Task(task) => {
                    let (before, after) = if is_enabled() { places(&task) } else { Default::default() };
                    before.into_iter().for_each(reached);
                    self.applier.run(clock::wall_ms(), task, &mut applied);
                    after.into_iter().for_each(reached);
                }
                Job::Loaded(load, result) => {
                    reached(Place::ApplyLoaded);
                    self.applier.loaded(clock::wall_ms(), &load, result, &mut applied);
                }
                Job::Look(replica, reply) => {
                    let _ = reply.send(self.applier.look(replica));
                }
            }
            if let Some(error) = applied.fatal {
                (self.fatal)(&format!("{error}; the next start rebuilds the view"));
                return Progress::Ended;
            }
            for load in applied.loads {
                let _ = self.background.send(background::Order::Work(Box::new(work::Job::Load(load))));
            }
            let answers = !applied.replies.is_empty();
            for (reply, answer) in applied.replies {
                let _ = reply.send(answer);
            }
            if answers {
                reached(Place::ApplyAnswered);
            }
            told.extend(applied.inputs);
        }
        told.into_iter().for_each(|input| self.inbox.send(input));
        Progress::Done
    }
}

/// Where the node may end before and after this task.
fn places(task: &ApplyTask<Reply>) -> (Vec<Place>, Option<Place>) {
    match task {
        ApplyTask::Apply { entries, .. } => {
            let mut before = vec![Place::ApplyBefore];
            if entries.iter().any(|entry| entry.kind == EntryKind::ConfChange) {
                before.push(Place::ApplyConfChange);
            }
            (before, Some(Place::ApplyDone))
        }
        ApplyTask::Freeze { .. } => (vec![Place::ApplyBeforeFreeze], Some(Place::ApplyFrozen)),
        ApplyTask::Open { .. } => (vec![Place::ApplyOpen], None),
        ApplyTask::Close { .. } => (vec![Place::ApplyClose], None),
        ApplyTask::Read { .. } => (Vec::new(), None),
    }
}
