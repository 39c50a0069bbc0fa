//! Bounds and timing of a shard host.

/// How a host batches, checkpoints and bounds its queues. All byte bounds are soft by one entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostConfig {
    /// Elections, heartbeats, and bounds of each group.
    pub raft: flotilla_consensus::Config,
    /// Milliseconds to a tick; every group ticks together.
    pub tick_ms: u64,
    /// Ticks between beats to every peer. A beat carries leaders, log sequences and clocks.
    pub beat_ticks: u64,
    /// Commands merged into one entry.
    pub batch_commands_max: usize,
    /// Bytes merged into one entry; a lone command may exceed it.
    pub batch_bytes_max: usize,
    /// Entries of one group that may be proposed and not yet committed.
    pub entries_inflight_max: usize,
    /// Commands that may wait in one group to be proposed; more is refused as busy.
    pub pending_commands_max: usize,
    /// Bytes that may wait in one group to be proposed.
    pub pending_bytes_max: usize,
    /// Reads that may wait in one group.
    pub pending_reads_max: usize,
    /// Committed bytes that may wait for the state machine of one replica; beyond it followers drop appends and leaders refuse.
    pub unapplied_bytes_max: usize,
    /// A memtable of this size is checkpointed.
    pub memtable_bytes_max: usize,
    /// Memtables of all replicas together; beyond it the largest is checkpointed.
    pub memtables_bytes_max: usize,
    /// Log bytes of one replica behind its checkpoint that trigger the next one.
    pub log_bytes_max: u64,
    /// Checkpoints being built at a time.
    pub checkpoints_parallel_max: usize,
    /// Applied entries that stay in the log for followers that are a little behind.
    pub log_tail_entries: u64,
    /// A peer whose wall clock is so far ahead of ours is not listened to.
    pub clock_ahead_ms_max: u64,
}

impl Default for HostConfig {
    fn default() -> Self {
        Self {
            raft: flotilla_consensus::Config::default(),
            tick_ms: 50,
            beat_ticks: 5,
            batch_commands_max: 1_024,
            batch_bytes_max: 256 << 10,
            entries_inflight_max: 64,
            pending_commands_max: 16_384,
            pending_bytes_max: 32 << 20,
            pending_reads_max: 16_384,
            unapplied_bytes_max: 64 << 20,
            memtable_bytes_max: 16 << 20,
            memtables_bytes_max: 128 << 20,
            log_bytes_max: 48 << 20,
            checkpoints_parallel_max: 2,
            log_tail_entries: 1_024,
            clock_ahead_ms_max: 500,
        }
    }
}

/// Longest period, in milliseconds or ticks: a minute of either is far beyond any use.
const PERIOD_MAX: u64 = 60_000;

/// A setting that cannot work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HostConfigError {
    /// Elections or group bounds.
    #[error(transparent)]
    Raft(#[from] flotilla_consensus::ConfigError),
    /// A bound or period is zero.
    #[error("`{0}` must not be zero")]
    Zero(&'static str),
    /// A period is so long that sums of it would overflow.
    #[error("`{0}` must be at most {PERIOD_MAX}")]
    TooLong(&'static str),
}

impl HostConfig {
    /// Refuses settings that cannot work.
    pub fn validate(&self) -> Result<(), HostConfigError> {
        self.raft.validate()?;
        let positive = [
            ("tick_ms", self.tick_ms),
            ("beat_ticks", self.beat_ticks),
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
        ];
        if let Some((name, _)) = positive.iter().find(|(_, value)| *value == 0) {
            return Err(HostConfigError::Zero(name));
        }
        let periods = [("tick_ms", self.tick_ms), ("beat_ticks", self.beat_ticks)];
        match periods.iter().find(|(_, value)| *value > PERIOD_MAX) {
            Some((name, _)) => Err(HostConfigError::TooLong(name)),
            None => Ok(()),
        }
    }
}
