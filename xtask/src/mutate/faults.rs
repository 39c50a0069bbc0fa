//! The faults to plant, in one table for each part of the system. A new one goes to the end of a table.

mod clients;
mod cluster;
mod consensus;
mod merges;
mod replication;
mod splits;
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
    [
        consensus::FAULTS,
        replication::FAULTS,
        state::FAULTS,
        splits::FAULTS,
        merges::FAULTS,
        cluster::FAULTS,
        clients::FAULTS,
        FAULTS,
    ]
    .into_iter()
    .flatten()
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
        file: "crates/gateway/src/store/routes.rs",
        before: "        let shard = home(map, &rest.start)?;",
        after: "        let Ok(shard) = home(map, &rest.start) else { break };",
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
        before: "Err(ShardError::Stale(_)) => return Err(ReadError::Stale),",
        after: "Err(ShardError::Stale(_)) => return Err(self.read_error(ShardError::Unavailable, shard, deadline_ms).into()),",
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
    Fault {
        name: "query-waits-on-apply-thread",
        what: "a query that needs the disk is answered on the apply thread",
        file: "crates/replication/src/applier.rs",
        before: "&InMemory(&*self.reader));",
        after: "{ let _ = InMemory(&*self.reader); &*self.reader });",
        runner: Runner::Tests("flotilla-replication"),
        also: None,
    },
    Fault {
        name: "entry-waits-on-apply-thread",
        what: "the records that an entry reads are read from the disk on the apply or raft thread",
        file: "crates/replication/src/applier/recalled.rs",
        before: "match records.get_in_memory(&key) {",
        after: "match records.get(&key) {",
        runner: Runner::Tests("flotilla-replication"),
        also: None,
    },
    Fault {
        name: "slow-read-sees-later-entries",
        what: "a query in the pool reads the current records and not those of the state it was handed over with",
        file: "crates/replication/src/applier/slow.rs",
        before: "engine.snapshot(replica)?",
        after: "engine.reader(replica)?",
        runner: Runner::Tests("flotilla-replication"),
        also: None,
    },
    Fault {
        name: "recalled-record-outlives-its-write",
        what: "a later entry of a task reads a record as it was before an earlier one wrote it",
        file: "crates/replication/src/applier.rs",
        before: "            recalled.forget(&writes);\n",
        after: "",
        runner: Runner::Tests("flotilla-replication"),
        also: None,
    },
    Fault {
        name: "queries-take-every-thread",
        what: "queries take all threads of the pool, and entries wait for them",
        file: "crates/replication/src/host/pool.rs",
        before: "querying_max: threads.saturating_sub(1).max(1),",
        after: "querying_max: threads,",
        runner: Runner::Tests("flotilla-replication"),
        also: None,
    },
    Fault {
        name: "tasks-of-an-absent-replica-dropped",
        what: "tasks that arrive while a replica applies entries in the pool are dropped",
        file: "crates/replication/src/applier.rs",
        before: "                wait(waiting, task, out);\n",
        after: "                drop_tasks([task], out);\n",
        runner: Runner::Tests("flotilla-replication"),
        also: None,
    },
    Fault {
        name: "snapshot-history-ends-early",
        what: "what a second write replaces is not kept for snapshots taken after the first",
        file: "crates/state/src/memtable.rs",
        before: ".is_some_and(|(number, _)| *number > newest)",
        after: ".is_some_and(|(number, _)| *number > newest || true)",
        runner: Runner::Tests("flotilla-state"),
        also: None,
    },
    Fault {
        name: "read-in-memory-waits",
        what: "a read that must not wait reads a piece whose index is not cached",
        file: "crates/state/src/view/levels.rs",
        before: "        if reach == Reach::Memory {\n            return self.cache",
        after: "        if reach == Reach::Memory && self.cache.get(&id).is_some() {\n            return self.cache",
        runner: Runner::Tests("flotilla-state"),
        also: None,
    },
    Fault {
        name: "earlier-load-comes-last",
        what: "a snapshot is loaded while an earlier load may still be retried, which then replaces it",
        file: "crates/replication/src/applier.rs",
        before: "(Some(Slot::Loading { next, waiting }), open @ ApplyTask::Open { .. }) => {",
        after: "(Some(Slot::Loading { next, waiting }), open @ ApplyTask::Open { replaces: false, .. }) => {",
        runner: Runner::Tests("flotilla-replication"),
        also: None,
    },
    Fault {
        name: "exceeded-budget-closes-nobody",
        what: "connections may hold more than the node's budget for clients, and none is closed",
        file: "crates/gateway/src/budget.rs",
        before: "if total > self.budget.bytes_max {",
        after: "if total == usize::MAX {",
        runner: Runner::Tests("flotilla-gateway"),
        also: None,
    },
    Fault {
        name: "stalled-clients-keep-others-waiting",
        what: "clients that wait for room in the budget do not look for connections that stall",
        file: "crates/gateway/src/budget.rs",
        before: "            budget.relieve_for_waiting();",
        after: "",
        runner: Runner::Tests("flotilla-gateway"),
        also: None,
    },
    Fault {
        name: "unread-answers-are-free",
        what: "the bytes of answers that a client does not read count on no budget",
        file: "crates/gateway/src/http/exchange.rs",
        before: "self.client.account.charge(bytes.len())",
        after: "self.client.account.charge(0)",
        runner: Runner::Tests("flotilla-gateway"),
        also: None,
    },
    Fault {
        name: "any-host-is-trusted",
        what: "a web page whose name resolves to the node may use it",
        file: "crates/gateway/src/http/host.rs",
        before: "        self.any\n            || name.parse",
        after: "        !self.any\n            || name.parse",
        runner: Runner::Tests("flotilla-gateway"),
        also: None,
    },
    Fault {
        name: "forms-may-post",
        what: "a post with a content type of forms is accepted",
        file: "crates/gateway/src/http/guard.rs",
        before: "        Some(_) => !own_header(),",
        after: "        Some(_) => false,",
        runner: Runner::Tests("flotilla-gateway"),
        also: None,
    },
    Fault {
        name: "slow-bodies-have-time",
        what: "a body may arrive as slowly as its deadline allows",
        file: "crates/gateway/src/http/body.rs",
        before: "let due = self.pace.deadline(started, self.whole.len());",
        after: "let due = self.deadline.max(started);",
        runner: Runner::Tests("flotilla-gateway"),
        also: None,
    },
    Fault {
        name: "silent-clients-keep-probes-out",
        what: "reserved connections without a request do not make room for newer ones",
        file: "crates/gateway/src/http/slots.rs",
        before: "other.upgrade().is_some_and(|other| other.is_silent()))?;",
        after: "other.upgrade().is_some_and(|other| !other.is_silent()))?;",
        runner: Runner::Tests("flotilla-gateway"),
        also: None,
    },
    Fault {
        name: "large-reads-before-small-ones",
        what: "reads that do not fit into one answer are read with the largest values first",
        file: "crates/gateway/src/store/read.rs",
        before: "    sized.sort_by_key(|(bytes, _)| *bytes);",
        after: "    sized.sort_by_key(|(bytes, _)| std::cmp::Reverse(*bytes));",
        runner: Runner::Tests("flotilla-gateway"),
        also: None,
    },
    Fault {
        name: "unfinished-requests-have-time",
        what: "a Redis request may arrive as slowly as the client likes",
        file: "crates/gateway-redis/src/server/deadlines.rs",
        before: "            Some(since) if !progressed => Some(since),",
        after: "            Some(_) if !progressed => Some(now),",
        runner: Runner::Tests("flotilla-gateway-redis"),
        also: None,
    },
    Fault {
        name: "forged-tokens-are-proposed",
        what: "a join token with a wrong secret is proposed to the metadata group",
        file: "crates/node/src/start/join.rs",
        before: "        Some(_) => Err(MetaRefusal::WrongSecret),",
        after: "        Some(_) => Ok(()),",
        runner: Runner::Tests("flotilla-node"),
        also: None,
    },
    Fault {
        name: "handshakes-keep-probes-out",
        what: "a connection that has not ended its TLS handshake does not make room for newer ones",
        file: "crates/gateway/src/http/server.rs",
        before: "() = client.account.closing() => return,",
        after: "() = std::future::pending() => return,",
        runner: Runner::Tests("flotilla-gateway"),
        also: None,
    },
    Fault {
        name: "scan-forgets-its-snapshot",
        what: "the pages after the first one of a scan with a snapshot are read without it",
        file: "crates/gateway/src/store/snapshots.rs",
        before: "            Some(ScanSnapshot::At(id)) => Ok(Some(id)),",
        after: "            Some(ScanSnapshot::At(id)) => self.open_snapshots(id, parts_of, deadline_ms).await.map(|()| Some(id)),",
        runner: Runner::Tests("flotilla-gateway"),
        also: None,
    },
];
