//! The plan of one run, drawn from its seed: the cluster, its limits, its network, its load, and a schedule
//! of faults.
//!
//! Swarm testing (Groce et al., ISSTA 2012): each seed first draws which kinds of fault it may use, so that
//! both rare mixtures and long runs of one kind occur. The plan is complete before anything runs, so that
//! faults can be left out one by one while the others stay the same.

use flotilla_kv::Limits;
use flotilla_meta::NodeRole;
use flotilla_placement::Sharding;
use flotilla_replication::{HostConfig, Leases, RaftConfig, ScrubConfig};
use rand::{RngExt as _, SeedableRng as _, seq::IndexedRandom as _};
use rand_chacha::ChaCha8Rng;

use crate::network::NetworkFaults;

/// Everything that a seed decides before the run starts.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) nodes: u64,
    pub(crate) buckets: u16,
    /// How keys are distributed. One bucket for ranges.
    pub(crate) sharding: Sharding,
    pub(crate) clients: usize,
    /// Upper end of a client's pause between two operations, microseconds.
    pub(crate) think_us_max: u64,
    pub(crate) host: HostConfig,
    /// The limits of key-value shards.
    pub(crate) kv: Limits,
    pub(crate) network: NetworkFaults,
    /// Bytes of objects that pass through a link in a millisecond: with a few, a shard takes seconds to
    /// transfer, while it is written to. `None` for no bound.
    pub(crate) object_bytes_per_ms: Option<u64>,
    /// Requests for objects that a pull has in flight at one source.
    pub(crate) pull_requests_max: usize,
    /// Upper end of the usual duration of a task of a state machine, microseconds.
    pub(crate) apply_us_max: u64,
    /// Background jobs per thousand that take up to 1.5 s.
    pub(crate) work_slow_per_mille: u32,
    /// Records per hundred that are not in memory when a state machine reads them.
    pub(crate) misses_percent: u32,
    /// Whether clients and faults start while the cluster is still forming.
    pub(crate) load_while_forming: bool,
    /// Duration of the load, milliseconds.
    pub(crate) load_ms: u64,
    pub(crate) faults: Vec<Planned>,
    /// When the operator begins to raise the cluster version, milliseconds after the clients start. `None`:
    /// when the cluster is founded.
    pub(crate) upgrade_at_ms: Option<u64>,
    /// Whether a node is drained, and taken back, when the cluster has converged.
    pub drains_at_rest: bool,
    /// Client operations per hundred that write records which expire.
    pub expiring_percent: u32,
    /// Upper end of the pause between two large values, microseconds. `None` for no values.
    pub value_pause_us_max: Option<u64>,
    /// The role of nodes that join under load, once the cluster has roles. `None` for the default.
    pub(crate) joining: Option<NodeRole>,
}

/// One fault of a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Planned {
    /// When it begins, milliseconds after the clients start.
    pub at_ms: u64,
    /// Duration, milliseconds of simulated time. Ignored by faults that take effect at once.
    pub lasts_ms: u64,
    /// The kind of fault.
    pub fault: Fault,
    /// A random number that chooses the node, direction or size when the fault begins.
    pub pick: u64,
}

/// The kinds of faults and of operator actions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// One process is killed and restarted.
    Crash,
    /// All processes are killed at once and restarted one after the other.
    CrashAll,
    /// A process is suspended and resumed, as by SIGSTOP.
    Pause,
    /// One node is cut off from all others.
    Isolate,
    /// The cluster is split into two halves.
    Halves,
    /// A node can only send, or only receive.
    OneWay,
    /// Two halves are cut off from each other, and one node reaches both.
    Bridge,
    /// Frames are lost, duplicated and delayed on all links.
    FlakyNetwork,
    /// Answers to object pulls are corrupted in transit.
    CorruptPulls,
    /// A node answers requests for objects late.
    SlowSource,
    /// The log's disk is slow.
    SlowDisk,
    /// An fsync of the log fails, which ends the process.
    FsyncFails,
    /// No space for checkpoints and pulled objects.
    DiskFull,
    /// The wall clock jumps forwards or backwards.
    ClockJump,
    /// The clocks of a node run fast or slow.
    ClockDrift,
    /// Leadership of a shard is transferred.
    TransferLeader,
    /// One more node joins.
    Join,
    /// A node is removed permanently.
    Remove,
    /// A node loses its disk and joins again under a new id.
    Wipe,
    /// A node restarts on an older copy of its disk.
    RollBack,
    /// Log entries are damaged, and the node restarts.
    LogBitRot,
    /// An object is damaged, and the node restarts.
    ObjectBitRot,
    /// Reads and writes of objects, and reads of log entries, fail with an I/O error, which ends the process,
    /// also right after each start.
    DiskFails,
    /// The range epoch of a shard grows, by an entry of its log: the maps of all gateways are outdated.
    RangeChange,
    /// A node is drained, and taken back.
    Drain,
    /// An object is damaged, and nobody notices before something reads it: a scrub, if nothing else.
    ObjectRots,
    /// A replica's state gets a record that no entry has written.
    Flaw,
    /// An operator moves a replica to another node, and may pause and resume, or cancel, the move.
    Move,
    /// An operator splits a shard.
    Split,
    /// An operator merges two shards, and may cancel that.
    Merge,
    /// Shards are split by themselves, once they have grown a little.
    SplitBySize,
    /// Shards that came of splits are merged by themselves, once nobody has used them for a moment.
    MergeUnused,
}

impl Fault {
    /// Every kind but [`Fault::RangeChange`], [`Fault::Drain`], [`Fault::ObjectRots`], [`Fault::SlowSource`],
    /// [`Fault::Flaw`], [`Fault::Move`], [`Fault::Split`], [`Fault::Merge`], [`Fault::SplitBySize`] and
    /// [`Fault::MergeUnused`], which are drawn apart.
    /// The order matters: seeds draw from it.
    pub const ALL: [Self; 22] = [
        Self::Crash,
        Self::CrashAll,
        Self::Pause,
        Self::Isolate,
        Self::Halves,
        Self::OneWay,
        Self::Bridge,
        Self::FlakyNetwork,
        Self::CorruptPulls,
        Self::SlowDisk,
        Self::FsyncFails,
        Self::DiskFull,
        Self::ClockJump,
        Self::ClockDrift,
        Self::TransferLeader,
        Self::Join,
        Self::Remove,
        Self::Wipe,
        Self::RollBack,
        Self::LogBitRot,
        Self::ObjectBitRot,
        Self::DiskFails,
    ];
}

impl Plan {
    /// Draws the plan of a seed.
    pub(crate) fn draw(seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let nodes = *[3, 3, 3, 4, 4, 5, 5, 7].choose(&mut rng).unwrap_or(&3);
        let load_ms = rng.random_range(6_000..16_000);
        let kinds: Vec<_> = Fault::ALL.into_iter().filter(|_| rng.random_bool(0.35)).collect();
        let count = if kinds.is_empty() { 0 } else { rng.random_range(1..16) };
        let mut faults: Vec<_> = (0..count)
            .filter_map(|_| {
                Some(Planned {
                    at_ms: rng.random_range(0..load_ms),
                    lasts_ms: *[100, 300, 1_000, 2_500, 6_000].choose(&mut rng)?,
                    fault: *kinds.choose(&mut rng)?,
                    pick: rng.random(),
                })
            })
            .collect();
        faults.sort_by_key(|planned| planned.at_ms);
        let mut plan = Self {
            seed,
            nodes,
            buckets: rng.random_range(1..=3),
            sharding: Sharding::Hash,
            clients: rng.random_range(2..=6),
            think_us_max: *[5_000, 20_000, 60_000].choose(&mut rng).unwrap_or(&20_000),
            host: if rng.random_bool(0.8) { small_limits() } else { HostConfig::default() },
            kv: Limits::default(),
            network: NetworkFaults {
                lost_per_mille: *[0, 0, 0, 5, 30].choose(&mut rng).unwrap_or(&0),
                duplicated_per_mille: *[0, 0, 10, 100].choose(&mut rng).unwrap_or(&0),
                delay_us_max: *[500, 2_000, 2_000, 20_000].choose(&mut rng).unwrap_or(&2_000),
                ..NetworkFaults::healthy()
            },
            object_bytes_per_ms: None,
            pull_requests_max: 3,
            apply_us_max: *[100, 300, 300, 10_000].choose(&mut rng).unwrap_or(&300),
            work_slow_per_mille: *[2, 2, 100].choose(&mut rng).unwrap_or(&2),
            misses_percent: 0,
            load_while_forming: rng.random_bool(0.3),
            load_ms,
            faults,
            upgrade_at_ms: None,
            drains_at_rest: false,
            expiring_percent: 0,
            value_pause_us_max: None,
            joining: None,
        };
        if rng.random_bool(0.15) {
            plan.host.leases = Leases::Off;
        }
        // A gateway whose clock is far ahead dates its commands by it, and its session then takes a place for
        // as long: a table this small would stay full.
        let clock_jumps = plan.faults.iter().any(|planned| planned.fault == Fault::ClockJump);
        if rng.random_bool(0.25) && !clock_jumps {
            plan.kv = few_sessions();
        }
        if rng.random_bool(0.5) {
            plan.upgrade_at_ms = Some(rng.random_range(0..load_ms));
        }
        if rng.random_bool(0.25) {
            plan.object_bytes_per_ms = [2, 5, 20].choose(&mut rng).copied();
        }
        if let Some(ticks) = [0, 3, 10, 40].choose(&mut rng) {
            plan.host.raft.rest_after_ticks = *ticks;
        }
        if rng.random_bool(0.3) {
            plan.add_some(&mut rng, Fault::RangeChange, [50, 200, 1_000]);
        }
        plan.misses_percent = *[0, 3, 30].choose(&mut rng).unwrap_or(&3);
        plan.drains_at_rest = rng.random_bool(0.25);
        if rng.random_bool(0.25) {
            plan.add_some(&mut rng, Fault::Drain, [300, 2_500, 6_000]);
        }
        // Passes of less than a second, to some of a few seconds each.
        plan.host.scrub = ScrubConfig {
            bytes_per_second: *[4_000, 40_000].choose(&mut rng).unwrap_or(&40_000),
            pause_ms: *[200, 2_000, 6_000].choose(&mut rng).unwrap_or(&2_000),
        };
        if rng.random_bool(0.3) {
            plan.add_some(&mut rng, Fault::ObjectRots, [100, 1_000, 2_500]);
        }
        plan.expiring_percent = *[0, 10, 40].choose(&mut rng).unwrap_or(&10);
        plan.pull_requests_max = *[1, 1, 3].choose(&mut rng).unwrap_or(&3);
        if rng.random_bool(0.3) {
            plan.add_some(&mut rng, Fault::SlowSource, [2_500, 6_000, 12_000]);
        }
        plan.value_pause_us_max = *[None, Some(80_000), Some(400_000)].choose(&mut rng).unwrap_or(&None);
        if plan.value_pause_us_max.is_some() {
            // So many more bytes are stored, and passes take as long.
            plan.host.scrub.bytes_per_second *= 100;
        }
        if rng.random_bool(0.3) {
            plan.add_some(&mut rng, Fault::Flaw, [100, 2_500, 6_000]);
        }
        if rng.random_bool(0.4) {
            plan.add_some(&mut rng, Fault::Move, [50, 300, 1_500]);
        }
        if rng.random_bool(0.7) {
            for _ in 0..rng.random_range(1..5) {
                plan.add_some(&mut rng, Fault::Split, [50, 300, 1_500]);
            }
        }
        // A shard with a flaw is not split.
        if rng.random_bool(0.4) && !plan.faults.iter().any(|planned| planned.fault == Fault::Flaw) {
            plan.add_some(&mut rng, Fault::SplitBySize, [500, 2_500, 6_000]);
            // Buckets are not split by themselves, and each has a shard from the beginning.
            (plan.sharding, plan.buckets) = (Sharding::Range, 1);
        }
        let roles = [None, Some(NodeRole::Gateway), Some(NodeRole::Gateway), Some(NodeRole::Storage { weight: 3 })];
        plan.joining = *roles.choose(&mut rng).unwrap_or(&None);
        if rng.random_bool(0.7) {
            for _ in 0..rng.random_range(1..5) {
                plan.add_some(&mut rng, Fault::Merge, [20, 150, 1_500]);
            }
        }
        // Neither is one merged.
        if rng.random_bool(0.4) && !plan.faults.iter().any(|planned| planned.fault == Fault::Flaw) {
            plan.add_some(&mut rng, Fault::MergeUnused, [50, 300, 1_500]);
        }
        plan
    }

    /// Adds one to three faults of a kind that is drawn apart from [`Fault::ALL`].
    fn add_some(&mut self, rng: &mut ChaCha8Rng, fault: Fault, lasts_ms: [u64; 3]) {
        let load_ms = self.load_ms;
        self.faults.extend((0..rng.random_range(1..4)).map(|_| Planned {
            at_ms: rng.random_range(0..load_ms),
            lasts_ms: *lasts_ms.choose(rng).unwrap_or(&lasts_ms[0]),
            fault,
            pick: rng.random(),
        }));
        self.faults.sort_by_key(|planned| planned.at_ms);
    }
}

impl Plan {
    /// Whether wall clocks may differ by more than nodes tolerate: then a write may not follow what was seen.
    pub(crate) fn disturbs_clocks(&self) -> bool {
        self.faults.iter().any(|planned| matches!(planned.fault, Fault::ClockJump | Fault::ClockDrift))
    }
}

/// Clock drifts that [`Fault::ClockDrift`] uses, parts per million.
pub(crate) const DRIFTS_PPM: [i64; 4] = [-100_000, -10_000, 10_000, 100_000];

/// Limits so small that checkpoints, snapshots and rejections happen often.
fn small_limits() -> HostConfig {
    HostConfig {
        raft: RaftConfig {
            append_bytes_max: 1 << 10,
            append_inflight_max: 8,
            uncommitted_bytes_max: 16 << 10,
            committed_bytes_max: 4 << 10,
            cache_bytes_max: 2 << 10,
            ..RaftConfig::default()
        },
        batch_commands_max: 4,
        batch_bytes_max: 512,
        entries_inflight_max: 8,
        pending_commands_max: 64,
        pending_bytes_max: 16 << 10,
        unapplied_bytes_max: 16 << 10,
        memtable_bytes_max: 2 << 10,
        memtables_bytes_max: 16 << 10,
        log_bytes_max: 16 << 10,
        log_tail_entries: 16,
        ..HostConfig::default()
    }
}

/// Limits so small that shards often have no room for one more session or outcome.
fn few_sessions() -> Limits {
    Limits { sessions_max: 2, outcomes_per_session_max: 3, outcomes_max: 4, ..Limits::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The drift exceeds the percentage that a leader allows for, and stays within its total margin at these
    /// settings. Leases promise nothing beyond that margin.
    #[test]
    fn drift_stays_within_the_margin_of_leases() {
        let million = 1_000_000;
        let (slowest, fastest) = (million + DRIFTS_PPM[0], million + DRIFTS_PPM[3]);
        for host in [small_limits(), HostConfig::default()] {
            let lease_ms = i64::try_from(host.lease_ms().unwrap_or(0)).unwrap_or(i64::MAX);
            let promise_ms = (host.raft.election_ticks as i64 - 1) * host.tick_ms as i64;
            assert!(lease_ms > 0 && lease_ms * million / slowest + 1 < promise_ms * million / fastest);
        }
    }
}
