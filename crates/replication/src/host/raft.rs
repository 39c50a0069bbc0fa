//! The raft thread, which owns the core. It writes the log and applies entries inline while that is fast, see
//! `inline`.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use flotilla_failpoints::{Place, reached};
use flotilla_storage::StateEngine;
use parking_lot::{Mutex, RwLock};

use super::{Event, Reply, apply, background, frames, inline::InlineExecutor, pull, wal};
use crate::{
    Background, Core, Demands, Effects, HostConfig, Input, Notice, Replicas, clock,
    work::{Job, WalJob},
};

/// Inputs per flush.
const INPUTS_MAX: usize = 4_096;
/// Milliseconds between two looks for snapshots that have expired.
const PINS_EXPIRE_MS: u64 = 5_000;

pub(super) struct Raft {
    pub(super) core: Core<Reply>,
    pub(super) config: HostConfig,
    pub(super) inbox: mpsc::Receiver<Event>,
    pub(super) waiting: Arc<AtomicUsize>,
    pub(super) sender: frames::Sender,
    pub(super) wal: Arc<InlineExecutor<wal::Wal>>,
    pub(super) apply: Arc<InlineExecutor<apply::Apply>>,
    pub(super) background: mpsc::Sender<background::Order>,
    pub(super) compaction: mpsc::Sender<background::Order>,
    pub(super) puller: pull::Puller,
    /// The number of snapshots that readers have open, and when to look for those that have expired.
    pub(super) open_pins: Arc<AtomicUsize>,
    pub(super) pins_expire_ms: u64,
    pub(super) engine: Arc<dyn StateEngine>,
    pub(super) notices: Box<dyn Fn(Notice) + Send>,
    pub(super) fatal: Arc<dyn Fn(&str) + Send + Sync>,
    pub(super) status: Arc<RwLock<Replicas>>,
    pub(super) transferable_leaderships: Arc<AtomicUsize>,
    pub(super) demands: Arc<Mutex<Demands>>,
}

impl Raft {
    /// Runs the thread. `effects` are those of opening the core.
    pub(super) fn run(mut self, effects: Effects<Reply>) {
        self.serve(effects);
        self.wal.close();
    }

    /// Processes inputs until [`Event::Stop`], or until a worker has ended.
    fn serve(&mut self, mut effects: Effects<Reply>) {
        let mut next_tick_ms = clock::monotonic_ms() + self.config.tick_ms;
        let mut taken = 0;
        loop {
            // Read the clock again: the process may have been stopped since the inputs were received.
            self.core.flush(clock::monotonic_ms(), &mut effects);
            if !self.perform(std::mem::take(&mut effects)) {
                return;
            }
            let now_ms = clock::monotonic_ms();
            if now_ms >= next_tick_ms {
                self.core.step(now_ms, clock::wall_ms(), Input::Tick, &mut effects);
                self.publish_status();
                if self.open_pins.load(Ordering::Relaxed) > 0 && now_ms >= self.pins_expire_ms {
                    self.pins_expire_ms = now_ms + PINS_EXPIRE_MS;
                    self.apply.enqueue(apply::Job::ExpirePins);
                }
                // Missed ticks are skipped: a burst of them would look like a long silence of all peers.
                next_tick_ms = now_ms + self.config.tick_ms;
                continue;
            }
            let first = self.inbox.recv_timeout(Duration::from_millis(next_tick_ms - now_ms));
            let Ok(first) = first else { continue };
            // Under load, let threads that have inputs for this one run first, so that one flush serves all
            // of them.
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

    /// Performs effects. Leaders send before their own fsync (Raft dissertation, §10.2.1); work that may run
    /// inline comes last. Returns `false` if the core or a worker has failed and the node must stop.
    fn perform(&mut self, mut effects: Effects<Reply>) -> bool {
        if let Some(error) = &effects.fatal {
            (self.fatal)(&error.to_string());
            return false;
        }
        for hold in std::mem::take(&mut effects.holds) {
            self.engine.hold(hold.holder, &hold.objects);
        }
        if !effects.sends.is_empty() {
            reached(Place::RaftBeforeSend);
        }
        self.sender.send(std::mem::take(&mut effects.sends));
        for (node, heartbeat) in std::mem::take(&mut effects.node_heartbeats) {
            reached(Place::RaftBeforeNodeHeartbeat);
            self.sender.send_node_heartbeat(node, &heartbeat);
        }
        reached(Place::RaftSent);
        let write = WalJob::take(&mut effects);
        for task in effects.background {
            let job = match task {
                Background::Build { replica, format } => Job::Build { replica, format, failures: 0 },
                Background::InstallCheckpoint { replica, checkpoint } => {
                    Job::InstallCheckpoint { replica, checkpoint, failures: 0 }
                }
                Background::Compact { replica, folding } => {
                    let job = Box::new(Job::Compact { replica, folding });
                    let _ = self.compaction.send(background::Order::Work(job));
                    continue;
                }
                Background::Count(count) => {
                    let _ = self.compaction.send(background::Order::Work(Box::new(Job::Count(count))));
                    continue;
                }
                Background::Gather(gather) => {
                    self.puller.gather(gather);
                    continue;
                }
                Background::Expect { objects } => Job::Expect { objects },
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
        // If peers wait for this node's disk, the write comes first; else clients of committed entries do.
        let mut apply = || effects.apply.drain(..).all(|task| self.apply.run_or_enqueue(apply::Job::Task(task)));
        match write {
            Some(job) if job.is_awaited() => self.wal.run_or_enqueue(job) && apply(),
            Some(job) => apply() && self.wal.run_or_enqueue(job),
            None => apply(),
        }
    }

    fn publish_status(&mut self) {
        let updates = self.core.status_updates(&self.status.read());
        self.transferable_leaderships.store(self.core.transferable_leaderships(), Ordering::Relaxed);
        if !updates.is_empty() {
            updates.apply(&mut self.status.write());
        }
        let demands = self.core.take_demands();
        if !demands.is_empty() {
            *self.demands.lock() += demands;
        }
        metrics::counter!("flotilla_tick_visits_total").absolute(self.core.visits());
        metrics::gauge!("flotilla_resting_replicas").set(self.core.resting() as f64);
        let reads = self.core.read_counts();
        metrics::counter!("flotilla_reads_by_lease_total").absolute(reads.by_lease);
        metrics::counter!("flotilla_reads_by_round_total").absolute(reads.by_round);
    }
}

/// The failpoint after the core has taken this input and before any of its effects is durable.
fn place_of(input: &Input<Reply>) -> Option<Place> {
    match input {
        Input::Change { .. } => Some(Place::RaftConfChange),
        Input::Create { .. } => Some(Place::RaftCreate),
        Input::Destroy { .. } => Some(Place::RaftDestroy),
        _ => None,
    }
}
