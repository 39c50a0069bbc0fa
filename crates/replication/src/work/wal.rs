//! The order of the log: many groups' writes become one batch, and what waits for a write leaves only when it is durable.
//!
//! Invariant: [`Durable`], which carries the messages and news that promise something, is made by a successful write of
//! the log and in no other way.

use std::collections::BTreeMap;

use flotilla_storage::{Log, LogBatch, LogError, NodeMark};
use flotilla_types::{Incarnation, NodeId, WalSequence};

use crate::{Done, Effects, Outgoing, Write, first_sequence};

/// What one flush of the core wants written.
#[derive(Debug)]
pub struct WalJob {
    writes: Vec<Write>,
    marks: Vec<(NodeId, WalSequence)>,
    floor: Option<WalSequence>,
}

impl WalJob {
    /// Takes the log's part out of the effects, if there is any.
    pub fn take<T>(effects: &mut Effects<T>) -> Option<Self> {
        let job = Self {
            writes: std::mem::take(&mut effects.writes),
            marks: std::mem::take(&mut effects.marks),
            floor: effects.sequence_floor.take(),
        };
        (!job.writes.is_empty() || job.floor.is_some() || !job.marks.is_empty()).then_some(job)
    }

    /// Whether peers wait for it.
    #[must_use]
    pub fn is_awaited(&self) -> bool {
        self.writes.iter().any(|write| !write.after.is_empty())
    }
}

/// Numbers batches, and keeps marks until a write takes them along.
#[derive(Debug)]
pub struct Wal {
    next: WalSequence,
    /// Zero, until something was written in this life: peers must hear what was recovered, no more.
    written: WalSequence,
    marks: BTreeMap<NodeId, WalSequence>,
}

/// One batch on its way to the disk, and what waits for it.
#[derive(Debug)]
pub struct Merged {
    batch: Option<LogBatch>,
    done: Vec<Done>,
    after: Vec<Outgoing>,
}

/// What a batch promised is durable. The news go to the core before the messages leave, so that no answer to a message overtakes them.
#[derive(Debug)]
pub struct Durable {
    /// The last batch written in this life, zero when there was none.
    pub sequence: WalSequence,
    /// For the core; nothing to report when empty.
    pub done: Vec<Done>,
    /// For the network.
    pub after: Vec<Outgoing>,
}

impl Wal {
    /// Goes on behind what the log recovered.
    #[must_use]
    pub fn new(log: &dyn Log, incarnation: Incarnation) -> Self {
        let next = first_sequence(incarnation).max(log.recovered()).next();
        Self { next, written: WalSequence(0), marks: BTreeMap::new() }
    }

    /// Makes one batch of jobs, in their order.
    pub fn merge(&mut self, jobs: impl IntoIterator<Item = WalJob>) -> Merged {
        let mut batch = LogBatch::default();
        let (mut done, mut after) = (Vec::new(), Vec::new());
        for job in jobs {
            if let Some(floor) = job.floor {
                self.next = self.next.max(floor.next());
            }
            self.marks.extend(job.marks);
            for write in job.writes {
                batch.replicas.extend(write.write);
                done.push(write.done);
                after.extend(write.after);
            }
        }
        let writes = !batch.replicas.is_empty();
        if writes {
            batch.sequence = self.next;
            let marks = std::mem::take(&mut self.marks);
            batch.marks = marks.into_iter().map(|(node, sequence)| NodeMark { node, sequence }).collect();
            self.next = self.next.next();
        }
        Merged { batch: writes.then_some(batch), done, after }
    }

    /// Writes and fsyncs. After an error nothing is known about what is on the disk: the node must end.
    pub fn write(&mut self, log: &dyn Log, merged: Merged) -> Result<Durable, LogError> {
        if let Some(batch) = merged.batch {
            let sequence = batch.sequence;
            log.write(batch)?;
            self.written = sequence;
        }
        Ok(Durable { sequence: self.written, done: merged.done, after: merged.after })
    }
}

impl Merged {
    /// What goes to the disk; `None` when messages only waited for the batches before.
    #[must_use]
    pub fn batch(&self) -> Option<&LogBatch> {
        self.batch.as_ref()
    }
}
