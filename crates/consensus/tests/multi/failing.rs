//! A log that fails when it is read, because of a defect or a broken disk.

use std::io;

use flotilla_storage::{Log, LogBatch, LogError, LogEvidence, MemoryLog, PeerSequence, ReplicaLog};
use flotilla_types::{Entry, LogIndex, ReplicaId, Term, WalSequence};

/// How a log fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fails {
    /// Reading entries panics.
    EntriesPanic,
    /// Reading entries fails with an I/O error.
    Entries,
    /// Reading the term of an entry fails with an I/O error.
    Terms,
}

/// A log that fails when it is read.
pub(crate) struct FailingLog(pub(crate) MemoryLog, pub(crate) Fails);

fn broken() -> LogError {
    io::Error::other("a broken disk").into()
}

impl Log for FailingLog {
    fn recovered(&self) -> WalSequence {
        self.0.recovered()
    }

    fn evidence(&self) -> LogEvidence {
        self.0.evidence()
    }

    fn set_complete(&self) -> Result<(), LogError> {
        self.0.set_complete()
    }

    fn peer_sequences(&self) -> Vec<PeerSequence> {
        self.0.peer_sequences()
    }

    fn replicas(&self) -> Result<Vec<(ReplicaId, ReplicaLog)>, LogError> {
        self.0.replicas()
    }

    fn is_tombstone(&self, replica: ReplicaId) -> bool {
        self.0.is_tombstone(replica)
    }

    fn entries(
        &self,
        replica: ReplicaId,
        from: LogIndex,
        to: LogIndex,
        bytes_max: usize,
    ) -> Result<Vec<Entry>, LogError> {
        match self.1 {
            Fails::EntriesPanic => panic!("the entries of {replica} are read"),
            Fails::Entries => Err(broken()),
            Fails::Terms => self.0.entries(replica, from, to, bytes_max),
        }
    }

    fn term(&self, replica: ReplicaId, index: LogIndex) -> Result<Term, LogError> {
        if self.1 == Fails::Terms { Err(broken()) } else { self.0.term(replica, index) }
    }

    fn write(&self, batch: LogBatch) -> Result<(), LogError> {
        self.0.write(batch)
    }

    fn reclaim(&self) -> Result<Vec<ReplicaId>, LogError> {
        self.0.reclaim()
    }
}
