//! The threads of a shard host as events of virtual time: same code ([`flotilla_replication::work`]), same
//! order of work.

use flotilla_replication::{
    Applied, ApplyTask, Background, Effects, Input, Load, Loaded, Notice, Outgoing, Returned,
    work::{self, Job, JobResult, Pull, PullError},
};
use flotilla_storage::MachineError;
use flotilla_types::{NodeId, ReplicaId};
use rand::RngExt as _;

use super::{Node, NodeEvent, Running};
use crate::{
    network::{CallKind, Frame},
    node::rpc::CallPurpose,
    world::World,
};

/// Background jobs that run in parallel; same as in the host.
const WORKERS: usize = 2;
/// Same as in the host.
const PULL_TIMEOUT_MS: u64 = 20_000;

/// A task in the queue of the apply thread.
pub(super) enum ApplyJob {
    Run(ApplyTask<u64>),
    Loaded(Load, Result<Loaded, MachineError>),
    Returned(Returned<u64>),
}

/// Ticks between two replicas of a node that hold back its log, on average.
const LOG_RELEASE_TICKS: u32 = 100;

/// A pull in flight.
pub(super) struct Pulling {
    replica: ReplicaId,
    from: NodeId,
    pull: Pull,
}

impl World {
    pub(super) fn enqueue(&mut self, node: &Node, running: &mut Running, input: Input<u64>) {
        running.inbox.push(input);
        if !std::mem::replace(&mut running.wake_scheduled, true) {
            let delay_us = self.rng.random_range(10..200);
            self.schedule_on(node, delay_us, NodeEvent::Wake);
        }
    }

    /// Now and then the log cannot free space because of some replica.
    pub(super) fn release_some_log(&mut self, node: &Node, running: &mut Running) {
        if self.rng.random_ratio(1, LOG_RELEASE_TICKS) {
            let replicas = running.core.status();
            if !replicas.is_empty() {
                let replica = replicas[self.rng.random_range(0..replicas.len())].replica;
                self.enqueue(node, running, Input::ReleaseLog { replica });
            }
        }
    }

    pub(super) fn wake(&mut self, node: &mut Node, running: &mut Running) {
        running.wake_scheduled = false;
        let mut effects = Effects::default();
        let (now_ms, wall_ms) = (node.clock.mono_ms(self.now_us), node.clock.wall_ms(self.now_us));
        for input in std::mem::take(&mut running.inbox) {
            running.core.step(now_ms, wall_ms, input, &mut effects);
        }
        let (reads, elections) = (running.core.read_counts(), self.checks.counts.elections);
        running.core.flush(now_ms, &mut effects);
        self.checks.reads(reads, running.core.read_counts());
        self.checks.status(node, &running.core.status());
        self.checks.leases(node.id, &running.core.leases(now_ms));
        if self.checks.counts.elections > elections {
            self.check_all_leases();
        }
        self.perform(node, running, effects);
    }

    /// After an election no other node may hold a lease, not even a paused or partitioned one.
    fn check_all_leases(&self) {
        for node in self.nodes.values() {
            if let Some(running) = &node.running {
                self.checks.leases(node.id, &running.core.leases(node.clock.mono_ms(self.now_us)));
            }
        }
    }

    pub(super) fn perform(&mut self, node: &mut Node, running: &mut Running, mut effects: Effects<u64>) {
        if effects.fatal.is_some() {
            running.control.fatal = true;
            return;
        }
        self.send_all(node, running, std::mem::take(&mut effects.sends));
        for (to, heartbeat) in std::mem::take(&mut effects.node_heartbeats) {
            if running.links.contains_key(&to) {
                self.send(node.id, to, Frame::Raft(work::pack_node_heartbeat(&heartbeat)));
            }
        }
        if let Some(job) = work::WalJob::take(&mut effects) {
            running.wal_pending.push(job);
            self.write(node, running);
        }
        for task in effects.apply {
            self.checks.apply_task(&task);
            running.tasks.push_back(ApplyJob::Run(task));
            self.apply(node, running);
        }
        for task in effects.background {
            match task {
                Background::Build { replica } => self.work(node, running, Job::Build { replica, failures: 0 }),
                Background::InstallCheckpoint { replica, checkpoint } => {
                    self.work(node, running, Job::InstallCheckpoint { replica, checkpoint, failures: 0 });
                }
                Background::Release { objects } => self.work(node, running, Job::Release { objects }),
                Background::Pull { replica, from, checkpoint } => {
                    let pull = Pull::start(&node.disk, checkpoint);
                    let number = running.next_id();
                    running.pulls.insert(number, Pulling { replica, from, pull });
                    self.advance_pull(node, running, number);
                }
            }
        }
        for (reply, answer) in effects.replies {
            self.replied(node, running, reply, answer);
        }
        for notice in effects.notices {
            self.notice(node, running, notice);
        }
    }

    fn send_all(&mut self, node: &Node, running: &mut Running, messages: Vec<Outgoing>) {
        messages.iter().for_each(|outgoing| self.checks.message(&outgoing.message));
        for packed in work::pack(messages) {
            self.transmit(node, running, packed);
        }
    }

    fn transmit(&mut self, node: &Node, running: &mut Running, packed: work::PackedFrame) {
        if running.links.contains_key(&packed.node) {
            self.send(node.id, packed.node, Frame::Raft(packed.frame));
        } else {
            for input in packed.into_failures() {
                self.enqueue(node, running, input);
            }
        }
    }

    /// Starts the next batch, if none is in flight.
    fn write(&mut self, node: &Node, running: &mut Running) {
        if running.wal_in_flight.is_some() || running.wal_pending.is_empty() {
            return;
        }
        let merged = running.wal.merge(std::mem::take(&mut running.wal_pending));
        let delay_us = match self.rng.random_range(0..200) {
            _ if merged.batch().is_none() => 0,
            0 => 40_000,
            _ => self.rng.random_range(100..node.disk_us_max),
        };
        running.wal_in_flight = Some(merged);
        self.schedule_on(node, delay_us, NodeEvent::Synced);
    }

    pub(super) fn synced(&mut self, node: &mut Node, running: &mut Running) {
        if node.fsync_fails {
            // The process exits; `crash` decides whether the write happened.
            running.control.fatal = true;
            return;
        }
        let Some(merged) = running.wal_in_flight.take() else { return };
        let batch = merged.batch().cloned();
        let durable = match running.wal.write(&node.disk, merged) {
            Ok(durable) => durable,
            Err(error) => panic!("{}: the log rejected a batch: {error}: {batch:?}", node.id),
        };
        if let Some(batch) = &batch {
            self.checks.log_batch(node, batch);
        }
        if !durable.done.is_empty() {
            self.enqueue(node, running, Input::Written { sequence: durable.sequence, done: durable.done });
        }
        self.send_all(node, running, durable.after);
        self.write(node, running);
    }

    fn apply(&mut self, node: &Node, running: &mut Running) {
        // Adding the first task starts it; `applied` starts the later ones.
        if running.tasks.len() == 1 {
            self.start_task(node, running);
        }
    }

    fn start_task(&mut self, node: &Node, running: &Running) {
        if !running.tasks.is_empty() {
            let slow = self.rng.random_range(0..500) == 0;
            let delay_us = if slow { 30_000 } else { self.rng.random_range(10..self.plan.apply_us_max) };
            self.schedule_on(node, delay_us, NodeEvent::Applied);
        }
    }

    pub(super) fn applied(&mut self, node: &mut Node, running: &mut Running) {
        let wall_ms = node.clock.wall_ms(self.now_us);
        let mut out = Applied::default();
        match running.tasks.pop_front() {
            Some(ApplyJob::Run(task)) => running.applier.run(wall_ms, task, &mut out),
            Some(ApplyJob::Loaded(load, result)) => running.applier.loaded(wall_ms, &load, result, &mut out),
            Some(ApplyJob::Returned(returned)) => running.applier.returned(wall_ms, returned, &mut out),
            None => return,
        }
        if out.fatal.is_some() {
            running.control.fatal = true;
            return;
        }
        for load in out.loads {
            self.work(node, running, Job::Load(load));
        }
        for replica in out.destroyed {
            self.work(node, running, Job::Destroy { replica, failures: 0 });
        }
        for slow in out.slow {
            let number = running.next_id();
            running.slow.insert(number, slow);
            let delay_us = if self.rng.random_ratio(1, 20) { 300_000 } else { 5_000 };
            let delay_us = self.rng.random_range(10..delay_us);
            self.schedule_on(node, delay_us, NodeEvent::Slow(number));
        }
        for (reply, answer) in out.replies {
            self.replied(node, running, reply, answer);
        }
        for input in out.inputs {
            if let Input::Applied { replica, index, .. } = &input {
                self.checks.applied(node, *replica, *index);
            }
            self.enqueue(node, running, input);
        }
        let published = running.published.lock().take();
        if let Some(meta) = published {
            self.offer_metadata(node, running, &meta);
        }
        self.start_task(node, running);
    }

    /// Does work of the pool, in any order.
    pub(super) fn do_slow(&mut self, node: &mut Node, running: &mut Running, number: u64) {
        let Some(slow) = running.slow.remove(&number) else { return };
        let done = slow.run(node.clock.mono_ms(self.now_us), &node.disk);
        for (reply, answer) in done.replies {
            self.replied(node, running, reply, answer);
        }
        if done.fatal.is_some() {
            running.control.fatal = true;
            return;
        }
        if let Some(returned) = done.returned {
            running.tasks.push_back(ApplyJob::Returned(returned));
            self.apply(node, running);
        }
    }

    pub(super) fn work(&mut self, node: &Node, running: &mut Running, job: Job) {
        running.jobs.push_back(job);
        self.start_jobs(node, running);
    }

    fn start_jobs(&mut self, node: &Node, running: &mut Running) {
        while running.jobs_running < WORKERS {
            let Some(job) = running.jobs.pop_front() else { return };
            running.jobs_running += 1;
            let slow = self.chance(self.plan.work_slow_per_mille);
            let delay_us = self.rng.random_range(200..if slow { 1_500_000 } else { 20_000 });
            self.schedule_on(node, delay_us, NodeEvent::JobDone(job));
        }
    }

    pub(super) fn worked(&mut self, node: &mut Node, running: &mut Running, job: Job) {
        match job.run(&node.disk) {
            JobResult::Done => {}
            JobResult::Report(input) => self.enqueue(node, running, input),
            JobResult::Loaded(load, result) => {
                running.tasks.push_back(ApplyJob::Loaded(load, result));
                self.apply(node, running);
            }
            JobResult::Retry { job, after_ms } => {
                let delay_us = node.clock.true_us(after_ms);
                self.schedule_on(node, delay_us, NodeEvent::JobRetry(job));
            }
            JobResult::Fatal { .. } => running.control.fatal = true,
        }
        running.jobs_running -= 1;
        self.start_jobs(node, running);
    }

    /// Requests the next objects of a pull, or finishes it.
    pub(super) fn advance_pull(&mut self, node: &mut Node, running: &mut Running, number: u64) {
        let Some(Pulling { from, pull, .. }) = running.pulls.get(&number) else { return };
        let from = *from;
        match pull.request() {
            Some(body) => {
                self.call(node, running, from, CallKind::Objects, body, PULL_TIMEOUT_MS, CallPurpose::Pull(number));
            }
            None => {
                let finished = pull.finish(&node.disk).inspect_err(|_| pull.abandon(&node.disk));
                running.control.fatal |= matches!(&finished, Err(error) if error.ends_node());
                let complete = finished.is_ok();
                self.pull_ended(node, running, number, complete);
            }
        }
    }

    /// Handles the answer, or the failure, of a call for objects.
    pub(super) fn pulled(&mut self, node: &mut Node, running: &mut Running, number: u64, answer: Option<bytes::Bytes>) {
        let Some(pulling) = running.pulls.get_mut(&number) else { return };
        let taken = answer.map(|answer| pulling.pull.on_response(&node.disk, answer));
        let again_ms = match taken {
            Some(Ok(_)) => Some(0),
            Some(Err(error)) if error.ends_node() => {
                running.control.fatal = true;
                None
            }
            Some(Err(PullError::Gone(_))) => None,
            Some(Err(_)) | None => pulling.pull.on_failure(),
        };
        match again_ms {
            Some(pause_ms) => {
                let delay_us = node.clock.true_us(pause_ms) + 100;
                self.schedule_on(node, delay_us, NodeEvent::PullRetry(number));
            }
            None => {
                pulling.pull.abandon(&node.disk);
                self.pull_ended(node, running, number, false);
            }
        }
    }

    fn pull_ended(&mut self, node: &mut Node, running: &mut Running, number: u64, complete: bool) {
        let Some(Pulling { replica, pull, .. }) = running.pulls.remove(&number) else { return };
        self.enqueue(node, running, Input::Pulled { replica, checkpoint: pull.into_checkpoint(), complete });
    }

    fn notice(&mut self, node: &mut Node, running: &mut Running, notice: Notice) {
        match notice {
            Notice::Leader { shard, term, node: Some(leader) } => {
                self.leader_observed(node, running, shard, term, leader)
            }
            Notice::Lost { replicas, reason } => {
                self.note(format!("{} lost {replicas:?}: {reason:?}", node.id));
                self.checks.replicas_lost(node, &replicas, reason);
                running.control.lost(replicas, reason);
            }
            Notice::PeerVersions { node: peer, incarnation, versions } => {
                running.control.cluster.observe_versions(peer, incarnation, versions);
            }
            Notice::Leader { .. } | Notice::Descriptor(_) | Notice::Destroyed { .. } => {}
        }
    }
}
