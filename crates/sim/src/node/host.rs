//! The threads of a shard host as events of virtual time: same code ([`flotilla_replication::work`]), same
//! order of work.

use std::collections::BTreeMap;

use flotilla_replication::{
    Applied, ApplyTask, Background, Effects, Gather, GatherEnd, Input, Load, Loaded, Notice, Outgoing, Returned,
    work::{self, End, Job, JobResult, Pull, PullBounds, PullOrder, PullRequest, PullState},
};
use flotilla_storage::{MachineError, StateEngine as _};
use flotilla_types::{Checkpoint, Holder, NodeId, ReplicaId};
use flotilla_values::list_refs;
use rand::RngExt as _;

use super::{Node, NodeEvent, Running};
use crate::{
    network::{CallKind, Frame},
    node::rpc::CallPurpose,
    world::World,
};

/// Background jobs that run in parallel; same as in the host.
const WORKERS: usize = 2;
/// A task in the queue of the apply thread.
pub(super) enum ApplyJob {
    Run(ApplyTask<u64>),
    Loaded(Load, Result<Loaded, MachineError>),
    Returned(Returned<u64>),
}

/// Ticks between two replicas of a node that hold back its log, on average.
const LOG_RELEASE_TICKS: u32 = 100;

/// Bounds so small that a pull takes several requests.
pub(super) const PULL_BOUNDS: PullBounds = PullBounds {
    requests_max: 3,
    requests_total_max: 4,
    objects_max: 4,
    response_bytes_max: 1 << 10,
    unsynced_bytes_max: 2 << 10,
};

/// A pull in flight.
pub(super) struct Pulling {
    what: Pulled,
    pull: Pull,
    /// Its requests in flight, by number, and when they were sent.
    requests: BTreeMap<u64, (PullRequest, u64)>,
}

/// What a pull fetches.
enum Pulled {
    Snapshot {
        replica: ReplicaId,
        from: NodeId,
        checkpoint: Box<Checkpoint>,
        /// What replaces it.
        next: Option<Box<Checkpoint>>,
    },
    Refs {
        holder: Holder,
        number: u64,
        deadline_ms: Option<u64>,
    },
}

impl Pulled {
    fn holder(&self) -> Holder {
        match self {
            Self::Snapshot { replica, .. } => Holder::Receiver(*replica),
            Self::Refs { holder, .. } => *holder,
        }
    }
}

impl World {
    pub(crate) fn enqueue(&mut self, node: &Node, running: &mut Running, input: Input<u64>) {
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
        for hold in std::mem::take(&mut effects.holds) {
            node.disk.hold(hold.holder, &hold.objects);
        }
        // Also one that is sent again, after many checkpoints.
        for snapshot in effects.sends.iter().filter_map(|outgoing| outgoing.message.snapshot.as_ref()) {
            let missing = node.disk.missing_from(&snapshot.checkpoint);
            assert!(missing.is_empty(), "{} offers a snapshot without its objects {missing:?}", node.id);
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
                Background::Build { replica, format } => {
                    self.work(node, running, Job::Build { replica, format, failures: 0 })
                }
                Background::InstallCheckpoint { replica, checkpoint } => {
                    self.work(node, running, Job::InstallCheckpoint { replica, checkpoint, failures: 0 });
                }
                Background::Compact { replica, folding } => {
                    self.work(node, running, Job::Compact { replica, folding });
                }
                Background::Expect { objects } => self.work(node, running, Job::Expect { objects }),
                Background::Count(count) => self.work(node, running, Job::Count(count)),
                Background::Gather(gather) => self.start_gather(node, running, gather),
                Background::Pull { replica, from, checkpoint } => {
                    self.start_pull(node, running, replica, from, checkpoint);
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
        match job.run(&node.disk, &|| false) {
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

    pub(super) fn scrub(&mut self, node: &mut Node, running: &mut Running) {
        let (now_ms, wall_ms) = (node.clock.mono_ms(self.now_us), node.clock.wall_ms(self.now_us));
        let step = running.scrubber.step(now_ms, wall_ms, &node.disk);
        if let Some(damaged) = step.damaged {
            self.enqueue(node, running, Input::Damaged(damaged));
        }
        running.control.fatal |= step.fatal.is_some();
        let delay_us = node.clock.true_us(running.scrubber.due_ms().saturating_sub(now_ms).max(1));
        self.schedule_on(node, delay_us, NodeEvent::Scrub);
    }

    /// Starts a pull, in place of one for the same replica.
    fn start_pull(
        &mut self,
        node: &mut Node,
        running: &mut Running,
        replica: ReplicaId,
        from: NodeId,
        checkpoint: Checkpoint,
    ) {
        for pulling in running.pulls.values_mut() {
            if let Pulled::Snapshot { replica: same, from: source, next, .. } = &mut pulling.what
                && (*same, *source) == (replica, from)
            {
                pulling.pull.stop();
                *next = Some(Box::new(checkpoint));
                return;
            }
        }
        let order = PullOrder::of_snapshot(node.id, replica, from, &checkpoint, list_refs);
        self.begin_pull(
            node,
            running,
            Pulled::Snapshot { replica, from, checkpoint: Box::new(checkpoint), next: None },
            order,
        );
    }

    /// Starts to fetch what entries or a command refer to.
    fn start_gather(&mut self, node: &mut Node, running: &mut Running, gather: Gather) {
        let Gather { holder, number, refs, sources, deadline_ms, .. } = gather;
        let order = PullOrder::of_refs(sources, &refs, list_refs);
        self.begin_pull(node, running, Pulled::Refs { holder, number, deadline_ms }, order);
    }

    fn begin_pull(&mut self, node: &mut Node, running: &mut Running, what: Pulled, order: PullOrder) {
        let holder = what.holder();
        running.pulls.retain(|_, pulling| pulling.what.holder() != holder);
        running.fetches.interrupted(node, holder);
        let bounds = PullBounds { requests_max: self.plan.pull_requests_max, ..PULL_BOUNDS };
        match Pull::start(&node.disk, order, bounds) {
            Ok(pull) => {
                let number = running.next_id();
                running.pulls.insert(number, Pulling { what, pull, requests: BTreeMap::new() });
                self.advance_pull(node, running, number);
            }
            Err(error) => {
                running.control.fatal |= error.ends_node();
                self.pull_ended(node, running, what, false);
            }
        }
    }

    /// Sends the requests of a pull that may be sent now, or ends it.
    pub(super) fn advance_pull(&mut self, node: &mut Node, running: &mut Running, number: u64) {
        loop {
            let id = running.next_id();
            let now_ms = node.clock.mono_ms(self.now_us);
            let Some(pulling) = running.pulls.get_mut(&number) else { return };
            if matches!(pulling.what, Pulled::Refs { deadline_ms: Some(deadline_ms), .. } if deadline_ms <= now_ms) {
                pulling.pull.stop();
            }
            let Some(request) = pulling.pull.next_request(now_ms) else { break };
            running.fetches.requested(node, pulling.what.holder(), &request);
            let (source, body, timeout_ms) = (request.source(), request.encode(), request.timeout_ms());
            pulling.requests.insert(id, (request, now_ms));
            let purpose = CallPurpose::Pull { pull: number, request: id };
            self.call(node, running, source, CallKind::Objects, body, timeout_ms, purpose);
        }
        let now_ms = node.clock.mono_ms(self.now_us);
        let waits = running.pulls.get(&number).filter(|pulling| pulling.pull.state() == PullState::Working);
        if let Some(wakes_at_ms) = waits.and_then(|pulling| pulling.pull.wakes_at_ms(now_ms)) {
            let delay_us = node.clock.true_us(wakes_at_ms - now_ms) + 100;
            self.schedule_on(node, delay_us, NodeEvent::PullRetry(number));
        }
        let Some(pulling) = running.pulls.get_mut(&number) else { return };
        let is_whole = match pulling.pull.state() {
            PullState::Working => return,
            PullState::Failed => false,
            PullState::Fetched => match pulling.pull.finish(&node.disk) {
                Ok(true) => true,
                // Something is missing again.
                Ok(false) => {
                    self.schedule_on(node, 100, NodeEvent::PullRetry(number));
                    return;
                }
                Err(error) => {
                    running.control.fatal |= error.ends_node();
                    false
                }
            },
        };
        if let Some(Pulling { what, .. }) = running.pulls.remove(&number) {
            self.pull_ended(node, running, what, is_whole);
        }
    }

    fn pull_ended(&mut self, node: &mut Node, running: &mut Running, what: Pulled, complete: bool) {
        match what {
            Pulled::Refs { holder, number, .. } => {
                self.checks.counts.gathered += u64::from(complete);
                let end = if complete { GatherEnd::Complete } else { GatherEnd::Incomplete };
                self.enqueue(node, running, Input::Gathered { holder, number, end });
            }
            Pulled::Snapshot { replica, from, checkpoint, next } => {
                self.enqueue(node, running, Input::Pulled { replica, checkpoint: *checkpoint, complete });
                if let Some(checkpoint) = next {
                    self.start_pull(node, running, replica, from, *checkpoint);
                }
            }
        }
    }

    /// Handles the answer, or the failure, of a call for objects.
    pub(super) fn pulled(
        &mut self,
        node: &mut Node,
        running: &mut Running,
        (number, request): (u64, u64),
        answer: Option<bytes::Bytes>,
    ) {
        let Some(pulling) = running.pulls.get_mut(&number) else { return };
        let Some((request, sent_ms)) = pulling.requests.remove(&request) else { return };
        let now_ms = node.clock.mono_ms(self.now_us);
        match answer.map(|answer| request.store(&node.disk, answer)) {
            Some(stored) => {
                running.fetches.answered(pulling.what.holder(), &request, stored.objects);
                let counts = &mut self.checks.counts;
                counts.objects_fetched += stored.objects as u64;
                let is_elsewhere = |from: &NodeId| request.source() != *from;
                if matches!(&pulling.what, Pulled::Snapshot { from, .. } if is_elsewhere(from)) {
                    counts.objects_elsewhere += stored.objects as u64;
                }
                counts.objects_bad += u64::from(matches!(stored.end, End::Bad));
                running.control.fatal |= matches!(&stored.end, End::Failed(error) if error.ends_node());
                if pulling.pull.on_stored(now_ms, now_ms - sent_ms, request, stored) {
                    let synced = pulling.pull.sync(&node.disk);
                    running.control.fatal |= matches!(synced, Err(error) if error.ends_node());
                }
            }
            None => {
                running.fetches.answered(pulling.what.holder(), &request, 0);
                pulling.pull.on_failure(now_ms, request);
            }
        }
        self.schedule_on(node, 100, NodeEvent::PullRetry(number));
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
            Notice::Damaged { shard, replica, objects } => {
                self.note(format!("{} {shard} {replica} is damaged: {objects:?}", node.id));
                self.checks.replica_damaged(node);
            }
            Notice::Repaired { shard, replica } => self.note(format!("{} {shard} {replica} is repaired", node.id)),
            Notice::PeerVersions { node: peer, incarnation, versions } => {
                running.control.cluster.observe_versions(peer, incarnation, versions);
            }
            Notice::Leader { .. } | Notice::Descriptor(_) | Notice::Destroyed { .. } => {}
        }
    }
}
