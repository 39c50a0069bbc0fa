//! Threads for what takes long: building checkpoints, feeding the view, loading records, reclaiming log space.

use std::{
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use flotilla_failpoints::{Place, reached};
use flotilla_storage::{EngineError, Log, StateEngine};
use flotilla_types::{Checkpoint, ObjectId, ReplicaId};
use parking_lot::Mutex;

use super::{Inbox, apply};
use crate::{Input, Load};

/// Two, so that a long load does not hold back every checkpoint.
pub(super) const THREADS: usize = 2;
const RECLAIM_EVERY: Duration = Duration::from_secs(5);
/// How long to wait before a checkpoint that could not be built is tried again.
const BUILD_RETRY: Duration = Duration::from_secs(1);
/// Tries before a checkpoint that cannot be built ends the node: its log could only grow.
const BUILD_TRIES_MAX: u32 = 60;

pub(super) enum Job {
    Build { replica: ReplicaId },
    Settle { replica: ReplicaId, checkpoint: Checkpoint },
    Release { objects: Vec<ObjectId> },
    Load(Load),
    Stop,
}

/// What to do when a checkpoint could not be built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// The replica was destroyed meanwhile.
    Nothing,
    /// The disk may recover.
    Retry,
    /// What the checkpoint rests on is damaged, here only: the replica must be replaced from its peers. Trying again would meet the same
    /// bytes, hold back the checkpoints of others, and do so again after each restart.
    GiveUp,
    /// The disk does not recover, and the log can only grow.
    End,
}

impl Next {
    fn after(error: &EngineError, attempt: u32) -> Self {
        match error {
            EngineError::NotOpen(_) => Self::Nothing,
            EngineError::Object(_) | EngineError::Mismatch(_) | EngineError::Corrupt { .. } => Self::GiveUp,
            EngineError::Io(_) | EngineError::View(_) if attempt < BUILD_TRIES_MAX => Self::Retry,
            EngineError::Io(_) | EngineError::View(_) => Self::End,
        }
    }
}

pub(super) struct Workers {
    pub(super) jobs: mpsc::Receiver<Job>,
    pub(super) engine: Arc<dyn StateEngine>,
    pub(super) log: Arc<dyn Log>,
    pub(super) inbox: Inbox,
    pub(super) apply: mpsc::Sender<apply::Job>,
    pub(super) fatal: Arc<dyn Fn(&str) + Send + Sync>,
}

pub(super) struct Shared {
    jobs: Mutex<mpsc::Receiver<Job>>,
    engine: Arc<dyn StateEngine>,
    log: Arc<dyn Log>,
    inbox: Inbox,
    apply: mpsc::Sender<apply::Job>,
    fatal: Arc<dyn Fn(&str) + Send + Sync>,
    reclaimed: Mutex<Instant>,
}

impl Workers {
    pub(super) fn share(self) -> Shared {
        Shared {
            jobs: Mutex::new(self.jobs),
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
            let job = self.jobs.lock().recv_timeout(RECLAIM_EVERY);
            match job {
                Ok(Job::Stop) | Err(mpsc::RecvTimeoutError::Disconnected) => return,
                Ok(job) => self.work(job),
                Err(mpsc::RecvTimeoutError::Timeout) => {}
            }
            self.reclaim_if_due();
        }
    }

    fn work(&self, job: Job) {
        match job {
            Job::Build { replica } => self.build(replica),
            Job::Settle { replica, checkpoint } => {
                reached(Place::CheckpointBeforeSettle);
                match self.engine.settle(replica, &checkpoint) {
                    // Or destroyed meanwhile.
                    Ok(()) | Err(EngineError::NotOpen(_)) => {}
                    // Everything is in the log and in objects; only the view is behind, and the next start rebuilds it.
                    Err(error) => {
                        (self.fatal)(&format!("the view of replica {replica} cannot take a checkpoint: {error}"));
                    }
                }
                reached(Place::CheckpointSettled);
                self.inbox.send(Input::Settled { replica });
            }
            Job::Release { objects } => self.engine.release(&objects),
            Job::Load(load) => {
                let started = Instant::now();
                reached(if load.replaces { Place::SnapshotBeforeInstall } else { Place::SnapshotBeforeLoad });
                let result = load.run(&*self.engine);
                tracing::debug!(replica = %load.replica, elapsed_ms = started.elapsed().as_millis(), ok = result.is_ok(), "loaded records");
                if load.replaces {
                    reached(Place::SnapshotInstalled);
                }
                let _ = self.apply.send(apply::Job::Loaded(load, result));
            }
            Job::Stop => {}
        }
    }

    fn build(&self, replica: ReplicaId) {
        for attempt in 1.. {
            let started = Instant::now();
            reached(Place::CheckpointBeforeBuild);
            match self.engine.build(replica) {
                Ok(checkpoint) => {
                    reached(Place::CheckpointBuilt);
                    metrics::histogram!("flotilla_checkpoint_seconds").record(started.elapsed().as_secs_f64());
                    self.inbox.send(Input::Built { replica, checkpoint: Some(checkpoint) });
                    return;
                }
                Err(error) => match Next::after(&error, attempt) {
                    Next::Nothing => return,
                    Next::Retry => {
                        tracing::warn!(%replica, %error, attempt, "a checkpoint could not be built; trying again");
                        std::thread::sleep(BUILD_RETRY);
                    }
                    Next::GiveUp => {
                        tracing::error!(%replica, %error, "no checkpoint can be built of what is left of a replica");
                        self.inbox.send(Input::Broken { replica });
                        return;
                    }
                    Next::End => {
                        (self.fatal)(&format!("no checkpoint of replica {replica} can be built: {error}"));
                        return;
                    }
                },
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_object_costs_the_replica_and_a_disk_that_stays_broken_the_node() {
        let io = EngineError::from(std::io::Error::other("full"));
        assert_eq!(Next::after(&io, 1), Next::Retry);
        assert_eq!(Next::after(&io, BUILD_TRIES_MAX), Next::End);
        assert_eq!(Next::after(&EngineError::Object(ObjectId::of(b"x")), 1), Next::GiveUp);
        let reason = "damaged";
        assert_eq!(Next::after(&EngineError::Corrupt { replica: ReplicaId(1), reason }, 1), Next::GiveUp);
        assert_eq!(Next::after(&EngineError::NotOpen(ReplicaId(1)), 1), Next::Nothing);
    }
}
