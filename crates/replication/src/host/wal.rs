//! The thread that writes the log: one fsync for whatever is waiting, then the messages that waited for it.

use std::{
    collections::BTreeMap,
    sync::{Arc, mpsc},
    time::Instant,
};

use flotilla_failpoints::{Place, io, is_enabled, reached};
use flotilla_storage::{Log, LogBatch, LogError, NodeMark};
use flotilla_types::{EntryKind, Incarnation, NodeId, WalSequence};

use super::{Inbox, frames};
use crate::{Input, Write, first_sequence};

/// Jobs merged into one batch; the rest waits for the next fsync.
const JOBS_MAX: usize = 256;

pub(super) struct Job {
    pub(super) writes: Vec<Write>,
    pub(super) marks: Vec<(NodeId, WalSequence)>,
    pub(super) floor: Option<WalSequence>,
}

pub(super) struct Wal {
    log: Arc<dyn Log>,
    next: WalSequence,
    /// Zero, until something was written in this life: peers must hear what was recovered, no more.
    written: WalSequence,
    sender: frames::Sender,
    inbox: Inbox,
    fatal: Arc<dyn Fn(&str) + Send + Sync>,
    /// Marks that wait for a write to ride along with.
    marks: BTreeMap<NodeId, WalSequence>,
}

impl Wal {
    pub(super) fn new(
        log: Arc<dyn Log>,
        incarnation: Incarnation,
        sender: frames::Sender,
        inbox: Inbox,
        fatal: Arc<dyn Fn(&str) + Send + Sync>,
    ) -> Self {
        let next = first_sequence(incarnation).max(log.recovered()).next();
        Self { log, next, written: WalSequence(0), sender, inbox, fatal, marks: BTreeMap::new() }
    }

    pub(super) fn run(mut self, jobs: &mpsc::Receiver<Job>) {
        while let Ok(first) = jobs.recv() {
            let mut merged = vec![first];
            while merged.len() < JOBS_MAX {
                match jobs.try_recv() {
                    Ok(job) => merged.push(job),
                    Err(_) => break,
                }
            }
            if !self.write(merged) {
                return;
            }
        }
    }

    fn write(&mut self, jobs: Vec<Job>) -> bool {
        let mut batch = LogBatch::default();
        let mut done = Vec::new();
        let mut after = Vec::new();
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
        if !batch.replicas.is_empty() {
            batch.sequence = self.next;
            let marks = std::mem::take(&mut self.marks);
            batch.marks = marks.into_iter().map(|(node, sequence)| NodeMark { node, sequence }).collect();
            let started = Instant::now();
            if let Err(error) = self.write_batch(batch) {
                // After a failed fsync nothing is known about what is on the disk.
                (self.fatal)(&format!("the log cannot be written, and this node must not go on: {error}"));
                return false;
            }
            metrics::histogram!("flotilla_wal_write_seconds").record(started.elapsed().as_secs_f64());
            metrics::counter!("flotilla_wal_batches_total").increment(1);
            self.written = self.next;
            self.next = self.next.next();
        }
        // First, so that no answer to a message overtakes the news that what it promised is durable.
        if !done.is_empty() {
            self.inbox.send(Input::Written { sequence: self.written, done });
        }
        if !after.is_empty() {
            reached(Place::WalBeforeHeld);
            self.sender.send(after);
            reached(Place::WalAfterHeld);
        }
        true
    }

    fn write_batch(&self, batch: LogBatch) -> Result<(), LogError> {
        let (before, after) = if is_enabled() { places(&batch) } else { Default::default() };
        before.into_iter().for_each(reached);
        io(Place::WalBeforeWrite)?;
        self.log.write(batch)?;
        io(Place::WalWritten)?;
        after.into_iter().for_each(reached);
        Ok(())
    }
}

/// Where the node may end before and after this batch, besides the places that every batch passes.
fn places(batch: &LogBatch) -> (Vec<Place>, Vec<Place>) {
    let (mut before, mut after) = (Vec::new(), Vec::new());
    if !batch.marks.is_empty() {
        before.push(Place::WalBeforeMarks);
    }
    for write in &batch.replicas {
        if write.create.is_some() {
            before.push(Place::WalBeforeCreate);
            after.push(Place::WalCreated);
        } else if write.clear {
            before.push(Place::WalBeforeClear);
            after.push(Place::WalCleared);
        } else if write.checkpoint.is_some() {
            before.push(Place::WalBeforePointer);
            after.push(Place::WalPointerWritten);
        }
        if write.destroy {
            before.push(Place::WalBeforeTombstone);
            after.push(Place::WalTombstoned);
        }
        if write.entries.iter().any(|entry| entry.kind == EntryKind::ConfChange) {
            before.push(Place::WalBeforeConfEntry);
        }
    }
    (before, after)
}
