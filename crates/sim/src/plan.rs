//! What one seed will do: the cluster, its bounds, its network, its load, and what goes wrong when.
//!
//! Swarm testing (Groce et al., ISSTA 2012): each seed draws which kinds of fault it has at all, so that rare mixtures
//! and long stretches of one kind both come up. The plan is made before anything runs, so that faults can be taken out
//! of it one by one and the rest stays.

use flotilla_replication::{HostConfig, Leases, RaftConfig};
use rand::{RngExt as _, SeedableRng as _, seq::IndexedRandom as _};
use rand_chacha::ChaCha8Rng;

use crate::network::Weather;

/// A whole run, before it begins.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) nodes: u64,
    pub(crate) buckets: u16,
    pub(crate) clients: usize,
    /// Most pauses between two operations of a client are shorter, microseconds.
    pub(crate) think_us_max: u64,
    pub(crate) host: HostConfig,
    pub(crate) weather: Weather,
    /// Most tasks of a state machine take less, microseconds.
    pub(crate) apply_us_max: u64,
    /// Of a thousand background jobs so many take up to a second and a half.
    pub(crate) work_slow_per_mille: u32,
    /// Whether faults and clients begin while the cluster still forms.
    pub(crate) early: bool,
    /// How long the load runs, milliseconds.
    pub(crate) load_ms: u64,
    pub(crate) faults: Vec<Planned>,
}

/// One fault of a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Planned {
    /// When it begins, milliseconds after the clients do.
    pub at_ms: u64,
    /// For how long, milliseconds of simulated time. Ignored by faults that are over at once.
    pub lasts_ms: u64,
    /// What happens.
    pub fault: Fault,
    /// Any number: chooses among nodes, directions and sizes when it begins.
    pub pick: u64,
}

/// What can go wrong, or be done to a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// A process is killed and starts again.
    Crash,
    /// All are killed at once and start again, one after the other.
    CrashAll,
    /// A process stops and goes on.
    Pause,
    /// One node and the others do not reach each other.
    Isolate,
    /// Two halves do not reach each other.
    Halves,
    /// A node is not heard, or hears nothing.
    OneWay,
    /// Two halves reach each other only through one node that both reach.
    Bridge,
    /// Frames are lost, doubled and late everywhere.
    Storm,
    /// Peers answer with objects that are not what was asked for.
    Lies,
    /// The log's disk is slow.
    SlowDisk,
    /// An fsync of the log fails, which ends the process.
    FsyncFails,
    /// No room for checkpoints and pulled objects.
    DiskFull,
    /// The wall clock jumps forwards or backwards.
    ClockJump,
    /// The clocks of a node run fast or slow.
    ClockDrift,
    /// A leader is told to hand over.
    Transfer,
    /// One more node joins.
    Join,
    /// A node is removed for good.
    Remove,
    /// A node loses its disk, and joins again as another one.
    Wipe,
    /// A node comes back with an older copy of its disk.
    RollBack,
    /// Entries in a log rot.
    RotLog,
    /// An object rots, and the node restarts.
    RotObject,
}

impl Fault {
    /// Every kind.
    pub const ALL: [Self; 21] = [
        Self::Crash,
        Self::CrashAll,
        Self::Pause,
        Self::Isolate,
        Self::Halves,
        Self::OneWay,
        Self::Bridge,
        Self::Storm,
        Self::Lies,
        Self::SlowDisk,
        Self::FsyncFails,
        Self::DiskFull,
        Self::ClockJump,
        Self::ClockDrift,
        Self::Transfer,
        Self::Join,
        Self::Remove,
        Self::Wipe,
        Self::RollBack,
        Self::RotLog,
        Self::RotObject,
    ];
}

impl Plan {
    /// What a seed stands for.
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
            clients: rng.random_range(2..=6),
            think_us_max: *[5_000, 20_000, 60_000].choose(&mut rng).unwrap_or(&20_000),
            host: if rng.random_bool(0.8) { small_bounds() } else { HostConfig::default() },
            weather: Weather {
                lost_per_mille: *[0, 0, 0, 5, 30].choose(&mut rng).unwrap_or(&0),
                doubled_per_mille: *[0, 0, 10, 100].choose(&mut rng).unwrap_or(&0),
                delay_us_max: *[500, 2_000, 2_000, 20_000].choose(&mut rng).unwrap_or(&2_000),
                ..Weather::fair()
            },
            apply_us_max: *[100, 300, 300, 10_000].choose(&mut rng).unwrap_or(&300),
            work_slow_per_mille: *[2, 2, 100].choose(&mut rng).unwrap_or(&2),
            early: rng.random_bool(0.3),
            load_ms,
            faults,
        };
        if rng.random_bool(0.15) {
            plan.host.leases = Leases::Off;
        }
        plan
    }
}

/// How fast or slow the clocks of a node may run, parts per million.
pub(crate) const DRIFTS_PPM: [i64; 4] = [-100_000, -10_000, 10_000, 100_000];

/// Bounds so small that checkpoints, snapshots and refusals happen all the time.
fn small_bounds() -> HostConfig {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// What is drawn is more than a leader allows for in percent, and within what it allows for in all at these settings: leases promise
    /// nothing beyond that.
    #[test]
    fn the_drift_that_is_drawn_is_within_what_leases_allow_for() {
        let million = 1_000_000;
        let (slowest, fastest) = (million + DRIFTS_PPM[0], million + DRIFTS_PPM[3]);
        for host in [small_bounds(), HostConfig::default()] {
            let lease_ms = i64::try_from(host.lease_ms().unwrap_or(0)).unwrap_or(i64::MAX);
            let promise_ms = (host.raft.election_ticks as i64 - 1) * host.tick_ms as i64;
            assert!(lease_ms > 0 && lease_ms * million / slowest + 1 < promise_ms * million / fastest);
        }
    }
}
