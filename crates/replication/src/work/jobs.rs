//! Slow work on the state engine, and what its result means.

use flotilla_storage::{EngineError, StateEngine};
use flotilla_types::{Checkpoint, ObjectId, ReplicaId};

use crate::{Input, Load};

/// How long to wait before a checkpoint that could not be built is tried again, milliseconds.
pub const BUILD_RETRY_MS: u64 = 1_000;
/// Tries before a checkpoint that cannot be built ends the node: its log could only grow.
pub const BUILD_TRIES_MAX: u32 = 60;

/// Work that must not hold back the raft or the apply thread.
#[derive(Debug, Clone)]
pub enum Job {
    /// Build the frozen memtable's checkpoint.
    Build {
        /// Whose.
        replica: ReplicaId,
        /// How often this was tried already.
        failures: u32,
    },
    /// The checkpoint is durable: feed the view.
    Settle {
        /// Whose.
        replica: ReplicaId,
        /// The checkpoint.
        checkpoint: Checkpoint,
    },
    /// Let go of objects that were pulled.
    Release {
        /// Which.
        objects: Vec<ObjectId>,
    },
    /// Load a replica's records.
    Load(Load),
}

/// What became of a job.
#[derive(Debug)]
pub enum Worked<T> {
    /// Nobody needs to know.
    Done,
    /// For the core.
    Report(Input<T>),
    /// For the applier, see [`crate::Applier::loaded`].
    Loaded(Load, Result<(), EngineError>),
    /// To be run again after [`BUILD_RETRY_MS`].
    Retry(Job),
    /// The node must end: nothing is lost, and the next start rebuilds what is behind.
    Fatal {
        /// Whose work failed.
        replica: ReplicaId,
        /// Why.
        error: EngineError,
    },
}

impl Job {
    /// Runs to the end; slow.
    pub fn run<T>(self, engine: &dyn StateEngine) -> Worked<T> {
        match self {
            Self::Build { replica, failures } => match engine.build(replica) {
                Ok(checkpoint) => Worked::Report(Input::Built { replica, checkpoint: Some(checkpoint) }),
                Err(error) => not_built(replica, failures, error),
            },
            Self::Settle { replica, checkpoint } => match engine.settle(replica, &checkpoint) {
                // Or destroyed meanwhile.
                Ok(()) | Err(EngineError::NotOpen(_)) => Worked::Report(Input::Settled { replica }),
                // Everything is in the log and in objects; only the view is behind, and the next start rebuilds it.
                Err(error) => Worked::Fatal { replica, error },
            },
            Self::Release { objects } => {
                engine.release(&objects);
                Worked::Done
            }
            Self::Load(load) => {
                let result = load.run(engine);
                Worked::Loaded(load, result)
            }
        }
    }
}

/// What follows from a checkpoint that could not be built.
fn not_built<T>(replica: ReplicaId, failures: u32, error: EngineError) -> Worked<T> {
    match error {
        // Destroyed meanwhile.
        EngineError::NotOpen(_) => Worked::Done,
        // What the checkpoint rests on is damaged, here only: the replica must be replaced from its peers. Trying again would meet
        // the same bytes, hold back the checkpoints of others, and do so again after each restart.
        EngineError::Object(_) | EngineError::Mismatch(_) | EngineError::Corrupt { .. } => {
            tracing::error!(%replica, %error, "no checkpoint can be built of what is left of a replica");
            Worked::Report(Input::Broken { replica })
        }
        // The disk may recover.
        EngineError::Io(_) | EngineError::View(_) if failures + 1 < BUILD_TRIES_MAX => {
            tracing::warn!(%replica, %error, failures, "a checkpoint could not be built; trying again");
            Worked::Retry(Job::Build { replica, failures: failures + 1 })
        }
        EngineError::Io(_) | EngineError::View(_) => Worked::Fatal { replica, error },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_object_costs_the_replica_and_a_disk_that_stays_broken_the_node() {
        let replica = ReplicaId(1);
        let io = || EngineError::from(std::io::Error::other("full"));
        let after = |failures, error| not_built::<()>(replica, failures, error);
        assert!(matches!(after(0, io()), Worked::Retry(Job::Build { failures: 1, .. })));
        assert!(matches!(after(BUILD_TRIES_MAX - 1, io()), Worked::Fatal { .. }));
        let gives_up = |worked| matches!(worked, Worked::Report(Input::Broken { .. }));
        assert!(gives_up(after(0, EngineError::Object(ObjectId::of(b"x")))));
        assert!(gives_up(after(0, EngineError::Corrupt { replica, reason: "damaged" })));
        assert!(matches!(after(0, EngineError::NotOpen(replica)), Worked::Done));
    }
}
