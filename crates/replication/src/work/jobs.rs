//! Slow jobs on the state engine, and what follows from their results.

use flotilla_storage::{EngineError, StateEngine};
use flotilla_types::{Checkpoint, ObjectId, ReplicaId};

use crate::{Input, Load};

/// Milliseconds before a failed build of a checkpoint is retried.
pub const BUILD_RETRY_MS: u64 = 1_000;
/// Attempts to build a checkpoint before the node stops: without checkpoints its log would only grow.
pub const BUILD_TRIES_MAX: u32 = 60;

/// Work that must not block the raft or the apply thread.
#[derive(Debug, Clone)]
pub enum Job {
    /// Build the frozen memtable's checkpoint.
    Build {
        /// The replica.
        replica: ReplicaId,
        /// How often this has failed already.
        failures: u32,
    },
    /// A checkpoint that was built here is durable in the log: install it in the engine.
    InstallCheckpoint {
        /// The replica.
        replica: ReplicaId,
        /// The checkpoint.
        checkpoint: Checkpoint,
    },
    /// Unpin pulled objects.
    Release {
        /// The objects.
        objects: Vec<ObjectId>,
    },
    /// Load a replica's records.
    Load(Load),
}

/// What follows from a job.
#[derive(Debug)]
pub enum JobResult<T> {
    /// Nothing.
    Done,
    /// An input for the core.
    Report(Input<T>),
    /// A completed load for [`crate::Applier::loaded`].
    Loaded(Load, Result<(), EngineError>),
    /// Run the job again after [`BUILD_RETRY_MS`].
    Retry(Job),
    /// The node must stop: nothing is lost, and the next start rebuilds the view.
    Fatal {
        /// The replica whose job failed.
        replica: ReplicaId,
        /// The failure.
        error: EngineError,
    },
}

impl Job {
    /// Runs the job; slow.
    pub fn run<T>(self, engine: &dyn StateEngine) -> JobResult<T> {
        match self {
            Self::Build { replica, failures } => match engine.build(replica) {
                Ok(checkpoint) => JobResult::Report(Input::Built { replica, checkpoint: Some(checkpoint) }),
                Err(error) => on_build_failure(replica, failures, error),
            },
            Self::InstallCheckpoint { replica, checkpoint } => match engine.install_checkpoint(replica, &checkpoint) {
                // Not open: destroyed in the meantime.
                Ok(()) | Err(EngineError::NotOpen(_)) => JobResult::Report(Input::CheckpointInstalled { replica }),
                // All data is in the log and in objects; only the view is stale, and the next start rebuilds
                // it.
                Err(error) => JobResult::Fatal { replica, error },
            },
            Self::Release { objects } => {
                engine.release(&objects);
                JobResult::Done
            }
            Self::Load(load) => {
                let result = load.run(engine);
                JobResult::Loaded(load, result)
            }
        }
    }
}

/// Decides what follows from a failed build of a checkpoint.
fn on_build_failure<T>(replica: ReplicaId, failures: u32, error: EngineError) -> JobResult<T> {
    match error {
        // Destroyed in the meantime.
        EngineError::NotOpen(_) => JobResult::Done,
        // The checkpoint's base is damaged, on this node only: the replica must be replaced from its peers. A
        // retry would read the same bytes and hold back other checkpoints, and so would every restart.
        EngineError::Object(_) | EngineError::Mismatch(_) | EngineError::Corrupt { .. } => {
            tracing::error!(%replica, %error, "a replica's records are damaged, so no checkpoint can be built");
            JobResult::Report(Input::Broken { replica })
        }
        // The disk may recover.
        EngineError::Io(_) | EngineError::View(_) if failures + 1 < BUILD_TRIES_MAX => {
            tracing::warn!(%replica, %error, failures, "a checkpoint could not be built; retrying");
            JobResult::Retry(Job::Build { replica, failures: failures + 1 })
        }
        EngineError::Io(_) | EngineError::View(_) => JobResult::Fatal { replica, error },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_object_fails_the_replica_and_a_persistent_disk_error_stops_the_node() {
        let replica = ReplicaId(1);
        let io = || EngineError::from(std::io::Error::other("full"));
        let after = |failures, error| on_build_failure::<()>(replica, failures, error);
        assert!(matches!(after(0, io()), JobResult::Retry(Job::Build { failures: 1, .. })));
        assert!(matches!(after(BUILD_TRIES_MAX - 1, io()), JobResult::Fatal { .. }));
        let fails_replica = |result| matches!(result, JobResult::Report(Input::Broken { .. }));
        assert!(fails_replica(after(0, EngineError::Object(ObjectId::of(b"x")))));
        assert!(fails_replica(after(0, EngineError::Corrupt { replica, reason: "damaged" })));
        assert!(matches!(after(0, EngineError::NotOpen(replica)), JobResult::Done));
    }
}
