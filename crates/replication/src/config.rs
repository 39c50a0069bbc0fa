//! Bounds and timing of a shard host.

use std::{num::NonZero, thread};

/// Settings of a shard host: timing, batches, checkpoints, queues. Byte bounds may be exceeded by one entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostConfig {
    /// Elections, heartbeats, and bounds of each group.
    pub raft: flotilla_consensus::Config,
    /// Milliseconds per tick; all groups tick together.
    pub tick_ms: u64,
    /// Ticks between node heartbeats to every peer. They carry leaders, log sequences and clocks.
    pub node_heartbeat_ticks: u64,
    /// Commands merged into one entry, at most.
    pub batch_commands_max: usize,
    /// Bytes merged into one entry, at most; a single command may exceed it.
    pub batch_bytes_max: usize,
    /// Entries of one group that may be in flight: proposed and not yet committed.
    pub entries_inflight_max: usize,
    /// Commands that may wait in one group to be proposed; further ones are refused as busy.
    pub pending_commands_max: usize,
    /// Bytes that may wait in one group to be proposed.
    pub pending_bytes_max: usize,
    /// Reads that may wait in one group; further ones are refused as busy.
    pub pending_reads_max: usize,
    /// Committed bytes that may wait for the state machine of one replica. Beyond it, followers drop appends
    /// and leaders refuse writes as busy.
    pub unapplied_bytes_max: usize,
    /// Bytes of one memtable that trigger a checkpoint.
    pub memtable_bytes_max: usize,
    /// Bytes of all memtables together beyond which the largest is checkpointed.
    pub memtables_bytes_max: usize,
    /// Bytes in one replica's log since its last checkpoint that trigger the next one. Other bounds of the log
    /// follow from it: [`log_tail_bytes_max`](Self::log_tail_bytes_max).
    pub log_bytes_max: u64,
    /// Checkpoints in progress at a time.
    pub checkpoints_parallel_max: usize,
    /// Threads for reads that may wait for the disk, of queries and of entries; at least 1. With one, a query
    /// can hold up cold writes. By default as many as processors, 2 to 8: a read that misses the index cache
    /// computes more than it waits, so that more threads would take processors from the raft thread. Choose
    /// more for a disk that is slow and serves many reads at a time.
    pub read_threads: usize,
    /// Checkpointed entries kept in the log for followers that lag a little, if they are within
    /// [`log_tail_bytes_max`](Self::log_tail_bytes_max).
    pub log_tail_entries: u64,
    /// Milliseconds that a peer's wall clock may be ahead of ours; beyond it, the peer's messages are
    /// ignored.
    pub clock_ahead_ms_max: u64,
    /// Whether strong reads may use a lease.
    pub leases: Leases,
    /// When a log is trusted to be complete without asking peers.
    pub folder_trust: FolderTrust,
    /// How stored objects are read again to find damage.
    pub scrub: ScrubConfig,
    /// Bytes of snapshots' objects that the node receives per second, and sends: so many in each direction. At
    /// least [`TRANSFER_RATE_MIN`]. Without one there is no bound. Choose what the network and the disks can spare
    /// from clients; a replica that is replaced has no spare copy for as long as its bytes take.
    pub transfer_bytes_per_second: Option<NonZero<u64>>,
}

/// Bytes per second of transfers, at least: an object is up to a few MiB, and its request must end in time.
pub const TRANSFER_RATE_MIN: u64 = 256 << 10;

/// When and how fast a node reads all its stored objects to find damage before anybody needs them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScrubConfig {
    /// Bytes per second; at least 1. More finds damage sooner, and takes more of the disk from others: choose a
    /// few percent of what it can do.
    pub bytes_per_second: u64,
    /// Milliseconds from the end of a pass to the beginning of the next, at least: up to a quarter is added at
    /// random, so that nodes do not read at the same time. 0: passes begin only when they are asked for.
    pub pause_ms: u64,
}

impl Default for ScrubConfig {
    fn default() -> Self {
        Self { bytes_per_second: 5_000_000, pause_ms: 6 * 3_600_000 }
    }
}

/// When a node trusts its log to hold everything that was synced to it, without asking its peers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum FolderTrust {
    /// Never. For machines that may be set back as a whole: after every restart, replicas wait for n − q + 1
    /// other voters, which with three voters are both of them.
    Never,
    /// If the log has evidence.
    #[default]
    Evidence,
    /// Always, unless the log has evidence against it: the operator vouches that the folder is the newest.
    /// For a node without evidence whose peers are gone for good.
    Always,
}

/// Whether a leader that a quorum has confirmed may answer strong reads for a while without another round.
///
/// Voters count their promise in their own ticks: `tick_ms` and `election_ticks` must be equal on all nodes
/// of a cluster while any of them has leases on. To change them, first turn leases off on every node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leases {
    /// Every strong read needs a quorum round.
    Off,
    /// Strong reads are safe while monotonic clocks drift no further than this.
    On {
        /// How much slower than any voter's clock a leader's may run, in percent of elapsed time; below 50.
        /// With 10, strong reads stay linearizable while every clock is within five percent of true time.
        /// Crystals are off by less than 0.02 percent and NTP slews by at most 0.05; the rest is for
        /// hypervisors. More costs a little: leases are shorter and renewed more often.
        drift_percent: u64,
    },
}

impl Default for HostConfig {
    fn default() -> Self {
        Self {
            raft: flotilla_consensus::Config::default(),
            tick_ms: 50,
            node_heartbeat_ticks: 5,
            batch_commands_max: 1_024,
            batch_bytes_max: 256 << 10,
            entries_inflight_max: 64,
            pending_commands_max: 16_384,
            pending_bytes_max: 32 << 20,
            pending_reads_max: 16_384,
            unapplied_bytes_max: 64 << 20,
            memtable_bytes_max: 32 << 20,
            memtables_bytes_max: 128 << 20,
            log_bytes_max: 64 << 20,
            checkpoints_parallel_max: 2,
            read_threads: thread::available_parallelism().map_or(2, NonZero::get).clamp(2, 8),
            log_tail_entries: 1_024,
            clock_ahead_ms_max: 500,
            leases: Leases::On { drift_percent: 10 },
            folder_trust: FolderTrust::default(),
            scrub: ScrubConfig::default(),
            transfer_bytes_per_second: None,
        }
    }
}

/// Beyond this drift, nothing would be left of a lease.
const DRIFT_PERCENT_MAX: u64 = 49;

/// Longest period, in milliseconds or ticks: far beyond any useful value.
const PERIOD_MAX: u64 = 60_000;

/// An invalid setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HostConfigError {
    /// A Raft setting is invalid.
    #[error(transparent)]
    Raft(#[from] flotilla_consensus::ConfigError),
    /// A bound or period is zero.
    #[error("`{0}` must not be zero")]
    Zero(&'static str),
    /// A period is so long that arithmetic on it could overflow.
    #[error("`{0}` must be at most {PERIOD_MAX}")]
    TooLong(&'static str),
    /// The drift is too large for a lease.
    #[error("leases allow for a drift of at most {DRIFT_PERCENT_MAX} percent")]
    Drift,
    /// Transfers may take too little per second.
    #[error("`transfer_bytes_per_second` must be at least {TRANSFER_RATE_MIN}, or 0 for no bound")]
    TransferRate,
    /// The election timeout leaves no time for a lease.
    #[error("the election timeout is too short for leases; raise `election_ticks` or `tick_ms`, or turn leases off")]
    NoLease,
}

impl HostConfig {
    /// Checks all settings.
    pub fn validate(&self) -> Result<(), HostConfigError> {
        self.raft.validate()?;
        let positive = [
            ("tick_ms", self.tick_ms),
            ("node_heartbeat_ticks", self.node_heartbeat_ticks),
            ("batch_commands_max", self.batch_commands_max as u64),
            ("batch_bytes_max", self.batch_bytes_max as u64),
            ("entries_inflight_max", self.entries_inflight_max as u64),
            ("pending_commands_max", self.pending_commands_max as u64),
            ("pending_bytes_max", self.pending_bytes_max as u64),
            ("pending_reads_max", self.pending_reads_max as u64),
            ("unapplied_bytes_max", self.unapplied_bytes_max as u64),
            ("memtable_bytes_max", self.memtable_bytes_max as u64),
            ("log_bytes_max", self.log_bytes_max),
            ("checkpoints_parallel_max", self.checkpoints_parallel_max as u64),
            ("read_threads", self.read_threads as u64),
            ("scrub.bytes_per_second", self.scrub.bytes_per_second),
        ];
        if let Some((name, _)) = positive.iter().find(|(_, value)| *value == 0) {
            return Err(HostConfigError::Zero(name));
        }
        let periods = [("tick_ms", self.tick_ms), ("node_heartbeat_ticks", self.node_heartbeat_ticks)];
        if let Some((name, _)) = periods.iter().find(|(_, value)| *value > PERIOD_MAX) {
            return Err(HostConfigError::TooLong(name));
        }
        if self.transfer_bytes_per_second.is_some_and(|rate| rate.get() < TRANSFER_RATE_MIN) {
            return Err(HostConfigError::TransferRate);
        }
        match self.leases {
            Leases::On { drift_percent } if drift_percent > DRIFT_PERCENT_MAX => Err(HostConfigError::Drift),
            Leases::On { .. } if self.lease_ms().is_none() => Err(HostConfigError::NoLease),
            _ => Ok(()),
        }
    }

    /// Bytes of checkpointed entries kept in one replica's log for followers that lag a little.
    #[must_use]
    pub fn log_tail_bytes_max(&self) -> u64 {
        self.log_bytes_max / 4
    }

    /// Bytes of one replica's log that are kept for followers that receive snapshots.
    #[must_use]
    pub fn offer_log_bytes_max(&self) -> u64 {
        self.log_bytes_max.saturating_mul(4)
    }

    /// Length of a lease in milliseconds of the leader's clock, from when its heartbeats were made; `None`
    /// without leases.
    ///
    /// A voter's promise lasts at least `election_ticks − 1` whole ticks of its clock. Subtracted from that
    /// are the drift and one tick, which covers one forward jump of a voter's tick and the clocks' resolution
    /// of a millisecond.
    #[must_use]
    pub fn lease_ms(&self) -> Option<u64> {
        let Leases::On { drift_percent } = self.leases else { return None };
        let promise_ms = (self.raft.election_ticks as u64).saturating_sub(1).saturating_mul(self.tick_ms);
        let drift_ms = promise_ms.saturating_mul(drift_percent).div_ceil(100);
        Some(promise_ms.saturating_sub(drift_ms.saturating_add(self.tick_ms))).filter(|length_ms| *length_ms > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_ends_before_the_voters_promise_by_drift_and_one_tick() {
        let config = HostConfig::default();
        assert_eq!(config.lease_ms(), Some(7 * 50 - 35 - 50));
        assert_eq!(HostConfig { leases: Leases::Off, ..config }.lease_ms(), None);
    }

    #[test]
    fn leases_of_no_length_are_refused_unless_turned_off() {
        let drift = |drift_percent| HostConfig { leases: Leases::On { drift_percent }, ..HostConfig::default() };
        assert_eq!(drift(49).validate(), Ok(()));
        assert_eq!(drift(50).validate(), Err(HostConfigError::Drift));
        assert_eq!(drift(u64::MAX).validate(), Err(HostConfigError::Drift));
        let raft = flotilla_consensus::Config { election_ticks: 3, heartbeat_ticks: 1, ..Default::default() };
        let short = HostConfig { raft, tick_ms: 1, ..HostConfig::default() };
        assert_eq!(short.validate(), Err(HostConfigError::NoLease));
        assert_eq!(HostConfig { leases: Leases::Off, ..short }.validate(), Ok(()));
    }
}
