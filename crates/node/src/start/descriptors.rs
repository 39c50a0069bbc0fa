//! File descriptors: the process's limit, and how many connections of clients fit under it.
//!
//! Connections of clients are the only descriptors whose number others decide. They get what the node does
//! not need itself, so that idle clients can never keep the node from its own files.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Files of the log: 16 MiB each, so room for 2 GiB.
const LOG_FILES: u64 = 128;
/// Files of objects: 128 stay open for reading, and some are being written and synced.
const OBJECT_FILES: u64 = 160;
/// Sockets for peers and joins. All peers share one.
const PEER_SOCKETS: u64 = 16;
/// Everything else: standard streams, the runtime, locks, small files that are replaced, refused connections.
const OTHER_FILES: u64 = 32;
/// HTTP connections beyond their limit, for probes and the administration.
const RESERVED_CONNECTIONS: u64 = 16;
/// Descriptors that clients never get.
pub(super) const RESERVED: u64 = LOG_FILES + OBJECT_FILES + PEER_SOCKETS + OTHER_FILES + RESERVED_CONNECTIONS;

/// Connections of each protocol that are allowed even if nothing is left for them: without any, nobody could
/// find out what is wrong.
const CONNECTIONS_MIN: usize = 8;

/// Limits of open client connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ConnectionLimits {
    pub(super) http: usize,
    pub(super) redis: usize,
}

impl ConnectionLimits {
    /// These limits, lowered in proportion if the process may open only `descriptors` files.
    fn within(self, descriptors: u64) -> Self {
        // In 128 bits neither the sum nor the product of two sizes can overflow.
        let left = u128::from(descriptors.saturating_sub(RESERVED));
        let total = self.http as u128 + self.redis as u128;
        if total <= left {
            return self;
        }
        let share = |wanted: usize| {
            usize::try_from(left * wanted as u128 / total).unwrap_or(wanted).max(CONNECTIONS_MIN).min(wanted)
        };
        Self { http: share(self.http), redis: share(self.redis) }
    }

    /// These limits, or lower ones that fit under the process's limit of descriptors, with a line in the log.
    pub(super) fn within_process(self) -> Self {
        let Some(descriptors) = getrlimit(Resource::Nofile).current else { return self };
        let fitting = self.within(descriptors);
        if fitting != self {
            tracing::warn!(
                descriptors,
                reserved = RESERVED,
                http = fitting.http,
                redis = fitting.redis,
                "the limit of open files (ulimit -n) leaves room for fewer client connections; raise it"
            );
        }
        fitting
    }
}

/// Raises the soft limit of descriptors to the hard limit: the soft one is kept low for programs that use
/// `select`, which this one does not.
pub(super) fn raise_limit() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return;
    }
    match setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }) {
        Ok(()) => tracing::debug!(from = limit.current, to = limit.maximum, "raised the limit of open files"),
        Err(error) => tracing::warn!(%error, limit = limit.current, "the limit of open files could not be raised"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEFAULTS: ConnectionLimits = ConnectionLimits { http: 1_024, redis: 4_096 };

    #[test]
    fn connections_get_what_the_node_does_not_need_itself() {
        for (descriptors, http, redis) in [
            (u64::MAX, 1_024, 4_096),
            (RESERVED + 5_120, 1_024, 4_096),
            (RESERVED + 5_119, 1_023, 4_095),
            (1_024, 134, 537),
            (RESERVED + 100, 20, 80),
            (RESERVED, CONNECTIONS_MIN, CONNECTIONS_MIN),
            (0, CONNECTIONS_MIN, CONNECTIONS_MIN),
        ] {
            assert_eq!(DEFAULTS.within(descriptors), ConnectionLimits { http, redis }, "{descriptors} descriptors");
        }
    }

    #[test]
    fn a_limit_is_never_raised_and_their_sum_leaves_the_reserve() {
        let wanted = [1, 7, 8, 100, 65_536, usize::MAX];
        for (http, redis) in wanted.iter().flat_map(|http| wanted.map(|redis| (*http, redis))) {
            for descriptors in [0, 256, 1_024, 4_096, 1 << 20] {
                let limits = ConnectionLimits { http, redis }.within(descriptors);
                assert!((1..=http).contains(&limits.http) && (1..=redis).contains(&limits.redis));
                let room = descriptors.saturating_sub(RESERVED).max(2 * CONNECTIONS_MIN as u64);
                let sum = limits.http as u128 + limits.redis as u128;
                assert!(
                    sum <= u128::from(room) + CONNECTIONS_MIN as u128,
                    "{http}, {redis}, {descriptors}: {limits:?}"
                );
            }
        }
    }

    #[test]
    fn the_soft_limit_rises_to_the_hard_limit() {
        raise_limit();
        let limit = getrlimit(Resource::Nofile);
        assert_eq!(limit.current, limit.maximum);
    }
}
