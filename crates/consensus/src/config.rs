//! The one set of knobs for elections and bounds of a group.

/// How groups elect and how much they keep in flight. The same for every start path of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Ticks without a leader before an election; each replica draws from `[n, 1.5n)`. With the node's tick of 50 ms
    /// the default waits 400–600 ms. Lower finds a dead leader sooner and mistakes a slow one for dead more often.
    pub election_ticks: usize,
    /// Ticks between heartbeats. At most a third of `election_ticks`, so that one lost heartbeat is no election.
    pub heartbeat_ticks: usize,
    /// Bytes of entries in one append message.
    pub append_bytes_max: usize,
    /// Append messages in flight to one follower.
    pub append_inflight_max: usize,
    /// Bytes a leader may have proposed and not yet committed; more is refused as busy.
    pub uncommitted_bytes_max: usize,
    /// Bytes of committed entries handed out at a time.
    pub committed_bytes_max: usize,
    /// Bytes of recent entries that a group keeps in memory so that followers do not make it read its log.
    pub cache_bytes_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            election_ticks: 8,
            heartbeat_ticks: 2,
            append_bytes_max: 1 << 20,
            append_inflight_max: 128,
            uncommitted_bytes_max: 16 << 20,
            committed_bytes_max: 8 << 20,
            cache_bytes_max: 1 << 20,
        }
    }
}

/// More has no use, and sums of ticks must not overflow.
const ELECTION_TICKS_MAX: usize = 100_000;

/// A setting that cannot work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Heartbeats are too rare for the election timeout.
    #[error("election_ticks must be at least three times heartbeat_ticks, and heartbeat_ticks at least 1")]
    Timing,
    /// A leader that is gone would never be missed.
    #[error("election_ticks must be at most {ELECTION_TICKS_MAX}")]
    NoElections,
    /// A bound is zero.
    #[error("bounds on bytes and messages must not be zero")]
    ZeroBound,
}

impl Config {
    /// Refuses settings that cannot work.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.heartbeat_ticks == 0 || self.heartbeat_ticks > self.election_ticks / 3 {
            return Err(ConfigError::Timing);
        }
        if self.election_ticks > ELECTION_TICKS_MAX {
            return Err(ConfigError::NoElections);
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
