//! The write-ahead log's batching: writes of many groups become one batch; messages that wait for it leave
//! when it is durable.
//!
//! Invariant: [`Durable`], which carries the messages and reports that are promises, is made only by a
//! successful write of the log.

use std::collections::BTreeMap;

use flotilla_storage::{Log, LogBatch, LogError, PeerSequence};
use flotilla_types::{Incarnation, NodeId, WalSequence};

use crate::{Done, Effects, Outgoing, Write, first_sequence};

/// The log writes of one flush of the core.
#[derive(Debug)]
pub struct WalJob {
    writes: Vec<Write>,
    peer_sequences: Vec<(NodeId, WalSequence)>,
    floor: Option<WalSequence>,
    log_complete: bool,
}

impl WalJob {
    /// Takes the log writes out of the effects, if there are any.
    pub fn take<T>(effects: &mut Effects<T>) -> Option<Self> {
        let job = Self {
            writes: std::mem::take(&mut effects.writes),
            peer_sequences: std::mem::take(&mut effects.peer_sequences),
            floor: effects.sequence_floor.take(),
            log_complete: std::mem::take(&mut effects.log_complete),
        };
        let is_empty =
            job.writes.is_empty() && job.floor.is_none() && job.peer_sequences.is_empty() && !job.log_complete;
        (!is_empty).then_some(job)
    }

    /// Whether messages to peers wait for it.
    #[must_use]
    pub fn is_awaited(&self) -> bool {
        self.writes.iter().any(|write| !write.after.is_empty())
    }
}

/// Numbers batches, and holds peer sequences until the next write.
#[derive(Debug)]
pub struct Wal {
    next: WalSequence,
    /// The last batch written in this incarnation. Zero before the first: peers must see no more than was
    /// recovered.
    written: WalSequence,
    peer_sequences: BTreeMap<NodeId, WalSequence>,
}

/// One batch to be written, and what waits for it.
#[derive(Debug)]
pub struct Merged {
    batch: Option<LogBatch>,
    log_complete: bool,
    done: Vec<Done>,
    after: Vec<Outgoing>,
}

/// A durable batch's reports and messages. Report to the core before sending, so that no answer to a message
/// overtakes the report.
#[derive(Debug)]
pub struct Durable {
    /// The last batch written in this incarnation; zero when there was none.
    pub sequence: WalSequence,
    /// Reports for the core.
    pub done: Vec<Done>,
    /// Messages to send.
    pub after: Vec<Outgoing>,
}

impl Wal {
    /// Continues after what the log recovered.
    #[must_use]
    pub fn new(log: &dyn Log, incarnation: Incarnation) -> Self {
        let next = first_sequence(incarnation).max(log.recovered()).next();
        Self { next, written: WalSequence(0), peer_sequences: BTreeMap::new() }
    }

    /// Merges jobs into one batch, in order.
    pub fn merge(&mut self, jobs: impl IntoIterator<Item = WalJob>) -> Merged {
        let mut batch = LogBatch::default();
        let (mut done, mut after) = (Vec::new(), Vec::new());
        let mut log_complete = false;
        for job in jobs {
            log_complete |= job.log_complete;
            if let Some(floor) = job.floor {
                self.next = self.next.max(floor.next());
            }
            self.peer_sequences.extend(job.peer_sequences);
            for write in job.writes {
                batch.replicas.extend(write.write);
                done.push(write.done);
                after.extend(write.after);
            }
        }
        let writes = !batch.replicas.is_empty();
        if writes {
            batch.sequence = self.next;
            let peer_sequences = std::mem::take(&mut self.peer_sequences);
            batch.peer_sequences =
                peer_sequences.into_iter().map(|(node, sequence)| PeerSequence { node, sequence }).collect();
            self.next = self.next.next();
        }
        Merged { batch: writes.then_some(batch), log_complete, done, after }
    }

    /// Writes and fsyncs a batch. After an error the state of the disk is unknown: the node must stop.
    pub fn write(&mut self, log: &dyn Log, merged: Merged) -> Result<Durable, LogError> {
        if let Some(batch) = merged.batch {
            let sequence = batch.sequence;
            log.write(batch)?;
            self.written = sequence;
        }
        if merged.log_complete {
            log.set_complete()?;
        }
        let mut after = merged.after;
        after.iter_mut().for_each(|outgoing| outgoing.synced = self.written);
        Ok(Durable { sequence: self.written, done: merged.done, after })
    }
}

impl Merged {
    /// What will be written; `None` when messages wait for earlier batches only.
    #[must_use]
    pub fn batch(&self) -> Option<&LogBatch> {
        self.batch.as_ref()
    }
}
