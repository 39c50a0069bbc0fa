//! The scrub of a node: when it reads how much, and what it has found.
//!
//! Pure apart from the calls to the engine. What is paced is the pause after each step, so that a slow disk
//! gets more rest. Damage that reads find is reported as well, within [`LOOK_MS`].

use flotilla_storage::{DamagedReplica, EngineError, Remedy, StateEngine, remedy};
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng as _, SeedableRng as _},
};

use crate::ScrubConfig;

/// Bytes of a step, if a quarter of a second allows as many; a larger object may exceed it.
const STEP_BYTES_MAX: u64 = 1 << 20;
/// Milliseconds between two looks at what the engine knows to be damaged.
const LOOK_MS: u64 = 2_000;
/// Milliseconds after a step that failed.
const RETRY_MS: u64 = 5_000;

/// How the scrub of a node stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ScrubStatus {
    /// Whether a pass is under way.
    pub running: bool,
    /// Bytes that a pass reads per second.
    pub bytes_per_second: u64,
    /// Bytes that the pass has visited: the last one, if none is under way.
    pub bytes: u64,
    /// Bytes to visit in that pass.
    pub bytes_total: u64,
    /// Objects read since the node started.
    pub objects_total: u64,
    /// Bytes read since the node started.
    pub bytes_read_total: u64,
    /// Objects found damaged by the scrub since the node started.
    pub damaged_total: u64,
    /// Objects that the disk failed to read, since the node started.
    pub unreadable_total: u64,
    /// Passes that have ended since the node started.
    pub passes_total: u64,
    /// When the pass began that is under way, or the last one; Unix milliseconds.
    pub began_ms: Option<u64>,
    /// When the last pass ended; Unix milliseconds.
    pub ended_ms: Option<u64>,
    /// When the next pass begins, if none is under way and one is planned; Unix milliseconds.
    pub next_ms: Option<u64>,
}

/// What follows from a step.
#[derive(Debug, Default)]
pub struct ScrubStep {
    /// The damaged replicas, if there are some or have been at the last step.
    pub damaged: Option<Vec<DamagedReplica>>,
    /// The store refuses all work: the node must end.
    pub fatal: Option<EngineError>,
}

/// Decides when to read, and reads. One for each node.
#[derive(Debug)]
pub struct Scrubber {
    config: ScrubConfig,
    rng: ChaCha8Rng,
    status: ScrubStatus,
    /// When the next step of a pass is due, monotonic milliseconds.
    step_at_ms: Option<u64>,
    /// Another pass was asked for while one was under way, which may have read some objects long before.
    again: bool,
    look_at_ms: u64,
    was_damaged: bool,
}

impl Scrubber {
    /// Passes begin after a random part of the pause, so that nodes that start together do not read together.
    #[must_use]
    pub fn new(config: ScrubConfig, now_ms: u64, wall_ms: u64, seed: u64) -> Self {
        let status = ScrubStatus { bytes_per_second: config.bytes_per_second, ..ScrubStatus::default() };
        let rng = ChaCha8Rng::seed_from_u64(seed);
        let mut scrubber =
            Self { config, rng, status, step_at_ms: None, again: false, look_at_ms: now_ms, was_damaged: false };
        let first_ms = scrubber.part_of(config.pause_ms);
        scrubber.plan(now_ms, wall_ms, first_ms);
        scrubber
    }

    /// How it stands.
    #[must_use]
    pub fn status(&self) -> &ScrubStatus {
        &self.status
    }

    /// Begins a pass: right after the one that is under way, if there is one.
    pub fn start(&mut self, now_ms: u64) {
        if self.status.running {
            self.again = true;
        } else {
            self.step_at_ms = Some(now_ms);
        }
    }

    /// When [`step`](Self::step) is due, monotonic milliseconds.
    #[must_use]
    pub fn due_ms(&self) -> u64 {
        self.step_at_ms.map_or(self.look_at_ms, |step_at_ms| step_at_ms.min(self.look_at_ms))
    }

    /// Does what is due. Reads the disk.
    pub fn step(&mut self, now_ms: u64, wall_ms: u64, engine: &dyn StateEngine) -> ScrubStep {
        let mut step = ScrubStep::default();
        let mut looks = self.look_at_ms <= now_ms;
        if self.step_at_ms.is_some_and(|step_at_ms| step_at_ms <= now_ms) {
            if !self.status.running {
                let (bytes, began_ms) = (0, Some(wall_ms));
                self.status = ScrubStatus { running: true, bytes, began_ms, next_ms: None, ..self.status.clone() };
            }
            looks |= self.read(now_ms, wall_ms, engine, &mut step);
        }
        if looks {
            self.look_at_ms = now_ms + LOOK_MS;
            let damaged = engine.damaged();
            let is_damaged = !damaged.is_empty();
            step.damaged = (is_damaged || self.was_damaged).then_some(damaged);
            self.was_damaged = is_damaged;
        }
        step
    }

    /// Reads some bytes. Returns whether they were damaged.
    fn read(&mut self, now_ms: u64, wall_ms: u64, engine: &dyn StateEngine, step: &mut ScrubStep) -> bool {
        let step_bytes = (self.config.bytes_per_second / 4).clamp(1, STEP_BYTES_MAX);
        let read = match engine.scrub(step_bytes) {
            Ok(read) => read,
            Err(error) => {
                tracing::warn!(%error, "a scrub could not go on");
                step.fatal = Some(error).filter(|error| remedy(error) == Remedy::EndNode);
                self.step_at_ms = Some(now_ms + RETRY_MS);
                return false;
            }
        };
        let status = &mut self.status;
        (status.bytes, status.bytes_total) = read.progress_bytes;
        status.objects_total += read.objects;
        status.bytes_read_total += read.bytes;
        status.damaged_total += read.damaged.len() as u64;
        status.unreadable_total += read.unreadable.len() as u64;
        if read.ended {
            status.running = false;
            status.passes_total += 1;
            status.ended_ms = Some(wall_ms);
            let pause_ms = self.config.pause_ms.saturating_add(self.part_of(self.config.pause_ms / 4));
            self.plan(now_ms, wall_ms, pause_ms);
            if std::mem::take(&mut self.again) {
                self.start(now_ms);
            }
        } else {
            let pause_ms = read.bytes.saturating_mul(1_000) / self.config.bytes_per_second.max(1);
            self.step_at_ms = Some(now_ms.saturating_add(pause_ms));
        }
        !read.damaged.is_empty()
    }

    /// Plans the next pass, if passes begin by themselves.
    fn plan(&mut self, now_ms: u64, wall_ms: u64, after_ms: u64) {
        let plans = self.config.pause_ms > 0;
        self.step_at_ms = plans.then(|| now_ms.saturating_add(after_ms));
        self.status.next_ms = plans.then(|| wall_ms.saturating_add(after_ms));
    }

    /// A random part of a time.
    fn part_of(&mut self, time_ms: u64) -> u64 {
        self.rng.next_u64() % time_ms.saturating_add(1)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use flotilla_storage::MemoryEngine;
    use flotilla_types::{Checkpoint, Epoch, Holder, KeyRange, LogIndex, ObjectId, Position, ReplicaId};
    use flotilla_types::{ShardDescriptor, ShardId, Tables, Term};

    use super::*;

    const HOUR_MS: u64 = 3_600_000;
    const WALL_MS: u64 = 1_000_000_000;
    const REPLICA: ReplicaId = ReplicaId(7);

    /// An engine with objects of 1,000 bytes that a replica needs.
    fn engine(objects: u8) -> (MemoryEngine, Vec<ObjectId>) {
        let engine = MemoryEngine::default();
        let bodies: Vec<_> = (0..objects).map(|n| vec![n; 1_000]).collect();
        let runs: Vec<_> = bodies.iter().map(|body| ObjectId::of(body)).collect();
        let epoch = Epoch::default();
        let descriptor = ShardDescriptor { shard: ShardId(1), range: KeyRange::all(), epoch, replicas: Vec::new() };
        let position =
            Position { index: LogIndex(1), term: Term(1), conf: Arc::default(), descriptor: Arc::new(descriptor) };
        engine.hold(Holder::Receiver(REPLICA), &runs);
        for (id, body) in runs.iter().zip(bodies) {
            engine.import(*id, body.into(), &[]).expect("its bytes");
        }
        let checkpoint =
            Checkpoint { position, system: None, tables: Tables::Pieces { base: Vec::new(), runs: runs.clone() } };
        engine.hold(Holder::Checkpoint(REPLICA), &checkpoint.objects().collect::<Vec<_>>());
        (engine, runs)
    }

    fn scrubber(config: ScrubConfig) -> Scrubber {
        Scrubber::new(config, 0, WALL_MS, 5)
    }

    /// Runs what is due until a time; returns when steps of a pass were done.
    fn run_until(scrubber: &mut Scrubber, engine: &MemoryEngine, until_ms: u64) -> Vec<u64> {
        let mut steps = Vec::new();
        while scrubber.due_ms() < until_ms {
            let now_ms = scrubber.due_ms();
            let before = scrubber.status().bytes_read_total;
            let _ = scrubber.step(now_ms, WALL_MS + now_ms, engine);
            if scrubber.status().bytes_read_total > before {
                steps.push(now_ms);
            }
        }
        steps
    }

    #[test]
    fn a_pass_is_paced_and_the_next_one_follows_hours_later_at_random() {
        let config = ScrubConfig { bytes_per_second: 1_000, pause_ms: 6 * HOUR_MS };
        let (engine, _) = engine(10);
        let mut scrubber = scrubber(config);
        scrubber.start(0);
        let steps = run_until(&mut scrubber, &engine, HOUR_MS);
        assert_eq!(steps, (0..10).map(|n| n * 1_000).collect::<Vec<_>>(), "an object each second");
        let first = scrubber.status().clone();
        assert_eq!((first.running, first.bytes, first.bytes_total), (false, 10_000, 10_000));
        assert_eq!((first.began_ms, first.ended_ms), (Some(WALL_MS), Some(WALL_MS + 10_000)));
        let mut pauses_ms = Vec::new();
        for _ in 0..4 {
            let ended_ms = scrubber.status().ended_ms.expect("a pass has ended") - WALL_MS;
            let steps = run_until(&mut scrubber, &engine, ended_ms + 8 * HOUR_MS);
            pauses_ms.push(steps[0] - ended_ms);
        }
        assert!(pauses_ms.iter().all(|pause_ms| (6 * HOUR_MS..=15 * HOUR_MS / 2).contains(pause_ms)), "{pauses_ms:?}");
        pauses_ms.dedup();
        assert!(pauses_ms.len() > 1, "the random part differs");
        assert_eq!(scrubber.status().passes_total, 5);
    }

    #[test]
    fn the_first_pass_begins_within_the_pause_and_none_if_there_is_none() {
        let config = ScrubConfig { bytes_per_second: 1_000_000, pause_ms: HOUR_MS };
        let (engine, _) = engine(1);
        let first = |seed| {
            let mut scrubber = Scrubber::new(config, 0, WALL_MS, seed);
            let next_ms = scrubber.status().next_ms.expect("it is planned") - WALL_MS;
            assert_eq!(run_until(&mut scrubber, &engine, HOUR_MS + 1), [next_ms]);
            next_ms
        };
        assert!(first(1) <= HOUR_MS && first(1) != first(2));
        let mut asked = scrubber(ScrubConfig { pause_ms: 0, bytes_per_second: 1_000 });
        assert_eq!(run_until(&mut asked, &engine, 9 * HOUR_MS), []);
        asked.start(9 * HOUR_MS);
        assert_eq!(run_until(&mut asked, &engine, 99 * HOUR_MS).len(), 1);
        // Asked for during a pass, another one follows at once.
        asked.start(99 * HOUR_MS);
        let _ = asked.step(99 * HOUR_MS, WALL_MS, &engine);
        assert!(asked.status().running);
        asked.start(99 * HOUR_MS);
        run_until(&mut asked, &engine, 100 * HOUR_MS);
        assert_eq!((asked.status().passes_total, asked.status().running), (3, false));
        assert_eq!(asked.status().next_ms, None);
    }

    #[test]
    fn damage_is_reported_until_it_is_repaired_and_once_more_then() {
        let (engine, objects) = engine(4);
        let mut scrubber = scrubber(ScrubConfig { bytes_per_second: 1_000, pause_ms: 0 });
        engine.rot(objects[2]);
        assert_eq!(scrubber.step(0, WALL_MS, &engine).damaged, None);
        scrubber.start(1);
        let mut reports = Vec::new();
        while scrubber.due_ms() < 10_000 {
            let now_ms = scrubber.due_ms();
            reports.extend(scrubber.step(now_ms, WALL_MS, &engine).damaged);
        }
        let damaged = DamagedReplica { replica: REPLICA, objects: vec![objects[2]] };
        assert!(reports.len() > 1 && reports.iter().all(|report| *report == [damaged.clone()]), "{reports:?}");
        assert_eq!((scrubber.status().damaged_total, scrubber.status().objects_total), (1, 4));
        engine.import(objects[2], vec![2; 1_000].into(), &[]).expect("its bytes");
        let now_ms = scrubber.due_ms();
        assert_eq!(scrubber.step(now_ms, WALL_MS, &engine).damaged, Some(vec![]));
        let now_ms = scrubber.due_ms();
        assert_eq!(scrubber.step(now_ms, WALL_MS, &engine).damaged, None);
        // A read finds damage while no pass is under way.
        engine.rot(objects[0]);
        assert!(engine.object(objects[0]).is_err());
        let now_ms = scrubber.due_ms();
        assert_eq!(scrubber.step(now_ms, WALL_MS, &engine).damaged.map(|damaged| damaged.len()), Some(1));
    }
}
