//! The thread that owns the state machines.

use std::sync::{Arc, mpsc};

use flotilla_storage::EngineError;

use super::{Inbox, Reply, background};
use crate::{Applied, Applier, ApplyTask, Load, clock, work};

pub(super) enum Job {
    Task(ApplyTask<Reply>),
    Loaded(Load, Result<(), EngineError>),
    Stop,
}

pub(super) struct Apply {
    pub(super) applier: Applier<Reply>,
    pub(super) jobs: mpsc::Receiver<Job>,
    pub(super) inbox: Inbox,
    pub(super) background: mpsc::Sender<background::Order>,
    pub(super) fatal: Arc<dyn Fn(&str) + Send + Sync>,
}

impl Apply {
    pub(super) fn run(mut self) {
        while let Ok(job) = self.jobs.recv() {
            let mut applied = Applied::default();
            match job {
                Job::Task(task) => self.applier.run(clock::wall_ms(), task, &mut applied),
                Job::Loaded(load, result) => self.applier.loaded(clock::wall_ms(), &load, result, &mut applied),
                Job::Stop => return,
            }
            if let Some(error) = applied.fatal {
                (self.fatal)(&format!("{error}; the next start rebuilds the view"));
                return;
            }
            for load in applied.loads {
                let _ = self.background.send(background::Order::Work(work::Job::Load(load)));
            }
            for (reply, answer) in applied.replies {
                let _ = reply.send(answer);
            }
            for input in applied.inputs {
                self.inbox.send(input);
            }
        }
    }
}
