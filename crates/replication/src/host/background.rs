//! Threads for what takes long: building checkpoints, feeding the view, loading records, reclaiming log space.

use std::{
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use flotilla_failpoints::{Place, is_enabled, reached};
use flotilla_storage::{Log, StateEngine};
use parking_lot::Mutex;

use super::{Inbox, Reply, apply, desk::Desk};
use crate::{
    Input,
    work::{BUILD_RETRY_MS, Job, Worked},
};

/// Two, so that a long load does not hold back every checkpoint.
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
    pub(super) apply: Arc<Desk<apply::Apply>>,
    pub(super) fatal: Arc<dyn Fn(&str) + Send + Sync>,
}

pub(super) struct Shared {
    orders: Mutex<mpsc::Receiver<Order>>,
    engine: Arc<dyn StateEngine>,
    log: Arc<dyn Log>,
    inbox: Inbox,
    apply: Arc<Desk<apply::Apply>>,
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
            // Whoever holds the lock waits for the next job; the other one works.
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
            Job::Settle { .. } => Some("settle"),
            Job::Load(_) => Some("load"),
            Job::Release { .. } => None,
        };
        let (before, after) = if is_enabled() { places(&job) } else { Default::default() };
        before.into_iter().for_each(reached);
        let started = Instant::now();
        let worked = job.run::<Reply>(&*self.engine);
        after.filter(|_| !matches!(worked, Worked::Retry(_))).into_iter().for_each(reached);
        match kind {
            Some("build") if matches!(worked, Worked::Report(_)) => {
                metrics::histogram!("flotilla_checkpoint_seconds").record(started.elapsed().as_secs_f64());
            }
            Some(kind) => tracing::debug!(kind, elapsed_ms = started.elapsed().as_millis(), "a slow job is done"),
            None => {}
        }
        match worked {
            Worked::Done => {}
            Worked::Report(input) => self.inbox.send(input),
            Worked::Loaded(load, result) => {
                self.apply.leave(apply::Job::Loaded(load, result));
            }
            Worked::Retry(job) => {
                std::thread::sleep(Duration::from_millis(BUILD_RETRY_MS));
                self.work(job);
            }
            Worked::Fatal { replica, error } => {
                (self.fatal)(&format!("replica {replica} cannot be checkpointed any more: {error}"));
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
                    self.inbox.send(Input::WantCheckpoint { replica });
                }
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "log space could not be reclaimed"),
        }
    }
}

/// Where the node may end before and after this job.
fn places(job: &Job) -> (Option<Place>, Option<Place>) {
    match job {
        Job::Build { .. } => (Some(Place::CheckpointBeforeBuild), Some(Place::CheckpointBuilt)),
        Job::Settle { .. } => (Some(Place::CheckpointBeforeSettle), Some(Place::CheckpointSettled)),
        Job::Load(load) if load.replaces => (Some(Place::SnapshotBeforeInstall), Some(Place::SnapshotInstalled)),
        Job::Load(_) => (Some(Place::SnapshotBeforeLoad), None),
        Job::Release { .. } => (None, None),
    }
}
