//! Duplicates, and what sessions remember.

use super::*;

#[test]
fn a_duplicate_gets_its_outcome_and_is_not_applied() {
    let mut replica = Replica::default();
    let command = in_session(add("n", 1), 1, 0, 1_000);
    let first = replica.run(1, command.clone());
    assert_eq!(replica.run(2, command.clone()), first);
    assert_eq!(replica.apply(3, &[command.clone(), command]), vec![first.clone(), first]);
    assert_eq!(replica.value("n").as_deref(), Some("1"));
}

#[test]
fn a_command_without_a_session_takes_no_place_in_the_table() {
    let mut replica = Replica::with_limits(Limits { sessions_max: 1, ..Limits::default() });
    for at_ms in 1..20 {
        replica.run(at_ms, Command { expires_at_ms: at_ms + 5_000, ..Command::empty() });
    }
    assert!(matches!(replica.run(20, in_session(put("a", "1"), 1, 0, 1_000)), Outcome::Done { .. }));
}

/// What each kind of refusal promises about later attempts of the same command.
#[test]
fn only_remembered_refusals_hold_for_every_attempt() {
    let limits = Limits { value_bytes_max: 20, operations_max: 2, sessions_max: 1, ..Limits::default() };
    let conditional = {
        let mut command = put("a", "1");
        command.operations[0].condition = Some(Condition::Present);
        command
    };
    let elsewhere = {
        let mut command = put("a", "1");
        command.operations[0].key = Bytes::from_static(b"\xff\xff\xff\xff\xff\xff");
        command
    };
    let mut refusals = Vec::new();
    for (command, expires_at_ms) in [
        (conditional, 1_000),
        (add("text", 1), 1_000),
        (add("max", 1), 1_000),
        (put("a", "123456789_123456789_1"), 1_000),
        (of(vec![delete("b", false), delete("c", false), delete("d", false)]), 1_000),
        (elsewhere, 1_000),
        (put("a", "1"), 5),
        // Another session holds the only place.
        (put("a", "1"), 999),
    ] {
        let mut replica = Replica::with_limits(limits);
        replica.run(1, put("text", "x"));
        replica.run(2, put("max", &i64::MAX.to_string()));
        if expires_at_ms == 999 {
            let other = Command { session: SessionId(8), ..in_session(put("z", "1"), 1, 0, 100) };
            replica.run(3, other);
        }
        let command = in_session(command, 1, 0, expires_at_ms);
        let Outcome::Refused(refusal) = replica.run(10, command.clone()) else { panic!("{command:?} applied") };
        // Now everything that stood in the way is gone, except the session's memory.
        replica.run(200, of(vec![delete("text", false), delete("max", false)]));
        replica.run(201, put("a", "0"));
        let again = replica.run(202, command);
        assert!(!refusal.is_remembered() || again == refused(refusal.clone()), "{refusal}: then {again:?}");
        refusals.push((refusal, matches!(again, Outcome::Done { .. })));
    }
    let forgotten = |refusal| refusals.iter().any(|(other, applied)| *other == refusal && *applied);
    assert!(forgotten(Refusal::SessionFull), "a later attempt applied: {refusals:?}");
    assert_eq!(refusals.iter().filter(|(refusal, _)| refusal.is_remembered()).count(), 5);
}

#[test]
fn a_refusal_stays_a_refusal_for_duplicates() {
    let mut replica = Replica::default();
    let mut command = in_session(put("a", "1"), 1, 0, 1_000);
    command.operations[0].condition = Some(Condition::Present);
    let first = replica.run(1, command.clone());
    replica.run(2, put("a", "0"));
    assert_eq!(replica.run(3, command), first);
    assert_eq!(replica.value("a").as_deref(), Some("0"));
}

#[test]
fn an_expired_command_is_refused_even_if_its_outcome_was_dropped() {
    let mut replica = Replica::default();
    let command = in_session(add("n", 1), 1, 0, 100);
    replica.run(100, command.clone());
    assert_eq!(replica.run(101, command), refused(Refusal::Expired { clock_ms: 101 }));
    assert_eq!(replica.value("n").as_deref(), Some("1"));
    assert_eq!(
        replica.run(102, Command { expires_at_ms: 101, ..add("n", 1) }),
        refused(Refusal::Expired { clock_ms: 102 })
    );
}

#[test]
fn a_large_outcome_is_forgotten_and_not_applied_again() {
    let mut replica = Replica::default();
    replica.run(1, put("a", &"x".repeat(OUTCOME_BYTES_MAX)));
    let command = in_session(of(vec![delete("a", true)]), 1, 0, 1_000);
    assert!(matches!(replica.run(2, command.clone()), Outcome::Done { .. }));
    replica.run(3, put("a", "again"));
    assert_eq!(replica.run(4, command), refused(Refusal::OutcomeForgotten));
    assert_eq!(replica.value("a").as_deref(), Some("again"));
}

#[test]
fn inconsistent_sequences_are_malformed() {
    let mut replica = Replica::default();
    assert_eq!(replica.run(1, in_session(add("n", 1), 0, 0, 1_000)), refused(Refusal::Malformed));
    assert_eq!(replica.run(2, in_session(add("n", 1), 1, 2, 1_000)), refused(Refusal::Malformed));
}

#[test]
fn a_refusal_for_the_wrong_shard_is_not_remembered() {
    let mut replica = Replica::default();
    let command = in_session(put("a", "1"), 1, 0, 1_000);
    let range = std::mem::replace(&mut replica.descriptor.range, KeyRange::of_prefix(b"elsewhere"));
    assert_eq!(replica.run(1, command.clone()), refused(Refusal::WrongShard));
    replica.descriptor.range = range;
    assert!(matches!(replica.run(2, command), Outcome::Done { .. }));
}

/// A sender whose attempt is in doubt asks again after the range has changed.
#[test]
fn a_duplicate_gets_its_outcome_whatever_the_range_is_by_then() {
    let mut replica = Replica::default();
    let command = in_session(add("n", 1), 1, 0, 1_000);
    let outcome = replica.run(1, command.clone());
    assert!(matches!(outcome, Outcome::Done { .. }));
    replica.descriptor.range = KeyRange::of_prefix(b"elsewhere");
    assert_eq!(replica.run(2, command), outcome);
}
