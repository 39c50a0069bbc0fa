//! The thread that owns the state machines.

use std::sync::{Arc, mpsc};

use flotilla_failpoints::{Place, is_enabled, reached};
use flotilla_storage::EngineError;
use flotilla_types::{EntryKind, ReplicaId};
use tokio::sync::oneshot;

use super::{Inbox, Reply, background};
use crate::{Applied, Applier, ApplyTask, Held, Input, Load, clock, work};

pub(super) enum Job {
    Task(ApplyTask<Reply>),
    Loaded(Load, Result<(), EngineError>),
    /// What a replica holds; `None` while it has nothing.
    Look(ReplicaId, oneshot::Sender<Option<Held>>),
    Stop,
}

/// Words for the core that wait for more of them.
const TOLD_MAX: usize = 64;

pub(super) struct Apply {
    pub(super) applier: Applier<Reply>,
    pub(super) jobs: mpsc::Receiver<Job>,
    pub(super) inbox: Inbox,
    pub(super) background: mpsc::Sender<background::Order>,
    pub(super) fatal: Arc<dyn Fn(&str) + Send + Sync>,
}

impl Apply {
    pub(super) fn run(mut self) {
        let mut told = Vec::new();
        while let Some(job) = self.next_job(&mut told) {
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
                Job::Stop => return,
            }
            if let Some(error) = applied.fatal {
                (self.fatal)(&format!("{error}; the next start rebuilds the view"));
                return;
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
    }

    /// The next job. What the core is told waits while jobs do, because each word wakes the raft thread.
    fn next_job(&self, told: &mut Vec<Input<Reply>>) -> Option<Job> {
        if told.len() < TOLD_MAX
            && let Ok(job) = self.jobs.try_recv()
        {
            return Some(job);
        }
        told.drain(..).for_each(|input| self.inbox.send(input));
        self.jobs.recv().ok()
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
