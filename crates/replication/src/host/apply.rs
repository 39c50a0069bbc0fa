//! Runs the state machines: small entries inline on the raft thread, everything else on a thread of their
//! own, and what may wait for the disk in the pool.

use std::sync::{Arc, mpsc};

use flotilla_failpoints::{Place, is_enabled, reached};
use flotilla_storage::MachineError;
use flotilla_types::{Entry, EntryKind, ReplicaId};
use tokio::sync::oneshot;

use super::{
    Inbox, Reply, background,
    inline::{Progress, Worker},
    pool::Pool,
};
use crate::{Applied, Applier, ApplyTask, Contents, Fingerprints, Load, Loaded, Returned, clock, work};

pub(super) enum Job {
    Task(ApplyTask<Reply>),
    Loaded(Load, Result<Loaded, MachineError>),
    Returned(Returned<Reply>),
    /// Ends snapshots that were not used for long.
    ExpirePins,
    /// Report a replica's contents.
    Contents(ReplicaId, oneshot::Sender<Contents>),
    /// Report what a replica says of its state.
    Fingerprints(ReplicaId, oneshot::Sender<Option<Fingerprints>>),
}

/// Bytes of entries that may be applied inline; larger ones may touch many keys. Queries are never run inline:
/// they may read far more than their own size.
const INLINE_BYTES_MAX: usize = 16 << 10;

pub(super) struct Apply {
    pub(super) applier: Applier<Reply>,
    pub(super) inbox: Inbox,
    pub(super) background: mpsc::Sender<background::Order>,
    pub(super) pool: Arc<Pool>,
    pub(super) fatal: Arc<dyn Fn(&str) + Send + Sync>,
}

impl Worker for Apply {
    type Job = Job;

    const JOBS_MAX: usize = 64;

    fn may_run_inline(job: &Job) -> bool {
        let Job::Task(ApplyTask::Apply { entries, .. }) = job else { return false };
        entries.iter().map(Entry::size_bytes).sum::<usize>() <= INLINE_BYTES_MAX
    }

    fn work(&mut self, jobs: Vec<Job>) -> Progress {
        // Inputs for the core are sent after all jobs, because each send wakes the raft thread.
        let mut inputs = Vec::new();
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
                Job::Returned(returned) => {
                    self.applier.returned(clock::wall_ms(), returned, &mut applied);
                }
                Job::ExpirePins => self.applier.expire_pins(clock::wall_ms()),
                Job::Contents(replica, reply) => {
                    let _ = reply.send(self.applier.contents(replica));
                }
                Job::Fingerprints(replica, reply) => {
                    let _ = reply.send(self.applier.fingerprints(replica));
                }
            }
            if let Some(error) = applied.fatal {
                (self.fatal)(&error.to_string());
                return Progress::Ended;
            }
            let loads = applied.loads.into_iter().map(work::Job::Load);
            let destroyed = applied.destroyed.into_iter().map(|replica| work::Job::Destroy { replica, failures: 0 });
            for job in loads.chain(destroyed) {
                let _ = self.background.send(background::Order::Work(Box::new(job)));
            }
            applied.slow.into_iter().for_each(|slow| self.pool.push(slow));
            let answers = !applied.replies.is_empty();
            for (reply, answer) in applied.replies {
                let _ = reply.send(answer);
            }
            if answers {
                reached(Place::ApplyAnswered);
            }
            inputs.extend(applied.inputs);
        }
        inputs.into_iter().for_each(|input| self.inbox.send(input));
        Progress::Done
    }
}

/// The failpoints before and after this task.
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
        ApplyTask::Read { .. } | ApplyTask::CountAhead { .. } => (Vec::new(), None),
    }
}
