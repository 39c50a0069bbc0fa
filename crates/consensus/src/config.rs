//! Settings of a Raft group: election timing and bounds.

/// Election timing and bounds of every group of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Ticks without a leader before an election; each replica draws its timeout from `[n, 1.5n)`. With the
    /// node's tick of 50 ms the default is 400–600 ms. Lower values detect a dead leader sooner and cause
    /// more needless elections.
    pub election_ticks: usize,
    /// Ticks between heartbeats. At most a third of `election_ticks`, so that one lost heartbeat causes no
    /// election.
    pub heartbeat_ticks: usize,
    /// Ticks without entries and reads after which a group rests: it sends no heartbeats until something
    /// wakes it. 0 for never.
    pub rest_after_ticks: usize,
    /// Bytes of entries in one append message, at most.
    pub append_bytes_max: usize,
    /// Append messages in flight to one follower, at most.
    pub append_inflight_max: usize,
    /// Bytes of uncommitted proposals on a leader; further proposals are refused as busy.
    pub uncommitted_bytes_max: usize,
    /// Bytes of committed entries delivered in one round.
    pub committed_bytes_max: usize,
    /// Bytes of recent entries that a group caches, so that replication to followers rarely reads the log.
    pub cache_bytes_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            election_ticks: 8,
            heartbeat_ticks: 2,
            rest_after_ticks: 40,
            append_bytes_max: 1 << 20,
            append_inflight_max: 128,
            uncommitted_bytes_max: 16 << 20,
            committed_bytes_max: 8 << 20,
            cache_bytes_max: 1 << 20,
        }
    }
}

/// Far above any useful timeout, and low enough that sums of ticks do not overflow.
const ELECTION_TICKS_MAX: usize = 100_000;

/// A setting is invalid. Nothing was started; correct the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Heartbeats are too rare for the election timeout.
    #[error("election_ticks must be at least three times heartbeat_ticks, and heartbeat_ticks at least 1")]
    Timing,
    /// The failure of a leader would practically never be detected.
    #[error("election_ticks must be at most {ELECTION_TICKS_MAX}")]
    ElectionTimeoutTooLong,
    /// A bound is zero.
    #[error("bounds on bytes and messages must not be zero")]
    ZeroBound,
}

impl Config {
    /// Checks every setting; returns the first violation.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.heartbeat_ticks == 0 || self.heartbeat_ticks > self.election_ticks / 3 {
            return Err(ConfigError::Timing);
        }
        if self.election_ticks > ELECTION_TICKS_MAX {
            return Err(ConfigError::ElectionTimeoutTooLong);
        }
        let bounds = [
            self.append_bytes_max,
            self.append_inflight_max,
            self.uncommitted_bytes_max,
            self.committed_bytes_max,
            self.cache_bytes_max,
        ];
        if bounds.contains(&0) { Err(ConfigError::ZeroBound) } else { Ok(()) }
    }
}
