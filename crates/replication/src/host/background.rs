//! The background threads, for slow jobs: building and installing checkpoints, loading records, reclaiming
//! log space; and one for compactions, so that they hold back nothing else.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use flotilla_failpoints::{Place, is_enabled, reached};
use flotilla_storage::{Log, LogError, Remedy, StateEngine, remedy};
use parking_lot::Mutex;

use super::{Inbox, Reply, apply, inline::InlineExecutor};
use crate::{
    Input,
    work::{Job, JobResult},
};

/// Number of threads. Two, so that a long load does not hold back every checkpoint.
pub(super) const THREADS: usize = 2;
const RECLAIM_EVERY: Duration = Duration::from_secs(5);

pub(super) enum Order {
    Work(Box<Job>),
    /// Not before this time; other orders meanwhile.
    WorkAt(Instant, Box<Job>),
    Stop,
}

/// The orders that wait. A replica has one job at a time, so at most one for each replica is delayed.
struct Queue {
    orders: mpsc::Receiver<Order>,
    delayed: Vec<(Instant, Box<Job>)>,
}

#[derive(Debug)]
enum Next {
    Work(Box<Job>),
    /// Nothing was due.
    Nothing,
    Stop,
}

impl Queue {
    /// Waits for the next order, or for a job that was delayed, but no longer than `wait_max`.
    fn next(&mut self, wait_max: Duration) -> Next {
        let until = Instant::now() + wait_max;
        loop {
            let now = Instant::now();
            if let Some(due) = self.delayed.iter().position(|(at, _)| *at <= now) {
                return Next::Work(self.delayed.swap_remove(due).1);
            }
            let wake = self.delayed.iter().map(|(at, _)| *at).min().map_or(until, |at| at.min(until));
            match self.orders.recv_timeout(wake.saturating_duration_since(now)) {
                Ok(Order::Work(job)) => return Next::Work(job),
                Ok(Order::WorkAt(at, job)) => self.delayed.push((at, job)),
                Ok(Order::Stop) | Err(mpsc::RecvTimeoutError::Disconnected) => return Next::Stop,
                Err(mpsc::RecvTimeoutError::Timeout) if wake < until => {}
                Err(mpsc::RecvTimeoutError::Timeout) => return Next::Nothing,
            }
        }
    }
}

pub(super) struct Workers {
    pub(super) orders: mpsc::Receiver<Order>,
    /// Sends an order to itself. A thread that waits for orders wakes up and learns of the delay.
    pub(super) delayed: mpsc::Sender<Order>,
    pub(super) engine: Arc<dyn StateEngine>,
    pub(super) log: Arc<dyn Log>,
    pub(super) inbox: Inbox,
    pub(super) apply: Arc<InlineExecutor<apply::Apply>>,
    pub(super) fatal: Arc<dyn Fn(&str) + Send + Sync>,
    /// Set when the host stops.
    pub(super) stopped: Arc<AtomicBool>,
    /// Whether these threads reclaim log space.
    pub(super) reclaim: bool,
}

pub(super) struct Shared {
    queue: Mutex<Queue>,
    delayed: mpsc::Sender<Order>,
    engine: Arc<dyn StateEngine>,
    log: Arc<dyn Log>,
    inbox: Inbox,
    apply: Arc<InlineExecutor<apply::Apply>>,
    fatal: Arc<dyn Fn(&str) + Send + Sync>,
    stopped: Arc<AtomicBool>,
    reclaim: bool,
    reclaimed: Mutex<Instant>,
}

impl Workers {
    pub(super) fn share(self) -> Shared {
        Shared {
            queue: Mutex::new(Queue { orders: self.orders, delayed: Vec::new() }),
            delayed: self.delayed,
            engine: self.engine,
            log: self.log,
            inbox: self.inbox,
            apply: self.apply,
            fatal: self.fatal,
            stopped: self.stopped,
            reclaim: self.reclaim,
            reclaimed: Mutex::new(Instant::now()),
        }
    }
}

impl Shared {
    pub(super) fn run(&self) {
        loop {
            // One thread waits for the next job under the lock, while the other works.
            let next = self.queue.lock().next(RECLAIM_EVERY);
            match next {
                Next::Work(job) => self.work(*job),
                Next::Nothing => {}
                Next::Stop => return,
            }
            self.reclaim_if_due();
        }
    }

    fn work(&self, job: Job) {
        let kind = match &job {
            Job::Build { .. } => Some("build"),
            Job::InstallCheckpoint { .. } => Some("install"),
            Job::Load(_) => Some("load"),
            Job::Compact { .. } => Some("compact"),
            Job::Count(_) => Some("count"),
            Job::Expect { .. } | Job::Destroy { .. } => None,
        };
        let (before, after) = if is_enabled() { places(&job) } else { Default::default() };
        before.into_iter().for_each(reached);
        let started = Instant::now();
        let result = job.run::<Reply>(&*self.engine, &|| self.stopped.load(Ordering::Relaxed));
        after.filter(|_| !matches!(result, JobResult::Retry { .. })).into_iter().for_each(reached);
        if matches!(kind, Some("install" | "compact")) {
            let folds = self.engine.fold_counts();
            metrics::counter!("flotilla_folds_total").absolute(folds.made);
            metrics::counter!("flotilla_folds_skipped_total").absolute(folds.skipped);
        }
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
            JobResult::Retry { job, after_ms } => {
                let at = Instant::now() + Duration::from_millis(after_ms);
                let _ = self.delayed.send(Order::WorkAt(at, Box::new(job)));
            }
            JobResult::Fatal { replica, error } => {
                (self.fatal)(&format!("replica {replica} can be neither loaded nor checkpointed: {error}"));
            }
        }
    }

    fn reclaim_if_due(&self) {
        let mut reclaimed = self.reclaimed.lock();
        if !self.reclaim || reclaimed.elapsed() < RECLAIM_EVERY {
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
            Err(error) => self.on_reclaim_failure(&error),
        }
    }

    /// Damage is only reported: it costs its replica once a read needs the damaged entries.
    fn on_reclaim_failure(&self, error: &LogError) {
        tracing::warn!(%error, "log space could not be reclaimed");
        if remedy(error) == Remedy::EndNode {
            (self.fatal)(&error.to_string());
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
        Job::Compact { .. } | Job::Count(_) | Job::Expect { .. } | Job::Destroy { .. } => (None, None),
    }
}

#[cfg(test)]
mod tests {
    use flotilla_types::{CheckpointFormat, ReplicaId};

    use super::*;

    const LONG: Duration = Duration::from_secs(3_600);

    fn job(replica: u64) -> Box<Job> {
        Box::new(Job::Build { replica: ReplicaId(replica), format: CheckpointFormat::Pieces, failures: 0 })
    }

    #[track_caller]
    fn is_build_of(next: &Next, expected: u64) {
        assert!(
            matches!(next, Next::Work(job) if matches!(**job, Job::Build { replica, .. } if replica.0 == expected))
        );
    }

    #[test]
    fn a_job_that_waits_to_be_retried_holds_back_no_other() {
        let (sender, orders) = mpsc::channel();
        let mut queue = Queue { orders, delayed: Vec::new() };
        sender.send(Order::WorkAt(Instant::now() + LONG, job(1))).unwrap();
        sender.send(Order::Work(job(2))).unwrap();
        is_build_of(&queue.next(LONG), 2);
        assert!(matches!(queue.next(Duration::ZERO), Next::Nothing));
        sender.send(Order::Stop).unwrap();
        assert!(matches!(queue.next(LONG), Next::Stop));
    }

    #[test]
    fn a_delayed_job_runs_when_it_is_due() {
        let (sender, orders) = mpsc::channel();
        let mut queue = Queue { orders, delayed: Vec::new() };
        sender.send(Order::WorkAt(Instant::now() + Duration::from_millis(20), job(1))).unwrap();
        sender.send(Order::WorkAt(Instant::now(), job(2))).unwrap();
        is_build_of(&queue.next(LONG), 2);
        assert!(matches!(queue.next(Duration::ZERO), Next::Nothing));
        is_build_of(&queue.next(LONG), 1);
    }
}
