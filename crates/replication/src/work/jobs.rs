//! Slow jobs on the state engine, and what follows from their results.

use std::{
    thread,
    time::{Duration, Instant},
};

use flotilla_storage::{EngineError, MachineError, Remedy, StateEngine, remedy};
use flotilla_types::{Checkpoint, CheckpointFormat, Folding, ObjectId, ReplicaId};

use crate::{Count, Input, Load, Loaded, damage};

/// A pause of a count is at most this long.
const COUNT_PAUSE_MAX: Duration = Duration::from_millis(100);
/// Milliseconds before a failed job is repeated for the first time. Each further pause is twice as long.
const PAUSE_FIRST_MS: u64 = 200;
/// Milliseconds between two tries of a job, at most: soon after space or descriptors are back.
const PAUSE_MS_MAX: u64 = 5_000;
/// Tries of a job, over about a minute, before the node ends: without checkpoints its log and its memtables
/// would only grow.
pub const TRIES_MAX: u32 = 17;

/// Work that must not block the raft or the apply thread.
#[derive(Debug, Clone)]
pub enum Job {
    /// Build the frozen memtable's checkpoint.
    Build {
        /// The replica.
        replica: ReplicaId,
        /// Its format.
        format: CheckpointFormat,
        /// How often this has failed already.
        failures: u32,
    },
    /// A checkpoint that was built here is durable in the log: install it in the engine.
    InstallCheckpoint {
        /// The replica.
        replica: ReplicaId,
        /// The checkpoint.
        checkpoint: Checkpoint,
        /// How often this has failed already.
        failures: u32,
    },
    /// Merge tables of a replica's checkpoint. It may take minutes; meanwhile other jobs of the replica run.
    Compact {
        /// The replica.
        replica: ReplicaId,
        /// Who decides about its folds.
        folding: Folding,
    },
    /// Count what a split would give up. It may take minutes; meanwhile other jobs of the replica run.
    Count(Count),
    /// Load a replica's records and its state machine.
    Load(Load),
    /// What recovered logs refer to should be here.
    Expect {
        /// The objects.
        objects: Vec<ObjectId>,
    },
    /// Remove the records of a destroyed replica.
    Destroy {
        /// The replica.
        replica: ReplicaId,
        /// How often this has failed already.
        failures: u32,
    },
}

/// What follows from a job.
#[derive(Debug)]
pub enum JobResult<T> {
    /// Nothing.
    Done,
    /// An input for the core.
    Report(Input<T>),
    /// A completed load for [`crate::Applier::loaded`].
    Loaded(Load, Result<Loaded, MachineError>),
    /// Run the job again after a pause, and other jobs meanwhile.
    Retry {
        /// The job.
        job: Job,
        /// The pause in milliseconds.
        after_ms: u64,
    },
    /// The node must end: nothing is lost, and it goes on at the next start.
    Fatal {
        /// The replica whose job failed.
        replica: ReplicaId,
        /// The failure.
        error: MachineError,
    },
}

impl Job {
    /// Runs the job; slow. A compaction ends early once `is_stopped`.
    pub fn run<T>(self, engine: &dyn StateEngine, is_stopped: &dyn Fn() -> bool) -> JobResult<T> {
        match self {
            Self::Compact { replica, folding } => match engine.compact(replica, folding, is_stopped) {
                Ok(done) => JobResult::Report(Input::Compacted { replica, done }),
                Err(EngineError::NotOpen(_)) => JobResult::Report(Input::Compacted { replica, done: false }),
                Err(error) => match remedy(&error) {
                    // The replica goes on with the tables that it has, until it is replaced.
                    Remedy::AbandonReplica if damage::is_known(engine, replica, &error) => {
                        tracing::warn!(%replica, %error, "a checkpoint with damaged objects is not compacted");
                        JobResult::Report(Input::Compacted { replica, done: false })
                    }
                    Remedy::AbandonReplica => {
                        tracing::error!(%replica, %error, "the records of a replica are damaged");
                        JobResult::Report(Input::Broken { replica })
                    }
                    // Nothing waits for it; it is tried again after the next checkpoint.
                    Remedy::Retry => {
                        tracing::warn!(%replica, %error, "a checkpoint could not be compacted");
                        JobResult::Report(Input::Compacted { replica, done: false })
                    }
                    Remedy::AwaitUpgrade | Remedy::EndNode => JobResult::Fatal { replica, error: error.into() },
                },
            },
            Self::Build { replica, format, failures } => match engine.build(replica, format) {
                Ok(checkpoint) => {
                    let split = engine.built_split(replica).map(Box::new);
                    JobResult::Report(Input::Built { replica, checkpoint: Some(checkpoint), split })
                }
                // Destroyed in the meantime.
                Err(EngineError::NotOpen(_)) => JobResult::Done,
                Err(error) if damage::is_known(engine, replica, &error) => {
                    retry_while_damaged(replica, &error, Self::Build { replica, format, failures })
                }
                Err(error) => {
                    let again = |failures| Self::Build { replica, format, failures };
                    // The checkpoint's base is damaged, on this node only. A retry would read the same bytes,
                    // and so would every restart.
                    let damaged = |_| JobResult::Report(Input::Broken { replica });
                    after_failure(replica, error, failures, again, damaged)
                }
            },
            Self::InstallCheckpoint { replica, checkpoint, failures } => {
                match engine.install_checkpoint(replica, &checkpoint) {
                    // Not open: destroyed in the meantime.
                    Ok(()) | Err(EngineError::NotOpen(_)) => {
                        JobResult::Report(Input::CheckpointInstalled { replica, due: engine.compaction_due(replica) })
                    }
                    Err(error) if damage::is_known(engine, replica, &error) => {
                        retry_while_damaged(replica, &error, Self::InstallCheckpoint { replica, checkpoint, failures })
                    }
                    Err(error) => {
                        let again = |failures| Self::InstallCheckpoint { replica, checkpoint, failures };
                        let damaged = |_| JobResult::Report(Input::Broken { replica });
                        after_failure(replica, error, failures, again, damaged)
                    }
                }
            }
            Self::Count(Count { replica, at, counting, records }) => {
                // Half of the time is for others.
                let mut since = Instant::now();
                let mut pause = || {
                    thread::sleep(since.elapsed().min(COUNT_PAUSE_MAX));
                    since = Instant::now();
                };
                match counting.run(&*records, &mut pause) {
                    Err(error) if remedy(&error) == Remedy::EndNode => return JobResult::Fatal { replica, error },
                    Err(error) => tracing::warn!(%replica, %error, "what a split gives up was not counted ahead"),
                    Ok(()) => {}
                }
                JobResult::Report(Input::Counted { replica, at })
            }
            Self::Expect { objects } => {
                engine.expect(&objects);
                JobResult::Report(Input::Damaged(engine.damaged()))
            }
            Self::Destroy { replica, failures } => match engine.destroy(replica) {
                Ok(()) => JobResult::Done,
                Err(error) => {
                    let again = |failures| Self::Destroy { replica, failures };
                    after_failure(replica, error, failures, again, |_| JobResult::Done)
                }
            },
            Self::Load(load) => match load.run(engine) {
                Ok(loaded) => JobResult::Loaded(load, Ok(loaded)),
                // The shard decides whether the replica waits or the node ends.
                Err(error) if remedy(&error) == Remedy::AwaitUpgrade => JobResult::Loaded(load, Err(error)),
                Err(error) => {
                    let again = |failures| Self::Load(load.again(failures));
                    let damaged = |error| JobResult::Loaded(load.clone(), Err(error));
                    after_failure(load.replica, error, load.failures, again, damaged)
                }
            },
        }
    }
}

/// The job cannot be done before the damage is repaired, or the replica is gone.
fn retry_while_damaged<T>(replica: ReplicaId, error: &EngineError, job: Job) -> JobResult<T> {
    tracing::warn!(%replica, %error, "a checkpoint waits until the damage of its replica is repaired");
    JobResult::Retry { job, after_ms: PAUSE_MS_MAX }
}

/// What follows from a job that has failed: it is run `again`, or the bytes of its replica are `damaged`, or
/// the node ends.
fn after_failure<T>(
    replica: ReplicaId,
    error: impl Into<MachineError>,
    failures: u32,
    again: impl FnOnce(u32) -> Job,
    damaged: impl FnOnce(MachineError) -> JobResult<T>,
) -> JobResult<T> {
    let error = error.into();
    match remedy(&error) {
        Remedy::AbandonReplica => {
            tracing::error!(%replica, %error, "the records of a replica are damaged");
            damaged(error)
        }
        Remedy::Retry if failures + 1 < TRIES_MAX => {
            let after_ms = pause_ms(failures);
            tracing::warn!(%replica, %error, failures, after_ms, "a job on the records of a replica failed; retrying");
            JobResult::Retry { job: again(failures + 1), after_ms }
        }
        Remedy::Retry | Remedy::AwaitUpgrade | Remedy::EndNode => JobResult::Fatal { replica, error },
    }
}

/// The pause after a job has failed once more than `failures` times.
fn pause_ms(failures: u32) -> u64 {
    PAUSE_FIRST_MS.saturating_mul(1_u64.checked_shl(failures).unwrap_or(u64::MAX)).min(PAUSE_MS_MAX)
}

#[cfg(test)]
mod tests {
    use std::io;

    use flotilla_types::ObjectId;

    use super::*;

    const REPLICA: ReplicaId = ReplicaId(1);

    fn after(failures: u32, error: EngineError) -> JobResult<()> {
        let again = |failures| Job::Build { replica: REPLICA, format: CheckpointFormat::Pieces, failures };
        after_failure(REPLICA, error, failures, again, |_| JobResult::Report(Input::Broken { replica: REPLICA }))
    }

    fn full() -> EngineError {
        io::Error::from(io::ErrorKind::StorageFull).into()
    }

    #[test]
    fn a_damaged_object_fails_the_replica_and_a_broken_disk_ends_the_node() {
        let fails_replica = |result| matches!(result, JobResult::Report(Input::Broken { .. }));
        assert!(fails_replica(after(0, EngineError::Object(ObjectId::of(b"x")))));
        assert!(fails_replica(after(0, EngineError::Corrupt { replica: REPLICA, reason: "damaged" })));
        assert!(matches!(after(0, io::Error::other("broken").into()), JobResult::Fatal { .. }));
    }

    #[test]
    fn a_full_disk_is_retried_for_a_minute_with_growing_pauses_and_then_ends_the_node() {
        let mut pauses_ms = Vec::new();
        for failures in 0.. {
            match after(failures, full()) {
                JobResult::Retry { job: Job::Build { failures: next, .. }, after_ms } => {
                    assert_eq!(next, failures + 1);
                    pauses_ms.push(after_ms);
                }
                JobResult::Fatal { .. } => break,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(pauses_ms[..6], [200, 400, 800, 1_600, 3_200, 5_000]);
        assert!(pauses_ms.is_sorted() && pauses_ms.last() == Some(&PAUSE_MS_MAX));
        assert!((45_000..90_000).contains(&pauses_ms.iter().sum::<u64>()), "{pauses_ms:?}");
    }

    #[test]
    fn pauses_do_not_overflow() {
        for failures in [6, 63, 64, u32::MAX] {
            assert_eq!(pause_ms(failures), PAUSE_MS_MAX);
        }
    }
}
