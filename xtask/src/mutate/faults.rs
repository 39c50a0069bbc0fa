//! The faults that are planted.

/// What should notice.
#[derive(Debug, Clone, Copy)]
pub(super) enum Runner {
    /// Simulated clusters.
    Simulator,
    /// A crate's own tests.
    Tests(&'static str),
}

/// One mistake: a piece of text and what it becomes.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) name: &'static str,
    pub(super) what: &'static str,
    pub(super) file: &'static str,
    pub(super) before: &'static str,
    pub(super) after: &'static str,
    pub(super) runner: Runner,
}

pub(super) const FAULTS: &[Fault] = &[
    Fault {
        name: "ack-before-fsync",
        what: "messages that promise something leave before the log is written",
        file: "crates/consensus/src/group.rs",
        before: "        if self.promised_in.is_some() {",
        after: "        round.sends.append(&mut round.after);\n        if false {",
        runner: Runner::Simulator,
    },
    Fault {
        name: "fsync-forgotten",
        what: "a batch is reported durable and was never written",
        file: "crates/replication/src/work/wal.rs",
        before: "            log.write(batch)?;",
        after: "            if sequence.0 % 64 != 7 {\n                log.write(batch)?;\n            }",
        runner: Runner::Simulator,
    },
    Fault {
        name: "leader-speaks-early",
        what: "a lone voter tells learners of a term that its disk does not know yet",
        file: "crates/consensus/src/group.rs",
        before: "        if self.promised_in.is_some() {",
        after: "        if false {",
        runner: Runner::Simulator,
    },
    Fault {
        name: "read-without-quorum",
        what: "a leader answers strong reads without asking whether it still leads",
        file: "crates/replication/src/core/requests.rs",
        before: "replica.read_rounds.push_back(ReadRound { context, started_ms: self.now_ms, reads });",
        after: "let index = replica.handed_out;\n                replica.confirmed.push_back((index, reads));\n                let _ = context;\n                self.serve_confirmed(id, effects);",
        runner: Runner::Simulator,
    },
    Fault {
        name: "vote-forgotten",
        what: "a restart forgets whom a replica voted for",
        file: "crates/consensus/src/store.rs",
        before: "            hard_state: state.hard_state,",
        after: "            hard_state: flotilla_types::HardState { vote: ReplicaId::NONE, ..state.hard_state },",
        runner: Runner::Simulator,
    },
    Fault {
        name: "sessions-not-in-snapshot",
        what: "checkpoints leave the outcomes of sessions out",
        file: "crates/kv/src/system.rs",
        before: "sessions: sessions.iter().map(|(id, session)| session_message(id, session)).collect(),",
        after: "sessions: sessions.iter().take(0).map(|(id, session)| session_message(id, session)).collect(),",
        runner: Runner::Simulator,
    },
    Fault {
        name: "retry-applied-twice",
        what: "a command that was applied before is applied again",
        file: "crates/kv/src/machine.rs",
        before: "                Verdict::Known(outcome) => return Ok(outcome),",
        after: "                Verdict::Known(_) => {}",
        runner: Runner::Simulator,
    },
    Fault {
        name: "rolled-back-replica-votes",
        what: "a node whose log went backwards keeps its replicas",
        file: "crates/replication/src/core/greeting.rs",
        before: "            self.destroy(id, effects);",
        after: "            let _ = id;",
        runner: Runner::Simulator,
    },
    Fault {
        name: "nobody-waits-to-be-judged",
        what: "a recovered replica votes before anybody said that its log is whole",
        file: "crates/replication/src/core/greeting.rs",
        before: "        let majority = |voters: &[ReplicaId]| {\n            voters.is_empty()",
        after: "        let majority = |voters: &[ReplicaId]| {\n            true || voters.is_empty()",
        runner: Runner::Simulator,
    },
    Fault {
        name: "removed-replica-returns",
        what: "destroying a replica leaves no tombstone",
        file: "crates/storage/src/memory_log.rs",
        before: "            self.tombstones.insert(write.replica);",
        after: "",
        runner: Runner::Tests("flotilla-storage"),
    },
    Fault {
        name: "truncated-before-checkpoint",
        what: "entries go that the checkpoint does not cover yet",
        file: "crates/replication/src/core/checkpoints.rs",
        before: "let to = LogIndex(checkpoint.position.index.0.min(",
        after: "let to = LogIndex((checkpoint.position.index.0 + 1).min(",
        runner: Runner::Simulator,
    },
    Fault {
        name: "snapshot-before-objects",
        what: "a snapshot is stepped before its objects are here",
        file: "crates/replication/src/core/checkpoints.rs",
        before: "replica.parked = Some(Parked { message, complete: false });",
        after: "replica.parked = Some(Parked { message, complete: true });",
        runner: Runner::Simulator,
    },
    Fault {
        name: "stale-epoch-accepted",
        what: "the metadata group takes an older report of a shard",
        file: "crates/meta/src/apply/shards.rs",
        before: "        if back || reported.epoch == known {",
        after: "        if reported.epoch == known {",
        runner: Runner::Tests("flotilla-meta"),
    },
    Fault {
        name: "stale-metadata-accepted",
        what: "a node takes older metadata for newer",
        file: "crates/control/src/core/known.rs",
        before: "        meta.version() > self.meta.version()",
        after: "        meta.version() != self.meta.version()",
        runner: Runner::Simulator,
    },
    Fault {
        name: "entries-never-shown",
        what: "raft-rs adds entries to an empty append for another position, and nobody drops it",
        file: "crates/consensus/src/convert.rs",
        before: "kind == MessageKind::Append && first.index != message.index + 1",
        after: "false && kind == MessageKind::Append && first.index != message.index + 1",
        runner: Runner::Simulator,
    },
    Fault {
        name: "wrong-clock-dates-entries",
        what: "a leader whose clock jumped ahead goes on dating entries, and gateways do not believe the shard",
        file: "crates/route/src/session.rs",
        before: "        self.clock_ms.max(wall_ms)",
        after: "        wall_ms",
        runner: Runner::Simulator,
    },
    Fault {
        name: "hash-not-checked",
        what: "bytes offered as an object are not compared with its id",
        file: "crates/objects/src/store.rs",
        before: "            return Err(ObjectError::Mismatch(id));",
        after: "",
        runner: Runner::Tests("flotilla-objects"),
    },
];
