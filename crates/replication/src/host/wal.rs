//! Writes the log, inline or on its own thread: one fsync for all waiting jobs, then the messages that wait
//! for it.

use std::{sync::Arc, time::Instant};

use flotilla_failpoints::{Place, io, is_enabled, reached};
use flotilla_storage::{Log, LogBatch, LogError};
use flotilla_types::EntryKind;

use super::{
    Inbox, frames,
    inline::{Progress, Worker},
};
use crate::{
    Input,
    work::{self, Durable, Merged, WalJob},
};

pub(super) struct Wal {
    pub(super) log: Arc<dyn Log>,
    pub(super) wal: work::Wal,
    pub(super) sender: frames::Sender,
    pub(super) inbox: Inbox,
    pub(super) fatal: Arc<dyn Fn(&str) + Send + Sync>,
}

impl Worker for Wal {
    type Job = WalJob;

    const JOBS_MAX: usize = 256;

    fn may_run_inline(_: &WalJob) -> bool {
        // An fsync takes about as long whatever it covers.
        true
    }

    fn work(&mut self, jobs: Vec<WalJob>) -> Progress {
        let merged = self.wal.merge(jobs);
        let writes = merged.batch().is_some();
        let started = Instant::now();
        let durable = match self.write_merged(merged) {
            Ok(durable) => durable,
            Err(error) => {
                // After a failed fsync the state of the disk is unknown.
                (self.fatal)(&format!("the log cannot be written, and this node must stop: {error}"));
                return Progress::Ended;
            }
        };
        if writes {
            metrics::histogram!("flotilla_wal_write_seconds").record(started.elapsed().as_secs_f64());
            metrics::counter!("flotilla_wal_batches_total").increment(1);
        }
        if !durable.done.is_empty() {
            self.inbox.send(Input::Written { sequence: durable.sequence, done: durable.done });
        }
        if !durable.after.is_empty() {
            reached(Place::WalBeforeHeld);
            self.sender.send(durable.after);
            reached(Place::WalAfterHeld);
        }
        if writes { Progress::Done } else { Progress::Nothing }
    }
}

impl Wal {
    fn write_merged(&mut self, merged: Merged) -> Result<Durable, LogError> {
        let Some(batch) = merged.batch() else { return self.wal.write(&*self.log, merged) };
        let (before, after) = if is_enabled() { places(batch) } else { Default::default() };
        before.into_iter().for_each(reached);
        io(Place::WalBeforeWrite)?;
        let durable = self.wal.write(&*self.log, merged)?;
        io(Place::WalWritten)?;
        after.into_iter().for_each(reached);
        Ok(durable)
    }
}

/// The failpoints before and after this batch, besides those that every batch passes.
fn places(batch: &LogBatch) -> (Vec<Place>, Vec<Place>) {
    let (mut before, mut after) = (Vec::new(), Vec::new());
    if !batch.peer_sequences.is_empty() {
        before.push(Place::WalBeforePeerSequences);
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
