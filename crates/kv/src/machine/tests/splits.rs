//! Splits of a shard: what both halves know, what they refuse, and what becomes of the places of each other.

use flotilla_types::Refs;

use super::*;
use crate::{
    encode_query,
    place::{Place, encode_bytes},
    testing::Records,
    verify,
};

/// The name of the nth record; all sort in their order.
fn name(n: usize) -> String {
    format!("k{n:05}")
}

/// A shard at version 7 in which these records expire.
fn with_expiring(many: usize, at_ms: impl Fn(usize) -> u64) -> Replica {
    let mut replica = Replica::default();
    replica.switch(1, 7).unwrap();
    let puts: Vec<_> = (0..many).map(|n| put_expiring(&name(n), "v", at_ms(n))).collect();
    puts.chunks(500).for_each(|puts| drop(replica.apply(1, puts)));
    replica
}

/// The places that are records.
fn places(replica: &Replica) -> usize {
    replica.records.0.len() - replica.user_records().len()
}

fn split_error(replica: &mut Replica, right: KeyRange) -> MachineError {
    let before = replica.machine.system();
    let error = replica.machine.split(&right, &replica.records).unwrap_err();
    assert_eq!(replica.machine.system(), before);
    error
}

#[test]
fn both_halves_know_the_outcomes_of_the_sessions() {
    let mut left = Replica::default();
    left.switch(1, 7).unwrap();
    let first = in_session(put("a", "1"), 1, 0, 1_000);
    let second = in_session(add("z", 5), 2, 0, 1_000);
    let outcomes = left.apply(2, &[first.clone(), second.clone()]);
    let mut right = left.split(&key("m"));
    assert_eq!((right.machine.clock(), right.machine.version()), (left.machine.clock(), left.machine.version()));
    for replica in [&mut left, &mut right] {
        assert_eq!(replica.apply(3, &[first.clone(), second.clone()]), outcomes);
    }
    assert_eq!((left.value("a").as_deref(), right.value("z").as_deref()), (Some("1"), Some("5")));
    // What either learns from now on is its own.
    let third = in_session(add("z", 1), 3, 0, 1_000);
    assert_eq!(left.run(4, third.clone()), refused(Refusal::WrongShard));
    assert!(matches!(right.run(4, third), Outcome::Done { .. }));
}

#[test]
fn a_split_at_a_key_that_the_shard_does_not_have_changes_nothing() {
    let range = |start: Bytes, end: Bytes| KeyRange { start, end };
    let mut left = with_expiring(4, |_| 50);
    for right in [KeyRange::all(), range(key("b"), key("a")), KeyRange::internal()] {
        assert!(matches!(split_error(&mut left, right), MachineError::Corrupt(_)));
    }
    let mut right = left.split(&key(&name(2)));
    for outside in [range(key(&name(2)), Bytes::new()), range(key(&name(3)), Bytes::new())] {
        assert!(matches!(split_error(&mut left, outside), MachineError::Corrupt(_)));
    }
    for outside in [range(key(&name(2)), Bytes::new()), range(key(&name(0)), key(&name(1)))] {
        assert!(matches!(split_error(&mut right, outside), MachineError::Corrupt(_)));
    }
}

#[test]
fn records_that_disagree_with_the_counts_stop_the_split() {
    for version in [1, 7] {
        let mut replica = Replica::default();
        replica.switch(1, version).unwrap();
        replica.apply(2, &[put("a", "1"), put_expiring("x", "22", 50), put("y", "333")]);
        let right = KeyRange { start: key("m"), end: Bytes::new() };
        let whole = replica.records.clone();
        let surplus: Vec<_> = (0..3).map(|n| (key(&format!("z{n}")), whole.0[&key("y")].clone())).collect();
        replica.records.0.extend(surplus);
        assert!(matches!(split_error(&mut replica, right.clone()), MachineError::Corrupt(_)), "too many");
        replica.records = whole;
        let expiring = replica.records.0[&key("x")].clone();
        replica.records.0.insert(key("y"), expiring);
        assert!(matches!(split_error(&mut replica, right.clone()), MachineError::Corrupt(_)), "too many expire");
        replica.records.0.remove(&key("y"));
        replica.records.0.remove(&key("x"));
        assert!(matches!(split_error(&mut replica, right), MachineError::Corrupt(_)), "one that expires is lost");
    }
}

#[test]
fn a_foreign_place_is_removed_when_it_is_due_and_nothing_else() {
    let many = REMOVALS_PER_UPKEEP + 100;
    let mut left = with_expiring(2 * many, |_| 50);
    let mut right = left.split(&key(&name(many)));
    left.restart(8);
    for replica in [&mut left, &mut right] {
        let expected =
            Answer::Count { records: many as u64, bytes: 13 * many as u64, expiring: many as u64, mean_expiry_ms: 50 };
        assert_eq!(replica.count(2), expected);
        assert_eq!((places(replica), replica.machine.upkeep_due_ms().is_some()), (2 * many, true));
    }
    // Left has not dropped the records of right yet: it must not write them.
    assert_eq!(left.user_records().len(), 2 * many);
    let mut steps = 0;
    while left.machine.upkeep_due_ms().is_some_and(|due_ms| due_ms <= 60) {
        let before = places(&left) + places(&right);
        for replica in [&mut left, &mut right] {
            replica.apply(60, &[]);
            assert_eq!(replica.count(60), Answer::Count { records: 0, bytes: 0, expiring: 0, mean_expiry_ms: 0 });
            replica.assert_places();
        }
        let removed = before - places(&left) - places(&right);
        assert!(removed <= 2 * REMOVALS_PER_UPKEEP, "{removed} in one step");
        steps += 1;
    }
    assert_eq!(steps, (2 * many).div_ceil(REMOVALS_PER_UPKEEP));
    assert_eq!((left.user_records().len(), places(&left)), (many, 0), "those of right stay");
    assert_eq!(right.records.0.len(), 0);
    left.clip();
    for mut replica in [left, right] {
        assert_eq!(replica.machine.upkeep_due_ms(), None);
        replica.restart(8);
        assert_eq!(replica.machine.upkeep_due_ms(), None, "nor after a restart");
    }
}

#[test]
fn foreign_places_count_among_those_in_memory() {
    let mut left = Replica::default();
    left.restart(8);
    left.switch(1, 7).unwrap();
    // In the order of their expiries every other place is of the right half.
    let name = |n: u64| format!("{}{n:02}", if n.is_multiple_of(2) { 'a' } else { 'z' });
    (0..16).for_each(|n| drop(left.run(1, put_expiring(&name(n), "v", 50 + n))));
    left.split(&key("m"));
    left.clip();
    let in_memory = |replica: &Replica| replica.machine.stats.expiries.in_memory();
    assert_eq!(in_memory(&left), 16);
    left.run(1, put_expiring("b", "v", 49));
    assert_eq!(in_memory(&left), 8, "there was one too many");
    for _ in 0..2 {
        left.run(80, Command::empty());
        left.assert_places();
    }
    assert_eq!(left.records.0.len(), 0);
}

#[test]
fn a_count_passes_over_a_bounded_number_of_foreign_places() {
    let many = 5_000;
    let mut left = with_expiring(many, |n| if n == 0 { 5_000 } else { 50 });
    left.split(&key(&name(1)));
    left.clip();
    let one = Answer::Count { records: 1, bytes: 13, expiring: 1, mean_expiry_ms: 5_000 };
    for next_max in [NEXT_MAX, 8] {
        left.restart(next_max);
        assert_eq!(left.count(49), one);
        assert_eq!(left.count(50), Answer::ClockAdvanceNeeded, "too many to look at");
    }
    left.run(50, Command::empty());
    let query = encode_query(&Query::Count { range: left.descriptor.range.clone() });
    let context = left.read_context(50);
    let here = left.machine.read(&context, &query, &left.records);
    let here = here.or_else(|_| left.machine.deferred().unwrap().read(&context, &query, &left.records));
    assert_eq!(crate::decode_answer(here.unwrap()).unwrap(), one);
    // Few are passed over.
    let mut few = with_expiring(many / 2, |n| if n == 0 { 5_000 } else { 50 });
    few.split(&key(&name(1)));
    few.clip();
    few.restart(8);
    assert_eq!(few.count(50), one);
}

#[test]
fn a_shard_that_is_split_while_its_places_become_records_removes_the_foreign_ones_later() {
    let many = REMOVALS_PER_UPKEEP * 3;
    let mut left = Replica::default();
    left.switch(1, 3).unwrap();
    for n in 0..many {
        // The first half of the keys expires last.
        let at_ms = if n < many / 2 { 90 } else { 50 };
        left.run(2, put_expiring(&name(n), "v", at_ms));
    }
    left.switch(2, 7).unwrap();
    left.apply(3, &[]);
    assert_eq!(places(&left), REMOVALS_PER_UPKEEP);
    let mut right = left.split(&key(&name(many / 2)));
    for replica in [&mut left, &mut right] {
        replica.clip();
        replica.assert_places();
        replica.restart(8);
        while replica.machine.stats.expiries.is_converting() {
            replica.apply(60, &[]);
            replica.assert_places();
        }
        let has_foreign = places(replica) > replica.user_records().len();
        assert_eq!(replica.machine.upkeep_due_ms(), Some(if has_foreign { 0 } else { 50 }));
        replica.restart(8);
        replica.apply(61, &[]);
        replica.assert_places();
    }
    assert_eq!((places(&left), left.user_records().len()), (many / 2, many / 2));
    while right.machine.upkeep_due_ms().is_some_and(|due_ms| due_ms <= 60) {
        right.apply(60, &[]);
    }
    assert_eq!(right.records.0.len(), 0);
    left.apply(95, &[]);
    left.apply(95, &[]);
    assert_eq!(left.records.0.len(), 0);
}

#[test]
fn a_state_whose_foreign_places_are_miscounted_stops_the_replica() {
    let mut left = with_expiring(4, |_| 50);
    left.split(&key(&name(2)));
    left.clip();
    left.apply(20, &[]);
    left.assert_places();
    let system = left.machine.system();
    let check = |change: &dyn Fn(&mut Records)| {
        let mut records = left.records.clone();
        change(&mut records);
        let verified = verify(&system, &records);
        let mut machine = KvMachine::new(Limits::default());
        machine.restore(&system, &records).unwrap();
        let context = Replica::context(&left.descriptor, 9, 60, &Refs::NONE);
        (verified.is_ok(), machine.apply(&context, &[], &records, &mut WriteSet::new()).is_ok())
    };
    assert_eq!(check(&|_| {}), (true, true));
    let foreign = Place::new(50, key(&name(3))).stored_key();
    assert_eq!(check(&|records| drop(records.0.remove(&foreign))), (false, false));
    let moved = |records: &mut Records| {
        let bytes = records.0.remove(&foreign).unwrap();
        records.0.insert(Place::new(5, key(&name(3))).stored_key(), bytes);
    };
    assert_eq!(check(&moved), (false, false), "it was due before");
    let surplus = Place::new(55, key(&name(3))).stored_key();
    assert_eq!(check(&|records| drop(records.0.insert(surplus.clone(), encode_bytes(13)))), (false, false));
}

#[test]
fn a_write_outside_the_keys_that_a_split_has_left_stops_the_replica() {
    let mut left = with_expiring(4, |_| 50);
    let whole = left.descriptor.clone();
    left.split(&key(&name(2)));
    let context = Replica::context(&whole, 9, 2, &Refs::NONE);
    let command = [encode_command(&put_expiring("other", "v", 70))];
    let failed = left.machine.apply(&context, &command, &left.records, &mut WriteSet::new());
    assert!(matches!(failed, Err(MachineError::Corrupt(_))), "{failed:?}");
}
