//! A log that panics, to simulate a defect.

use flotilla_storage::{Log, LogBatch, LogError, LogEvidence, MemoryLog, PeerSequence, ReplicaLog};
use flotilla_types::{Entry, LogIndex, ReplicaId, Term, WalSequence};

/// A log that panics when entries are read.
pub(crate) struct PanickingLog(pub(crate) MemoryLog);

impl Log for PanickingLog {
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

    fn entries(&self, replica: ReplicaId, _: LogIndex, _: LogIndex, _: usize) -> Result<Vec<Entry>, LogError> {
        panic!("the entries of {replica} are read");
    }

    fn term(&self, replica: ReplicaId, index: LogIndex) -> Result<Term, LogError> {
        self.0.term(replica, index)
    }

    fn write(&self, batch: LogBatch) -> Result<(), LogError> {
        self.0.write(batch)
    }

    fn reclaim(&self) -> Result<Vec<ReplicaId>, LogError> {
        self.0.reclaim()
    }
}
