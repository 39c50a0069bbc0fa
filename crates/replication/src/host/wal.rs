//! The thread that writes the log: one fsync for whatever is waiting, then the messages that waited for it.

use std::{
    sync::{Arc, mpsc},
    time::Instant,
};

use flotilla_storage::Log;

use super::{Inbox, frames};
use crate::{
    Input,
    work::{self, WalJob},
};

/// Jobs merged into one batch; the rest waits for the next fsync.
const JOBS_MAX: usize = 256;

pub(super) struct Wal {
    pub(super) log: Arc<dyn Log>,
    pub(super) wal: work::Wal,
    pub(super) sender: frames::Sender,
    pub(super) inbox: Inbox,
    pub(super) fatal: Arc<dyn Fn(&str) + Send + Sync>,
}

impl Wal {
    pub(super) fn run(mut self, jobs: &mpsc::Receiver<WalJob>) {
        while let Ok(first) = jobs.recv() {
            let mut waiting = vec![first];
            while waiting.len() < JOBS_MAX {
                match jobs.try_recv() {
                    Ok(job) => waiting.push(job),
                    Err(_) => break,
                }
            }
            if !self.write(waiting) {
                return;
            }
        }
    }

    fn write(&mut self, jobs: Vec<WalJob>) -> bool {
        let merged = self.wal.merge(jobs);
        let writes = merged.batch().is_some();
        let started = Instant::now();
        let durable = match self.wal.write(&*self.log, merged) {
            Ok(durable) => durable,
            Err(error) => {
                // After a failed fsync nothing is known about what is on the disk.
                (self.fatal)(&format!("the log cannot be written, and this node must not go on: {error}"));
                return false;
            }
        };
        if writes {
            metrics::histogram!("flotilla_wal_write_seconds").record(started.elapsed().as_secs_f64());
            metrics::counter!("flotilla_wal_batches_total").increment(1);
        }
        if !durable.done.is_empty() {
            self.inbox.send(Input::Written { sequence: durable.sequence, done: durable.done });
        }
        self.sender.send(durable.after);
        true
    }
}
