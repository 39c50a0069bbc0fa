//! What follows from a failure of the disk, or of what it stores.
//!
//! One policy for every place that meets such a failure. A failing disk says nothing about the bytes that
//! were written to it, so it never costs a replica: the node ends and keeps everything, or the work is
//! repeated. Only a replica whose stored bytes are not what was written is abandoned, which lets the metadata
//! group replace it.
//!
//! The policy says nothing about two cases, which are decided where they occur: a failed *write* of the log
//! always ends the node, because what is durable is then unknown; and [`EngineError::NotOpen`] is no failure
//! where a replica may have been destroyed in the meantime.

use std::{error::Error, io};

use rustix::io::Errno;

use crate::{EngineError, LogError, MachineError};

/// What a node does about a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remedy {
    /// Repeat the work later: it changed nothing, and what it lacked (space, descriptors) may come back.
    /// Where work cannot wait, end the node.
    Retry,
    /// End the process. All replicas stay as they are, and go on when the node starts again.
    EndNode,
    /// Stop this one replica and keep it: a newer binary goes on with it. A replica of the metadata group ends
    /// the node, because that group alone decides which binaries are too old. Others wait for its word, so
    /// that what a malicious peer appends to one shard stops no other.
    AwaitUpgrade,
    /// Give up this one replica: its stored bytes are not what was written. Its peers have them.
    AbandonReplica,
}

/// A failure that the policy judges.
#[derive(Debug, Clone, Copy)]
pub enum Failure<'a> {
    /// Of the state engine.
    Engine(&'a EngineError),
    /// Of a state machine.
    Machine(&'a MachineError),
    /// Of the log.
    Log(&'a LogError),
}

impl<'a> From<&'a EngineError> for Failure<'a> {
    fn from(error: &'a EngineError) -> Self {
        Self::Engine(error)
    }
}

impl<'a> From<&'a MachineError> for Failure<'a> {
    fn from(error: &'a MachineError) -> Self {
        match error {
            MachineError::Engine(error) => Self::Engine(error),
            _ => Self::Machine(error),
        }
    }
}

impl<'a> From<&'a LogError> for Failure<'a> {
    fn from(error: &'a LogError) -> Self {
        Self::Log(error)
    }
}

/// The remedy for a failure.
#[must_use]
pub fn remedy<'a>(failure: impl Into<Failure<'a>>) -> Remedy {
    match failure.into() {
        Failure::Engine(EngineError::Io(source)) | Failure::Log(LogError::Io(source)) => {
            if is_temporary(source) {
                Remedy::Retry
            } else {
                Remedy::EndNode
            }
        }
        Failure::Engine(EngineError::NotInMemory) => Remedy::Retry,
        // What is durable is unknown, or an index must be rebuilt; the next start does both.
        Failure::Engine(EngineError::Unsynced(_) | EngineError::View(_)) | Failure::Log(LogError::Engine(_)) => {
            Remedy::EndNode
        }
        Failure::Engine(
            EngineError::Object(_) | EngineError::Mismatch(_) | EngineError::Corrupt { .. } | EngineError::NotOpen(_),
        )
        | Failure::Log(LogError::Corrupt { .. } | LogError::Compacted { .. } | LogError::Missing { .. }) => {
            Remedy::AbandonReplica
        }
        Failure::Machine(MachineError::Engine(error)) => remedy(error),
        Failure::Machine(MachineError::Corrupt(_)) => Remedy::AbandonReplica,
        Failure::Machine(MachineError::Version { .. }) => Remedy::AwaitUpgrade,
    }
}

/// Whether an I/O error reports that something was used up, which others may free: space, quota, file
/// descriptors. So does the refusal of an object that is too large: another peer may offer other objects.
fn is_temporary(error: &io::Error) -> bool {
    let mut next: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(cause) = next {
        if cause.downcast_ref::<io::Error>().is_some_and(reports_exhaustion) {
            return true;
        }
        next = cause.source();
    }
    false
}

fn reports_exhaustion(error: &io::Error) -> bool {
    let kinds = [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded, io::ErrorKind::FileTooLarge];
    let descriptors = [Errno::MFILE, Errno::NFILE];
    kinds.contains(&error.kind()) || Errno::from_io_error(error).is_some_and(|errno| descriptors.contains(&errno))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use flotilla_types::{LogIndex, ObjectId, ReplicaId};

    use super::*;

    fn os(errno: Errno) -> io::Error {
        errno.into()
    }

    #[derive(Debug, thiserror::Error)]
    #[error("a file: {0}")]
    struct AtFile(#[source] io::Error);

    fn at_file(source: io::Error) -> io::Error {
        io::Error::new(source.kind(), AtFile(source))
    }

    #[test]
    fn a_failing_disk_never_costs_a_replica_and_damaged_bytes_cost_one() {
        let replica = ReplicaId(1);
        let object = ObjectId::of(b"x");
        let reason = "damaged";
        let engine = |error: EngineError, expected| {
            assert_eq!(remedy(&error), expected, "{error}");
            assert_eq!(remedy(&MachineError::Engine(error.clone())), expected, "in a state machine: {error}");
        };
        let io = |errno, expected| {
            engine(os(errno).into(), expected);
            engine(at_file(os(errno)).into(), expected);
            let log = LogError::from(os(errno));
            assert_eq!(remedy(&log), expected, "{log}");
        };
        for exhausted in [Errno::NOSPC, Errno::DQUOT, Errno::MFILE, Errno::NFILE] {
            io(exhausted, Remedy::Retry);
        }
        for broken in [Errno::IO, Errno::ROFS, Errno::NODEV, Errno::NXIO, Errno::STALE, Errno::ACCESS, Errno::NOENT] {
            io(broken, Remedy::EndNode);
        }
        engine(io::Error::other("no errno").into(), Remedy::EndNode);
        engine(io::Error::from(io::ErrorKind::FileTooLarge).into(), Remedy::Retry);
        // Delayed allocation: an fsync that fails for lack of space has lost writes that seemed to succeed.
        engine(EngineError::Unsynced(Arc::new(os(Errno::NOSPC))), Remedy::EndNode);
        engine(EngineError::View(Arc::new(io::Error::other("view"))), Remedy::EndNode);
        engine(EngineError::NotInMemory, Remedy::Retry);
        engine(EngineError::Object(object), Remedy::AbandonReplica);
        engine(EngineError::Mismatch(object), Remedy::AbandonReplica);
        engine(EngineError::Corrupt { replica, reason }, Remedy::AbandonReplica);
        engine(EngineError::NotOpen(replica), Remedy::AbandonReplica);
        for (machine, expected) in [
            (MachineError::Corrupt(reason), Remedy::AbandonReplica),
            (MachineError::Version { found: 2, known: 1 }, Remedy::AwaitUpgrade),
        ] {
            assert_eq!(remedy(&machine), expected, "{machine}");
        }
        for (log, expected) in [
            (LogError::Engine(Arc::new(io::Error::other("engine"))), Remedy::EndNode),
            (LogError::Corrupt { replica, reason }, Remedy::AbandonReplica),
            (LogError::Compacted { replica, truncated: LogIndex(1) }, Remedy::AbandonReplica),
            (LogError::Missing { replica, index: LogIndex(1) }, Remedy::AbandonReplica),
        ] {
            assert_eq!(remedy(&log), expected, "{log}");
        }
    }
}
