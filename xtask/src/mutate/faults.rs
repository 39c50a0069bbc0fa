//! The faults to plant, in one table for each part of the system. A new one goes to the end of a table.

mod cluster;
mod consensus;
mod replication;
mod state;

use std::fmt;

/// The tests that should detect a fault.
#[derive(Debug, Clone, Copy)]
pub(super) enum Runner {
    /// Simulated clusters.
    Simulator,
    /// A crate's own tests.
    Tests(&'static str),
}

impl fmt::Display for Runner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Simulator => "simulator",
            Self::Tests(package) => package,
        })
    }
}

/// One mistake: a literal text of a source file and its replacement.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) name: &'static str,
    pub(super) what: &'static str,
    pub(super) file: &'static str,
    pub(super) before: &'static str,
    pub(super) after: &'static str,
    pub(super) runner: Runner,
    /// If two mechanisms prevent the same failure, the second one is disabled as well: file, text,
    /// replacement.
    pub(super) also: Option<(&'static str, &'static str, &'static str)>,
}

/// Every fault.
pub(super) fn all() -> impl Iterator<Item = &'static Fault> {
    [consensus::FAULTS, replication::FAULTS, state::FAULTS, cluster::FAULTS, FAULTS].into_iter().flatten()
}

/// Mistakes in what serves clients and operators.
const FAULTS: &[Fault] = &[
    Fault {
        name: "doubt-forgotten-at-answer",
        what: "a refusal that the shard does not remember is final although an earlier attempt is in doubt",
        file: "crates/gateway/src/store/write.rs",
        before: "Err(if is_remembered { error }",
        after: "Err(if is_remembered || earlier == Earlier::InDoubt { error }",
        runner: Runner::Tests("flotilla-gateway"),
        also: None,
    },
    Fault {
        name: "clock-command-never-expires",
        what: "the command that advances a shard's clock never expires",
        file: "crates/gateway/src/store/write.rs",
        before: "Command { expires_at_ms: expires_at_ms(now_ms, deadline_ms, monotonic_ms), ..Command::empty() }",
        after: "{\n        let _ = (now_ms, deadline_ms, monotonic_ms);\n        Command::empty()\n    }",
        runner: Runner::Tests("flotilla-gateway"),
        also: None,
    },
    Fault {
        name: "empty-range-scanned",
        what: "a scan of an empty range is planned like any other",
        file: "crates/gateway/src/store/scan.rs",
        before: "        0 | 1 => items_max,",
        after: "        1 => items_max,",
        runner: Runner::Tests("flotilla-gateway"),
        also: None,
    },
    Fault {
        name: "scan-skips-unknown-shards",
        what: "a scan leaves out the keys of shards that the map does not have",
        file: "crates/gateway/src/store/scan.rs",
        before: "    let shard = home(map, &range.start)?;\n    Ok(vec![",
        after: "    let Ok(shard) = home(map, &range.start) else { return Ok(Vec::new()) };\n    Ok(vec![",
        runner: Runner::Tests("flotilla-gateway"),
        also: None,
    },
    Fault {
        name: "numbers-of-dropped-shard-reused",
        what: "a gateway numbers commands from one again for a shard that it had forgotten",
        file: "crates/gateway/src/store/sessions.rs",
        before: "                self.forgotten.fetch_max(session.last().0, Ordering::Relaxed);\n",
        after: "",
        runner: Runner::Tests("flotilla-gateway"),
        also: None,
    },
    Fault {
        name: "removed-voter-counts-as-live",
        what: "a voter on a node that was removed or lost counts as live, because membership remembers it so",
        file: "crates/node/src/start/shard_view.rs",
        before: "            is_live: !state.is_gone() && ",
        after: "            is_live: ",
        runner: Runner::Tests("flotilla-node"),
        also: None,
    },
    Fault {
        name: "old-leader-report-means-available",
        what: "a shard counts as available by an old report of its leader, although its quorum is lost",
        file: "crates/node/src/start/health.rs",
        before: "is_live && spare.is_some(),",
        after: "is_live,",
        runner: Runner::Tests("flotilla-node"),
        also: None,
    },
    Fault {
        name: "outgoing-half-forgotten",
        what: "of a joint configuration only the incoming half counts for health",
        file: "crates/node/src/start/health.rs",
        before: "        let spare = self.halves.iter().map(spare).min().flatten();",
        after: "        let spare = self.halves.iter().take(1).map(spare).min().flatten();",
        runner: Runner::Tests("flotilla-node"),
        also: None,
    },
    Fault {
        name: "two-equal-digests-pass",
        what: "a shard counts as equal when some of its voters were compared",
        file: "crates/api/src/comparison.rs",
        before: "voters(replicas).all(|voter| seen",
        after: "voters(replicas).any(|voter| seen",
        runner: Runner::Tests("flotilla-api"),
        also: None,
    },
    Fault {
        name: "inconclusive-digests-pass",
        what: "`flotilla digests` ends with exit code 0 although nothing could be compared",
        file: "crates/node/src/cli/digests.rs",
        before: "        Verdict::Equal => Ok(()),",
        after: "        Verdict::Equal => Ok(()),\n        Verdict::Inconclusive if report.reasons.len() < 99 => Ok(()),",
        runner: Runner::Tests("flotilla-node"),
        also: None,
    },
    Fault {
        name: "clients-take-every-descriptor",
        what: "connections of clients are limited by all descriptors, and none are left for the node's files",
        file: "crates/node/src/start/descriptors.rs",
        before: "u128::from(descriptors.saturating_sub(RESERVED))",
        after: "u128::from(descriptors)",
        runner: Runner::Tests("flotilla-node"),
        also: None,
    },
    Fault {
        name: "outdated-read-fails",
        what: "a read that was routed by an outdated map fails although the refusal told where to go",
        file: "crates/gateway/src/store/read.rs",
        before: "Err(ShardError::Stale) => return Err(ReadError::Stale),",
        after: "Err(ShardError::Stale) => return Err(self.read_error(ShardError::Stale, shard, deadline_ms).into()),",
        runner: Runner::Tests("flotilla-gateway"),
        also: None,
    },
    Fault {
        name: "unknown-shard-fails-at-once",
        what: "a request for keys whose new shard is not known yet fails instead of waiting",
        file: "crates/gateway/src/store/routes.rs",
        before: "Err(StoreError::Unavailable { shard: None, .. }) => self.refusals.pause_ms([None]),",
        after: "Err(StoreError::Unavailable { shard: None, .. }) => 0,",
        runner: Runner::Tests("flotilla-gateway"),
        also: None,
    },
    Fault {
        name: "refused-multi-is-forgotten",
        what: "commands that follow a refused MULTI are executed one by one",
        file: "crates/gateway-redis/src/server/multi.rs",
        before: "        self.state = State::Refused;",
        after: "        self.state = State::Outside;",
        runner: Runner::Tests("flotilla-gateway-redis"),
        also: None,
    },
    Fault {
        name: "refused-command-does-not-abort",
        what: "EXEC executes the rest of a transaction of which a command was refused",
        file: "crates/gateway-redis/src/server/multi.rs",
        before: "            self.state = State::Aborted;\n            return Admitted::Answer(refusal);",
        after: "            return Admitted::Answer(refusal);",
        runner: Runner::Tests("flotilla-gateway-redis"),
        also: None,
    },
    Fault {
        name: "watched-version-is-not-compared",
        what: "a transaction commits although a record that it read or watched was written since",
        file: "crates/gateway-redis/src/view.rs",
        before: "found.map_or(Condition::Absent, Condition::Version)",
        after: "found.map_or(Condition::Absent, |_| Condition::Present)",
        runner: Runner::Tests("flotilla-gateway-redis"),
        also: None,
    },
    Fault {
        name: "failed-script-writes",
        what: "a script that fails keeps what it wrote before",
        file: "crates/gateway-redis/src/script/mod.rs",
        before: "        *view = before;\n",
        after: "        drop(before);\n",
        runner: Runner::Tests("flotilla-gateway-redis"),
        also: None,
    },
];
