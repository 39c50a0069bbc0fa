//! The thread that owns the core. It writes the log and applies entries itself while that is quick, see `desk`.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use flotilla_consensus::Role;
use flotilla_failpoints::{Place, reached};
use parking_lot::RwLock;

use super::{Event, Reply, apply, background, desk::Desk, frames, pull, wal};
use crate::{
    Background, Core, Effects, HostConfig, Input, Notice, ReplicaStatus, clock,
    work::{Job, WalJob},
};

/// Inputs that one flush serves; then what they led to goes out.
const INPUTS_MAX: usize = 4_096;

pub(super) struct Raft {
    pub(super) core: Core<Reply>,
    pub(super) config: HostConfig,
    pub(super) inbox: mpsc::Receiver<Event>,
    pub(super) waiting: Arc<AtomicUsize>,
    pub(super) sender: frames::Sender,
    pub(super) wal: Arc<Desk<wal::Wal>>,
    pub(super) apply: Arc<Desk<apply::Apply>>,
    pub(super) background: mpsc::Sender<background::Order>,
    pub(super) puller: pull::Puller,
    pub(super) notices: Box<dyn Fn(Notice) + Send>,
    pub(super) status: Arc<RwLock<Arc<Vec<ReplicaStatus>>>>,
    pub(super) leads_shared: Arc<AtomicUsize>,
}

impl Raft {
    /// `effects` are those of opening the core.
    pub(super) fn run(mut self, effects: Effects<Reply>) {
        self.serve(effects);
        self.wal.close();
    }

    /// Until it is told to stop, or the node cannot go on.
    fn serve(&mut self, mut effects: Effects<Reply>) {
        let mut next_tick_ms = clock::monotonic_ms() + self.config.tick_ms;
        let mut taken = 0;
        loop {
            // Read anew: the thread may have been stopped since it took the inputs in.
            self.core.flush(clock::monotonic_ms(), &mut effects);
            if !self.perform(std::mem::take(&mut effects)) {
                return;
            }
            let now_ms = clock::monotonic_ms();
            if now_ms >= next_tick_ms {
                self.core.step(now_ms, clock::wall_ms(), Input::Tick, &mut effects);
                self.publish_status();
                // Ticks that were missed are skipped: a burst would look like a long silence of everybody else.
                next_tick_ms = now_ms + self.config.tick_ms;
                continue;
            }
            let first = self.inbox.recv_timeout(Duration::from_millis(next_tick_ms - now_ms));
            let Ok(first) = first else { continue };
            // Where inputs come together and more threads want to run than can, those that have something for this one go first, and
            // one flush serves it all.
            if taken > 1 {
                thread::yield_now();
            }
            let (now_ms, wall_ms) = (clock::monotonic_ms(), clock::wall_ms());
            let mut next = Some(first);
            taken = 0;
            while let Some(event) = next {
                let input = match event {
                    Event::Input(input) => input,
                    Event::Bounded(input) => {
                        self.waiting.fetch_sub(1, Ordering::Relaxed);
                        input
                    }
                    Event::Stop => return,
                };
                let place = place_of(&input);
                self.core.step(now_ms, wall_ms, input, &mut effects);
                place.into_iter().for_each(reached);
                taken += 1;
                next = if taken < INPUTS_MAX { self.inbox.try_recv().ok() } else { None };
            }
        }
    }

    /// Messages of leaders leave before their own fsync (dissertation §10.2.1). What may be done in place comes last.
    /// `false`: the node cannot go on.
    fn perform(&mut self, mut effects: Effects<Reply>) -> bool {
        if !effects.sends.is_empty() {
            reached(Place::RaftBeforeSend);
        }
        self.sender.send(std::mem::take(&mut effects.sends));
        for (node, beat) in std::mem::take(&mut effects.beats) {
            reached(Place::RaftBeforeBeat);
            self.sender.beat(node, &beat);
        }
        reached(Place::RaftSent);
        let write = WalJob::take(&mut effects);
        for task in effects.background {
            let job = match task {
                Background::Build { replica } => Job::Build { replica, failures: 0 },
                Background::Settle { replica, checkpoint } => Job::Settle { replica, checkpoint },
                Background::Release { objects } => Job::Release { objects },
                Background::Pull { replica, from, checkpoint } => {
                    reached(Place::RaftSnapshotParked);
                    self.puller.pull(replica, from, checkpoint);
                    continue;
                }
            };
            let _ = self.background.send(background::Order::Work(Box::new(job)));
        }
        reached(Place::RaftHandedOn);
        for (reply, answer) in effects.replies {
            let _ = reply.send(answer);
        }
        for notice in effects.notices {
            (self.notices)(notice);
        }
        // Where peers wait for this node's disk the write comes first; where it is the leader's own, clients are answered first.
        let mut apply = || effects.apply.drain(..).all(|task| self.apply.offer(apply::Job::Task(task)));
        match write {
            Some(job) if job.is_awaited() => self.wal.offer(job) && apply(),
            Some(job) => apply() && self.wal.offer(job),
            None => apply(),
        }
    }

    fn publish_status(&self) {
        let status = self.core.status();
        let shared = status.iter().filter_map(|replica| replica.group.as_ref());
        let led = shared.filter(|group| group.role == Role::Leader && group.conf.voters.len() > 1).count();
        self.leads_shared.store(led, Ordering::Relaxed);
        let reads = self.core.read_counts();
        metrics::counter!("flotilla_reads_by_lease_total").absolute(reads.by_lease);
        metrics::counter!("flotilla_reads_by_round_total").absolute(reads.by_round);
        *self.status.write() = Arc::new(status);
    }
}

/// Where an input may end the node, once the core has taken it and nothing of it is written.
fn place_of(input: &Input<Reply>) -> Option<Place> {
    match input {
        Input::Change { .. } => Some(Place::RaftConfChange),
        Input::Create { .. } => Some(Place::RaftCreate),
        Input::Destroy { .. } => Some(Place::RaftDestroy),
        _ => None,
    }
}
