//! The background threads, for slow jobs: building and installing checkpoints, loading records, reclaiming
//! log space.

use std::{
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use flotilla_failpoints::{Place, is_enabled, reached};
use flotilla_storage::{Log, StateEngine};
use parking_lot::Mutex;

use super::{Inbox, Reply, apply, inline::InlineExecutor};
use crate::{
    Input,
    work::{BUILD_RETRY_MS, Job, JobResult},
};

/// Number of threads. Two, so that a long load does not hold back every checkpoint.
pub(super) const THREADS: usize = 2;
const RECLAIM_EVERY: Duration = Duration::from_secs(5);

pub(super) enum Order {
    Work(Box<Job>),
    Stop,
}

pub(super) struct Workers {
    pub(super) orders: mpsc::Receiver<Order>,
    pub(super) engine: Arc<dyn StateEngine>,
    pub(super) log: Arc<dyn Log>,
    pub(super) inbox: Inbox,
    pub(super) apply: Arc<InlineExecutor<apply::Apply>>,
    pub(super) fatal: Arc<dyn Fn(&str) + Send + Sync>,
}

pub(super) struct Shared {
    orders: Mutex<mpsc::Receiver<Order>>,
    engine: Arc<dyn StateEngine>,
    log: Arc<dyn Log>,
    inbox: Inbox,
    apply: Arc<InlineExecutor<apply::Apply>>,
    fatal: Arc<dyn Fn(&str) + Send + Sync>,
    reclaimed: Mutex<Instant>,
}

impl Workers {
    pub(super) fn share(self) -> Shared {
        Shared {
            orders: Mutex::new(self.orders),
            engine: self.engine,
            log: self.log,
            inbox: self.inbox,
            apply: self.apply,
            fatal: self.fatal,
            reclaimed: Mutex::new(Instant::now()),
        }
    }
}

impl Shared {
    pub(super) fn run(&self) {
        loop {
            // One thread waits for the next job under the lock, while the other works.
            let order = self.orders.lock().recv_timeout(RECLAIM_EVERY);
            match order {
                Ok(Order::Stop) | Err(mpsc::RecvTimeoutError::Disconnected) => return,
                Ok(Order::Work(job)) => self.work(*job),
                Err(mpsc::RecvTimeoutError::Timeout) => {}
            }
            self.reclaim_if_due();
        }
    }

    fn work(&self, job: Job) {
        let kind = match &job {
            Job::Build { .. } => Some("build"),
            Job::InstallCheckpoint { .. } => Some("install"),
            Job::Load(_) => Some("load"),
            Job::Release { .. } => None,
        };
        let (before, after) = if is_enabled() { places(&job) } else { Default::default() };
        before.into_iter().for_each(reached);
        let started = Instant::now();
        let result = job.run::<Reply>(&*self.engine);
        after.filter(|_| !matches!(result, JobResult::Retry(_))).into_iter().for_each(reached);
        match kind {
            Some("build") if matches!(result, JobResult::Report(_)) => {
                metrics::histogram!("flotilla_checkpoint_seconds").record(started.elapsed().as_secs_f64());
            }
            Some(kind) => tracing::debug!(kind, elapsed_ms = started.elapsed().as_millis(), "a slow job is done"),
            None => {}
        }
        match result {
            JobResult::Done => {}
            JobResult::Report(input) => self.inbox.send(input),
            JobResult::Loaded(load, result) => {
                self.apply.enqueue(apply::Job::Loaded(load, result));
            }
            JobResult::Retry(job) => {
                std::thread::sleep(Duration::from_millis(BUILD_RETRY_MS));
                self.work(job);
            }
            JobResult::Fatal { replica, error } => {
                (self.fatal)(&format!("replica {replica} can no longer be checkpointed: {error}"));
            }
        }
    }

    fn reclaim_if_due(&self) {
        let mut reclaimed = self.reclaimed.lock();
        if reclaimed.elapsed() < RECLAIM_EVERY {
            return;
        }
        *reclaimed = Instant::now();
        drop(reclaimed);
        reached(Place::RaftLogBeforeReclaim);
        let reclaimed = self.log.reclaim();
        reached(Place::RaftLogReclaimed);
        match reclaimed {
            Ok(holding) if !holding.is_empty() => {
                tracing::debug!(?holding, "replicas hold back log space");
                for replica in holding {
                    self.inbox.send(Input::ReleaseLog { replica });
                }
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "log space could not be reclaimed"),
        }
    }
}

/// The failpoints before and after this job.
fn places(job: &Job) -> (Option<Place>, Option<Place>) {
    match job {
        Job::Build { .. } => (Some(Place::CheckpointBeforeBuild), Some(Place::CheckpointBuilt)),
        Job::InstallCheckpoint { .. } => (Some(Place::CheckpointBeforeInstall), Some(Place::CheckpointInstalled)),
        Job::Load(load) if load.replaces => (Some(Place::SnapshotBeforeInstall), Some(Place::SnapshotInstalled)),
        Job::Load(_) => (Some(Place::SnapshotBeforeLoad), None),
        Job::Release { .. } => (None, None),
    }
}
