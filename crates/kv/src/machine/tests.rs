//! Tests of the machine, by subject.

mod commands;
mod expiry;
mod merges;
mod reads;
mod sessions;
mod split_histories;
mod splits;
mod values;
mod versions;

use super::*;
use crate::{
    Action, Condition, Expiry, OUTCOME_BYTES_MAX, Operation, OperationResult, Otherwise, Query, encode_command,
    encode_query_as_of,
    testing::{Replica, key, operation, put, put_expiring, written},
};

fn delete(name: &str, return_old: bool) -> Operation {
    operation(name, Action::Delete { return_old })
}

fn of(operations: Vec<Operation>) -> Command {
    Command { operations, ..Command::empty() }
}

fn add(name: &str, delta: i64) -> Command {
    of(vec![operation(name, Action::Add { delta })])
}

fn refused(refusal: Refusal) -> Outcome {
    Outcome::Refused(refusal)
}

fn in_session(mut command: Command, sequence: u64, acked_below: u64, expires_at_ms: u64) -> Command {
    command.session = SessionId(7);
    (command.sequence, command.acked_below, command.expires_at_ms) = (sequence, acked_below, expires_at_ms);
    command
}

/// A shard at version 2 with this many records that expire at 5 ms.
fn with_due_records(many: usize) -> Replica {
    with_records_due_at(many, 5)
}

fn with_records_due_at(many: usize, at_ms: u64) -> Replica {
    let mut replica = Replica::default();
    replica.switch(1, 2).unwrap();
    let puts = |part: &[usize]| {
        of(part.iter().flat_map(|n| put_expiring(&format!("k{n:06}"), "v", at_ms).operations).collect())
    };
    for part in (0..many).collect::<Vec<_>>().chunks(1_000) {
        assert!(matches!(replica.run(1, puts(part)), Outcome::Done { .. }));
    }
    replica
}
