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
                // Destroyed meanwhile.
                Err(EngineError::NotOpen(_)) => Worked::Done,
                Err(error) if failures + 1 < BUILD_TRIES_MAX => {
                    tracing::warn!(%replica, %error, failures, "a checkpoint could not be built; trying again");
                    Worked::Retry(Self::Build { replica, failures: failures + 1 })
                }
                Err(error) => Worked::Fatal { replica, error },
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
