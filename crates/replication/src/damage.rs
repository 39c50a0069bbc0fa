//! Failures that follow from objects which are known to be damaged.
//!
//! They cost no replica: whatever needs such an object is not done, and the replica goes on with the rest, its
//! vote and its log above all, until one without damage has taken its place. Where there is no other replica it
//! stays for good: part of its records is better than none.

use flotilla_storage::{EngineError, StateEngine};
use flotilla_types::ReplicaId;

/// Whether a replica's failure follows from damage that the engine reports, and that is seen to.
pub(crate) fn is_known(engine: &dyn StateEngine, replica: ReplicaId, error: &EngineError) -> bool {
    matches!(error, EngineError::Object(_)) && engine.damaged().iter().any(|damaged| damaged.replica == replica)
}
