//! Merges of shards: what the whole knows, what it counts, and that outdated places of either half are gone.

use super::*;
use crate::{encode_query, place::Place, testing::Records};

/// A shard at the version that has merges.
fn shard() -> Replica {
    let mut replica = Replica::default();
    replica.switch(1, ClusterVersion::MERGES.0).unwrap();
    replica
}

fn places(replica: &Replica) -> Vec<Place> {
    let internal = KeyRange::internal();
    let keys = replica.records.0.keys().filter(|key| internal.contains(key));
    keys.map(|key| Place::of_stored_key(key).unwrap()).collect()
}

/// Upkeep until nothing is left to do at this time. Returns how many entries that took.
fn maintain(replica: &mut Replica, at_ms: u64) -> usize {
    let mut entries = 0;
    while replica.machine.upkeep_due_ms().is_some_and(|due_ms| due_ms <= at_ms) {
        replica.apply(at_ms, &[]);
        replica.assert_places();
        entries += 1;
        assert!(entries < 1_000, "upkeep never ends");
    }
    entries
}

#[test]
fn an_outdated_place_of_the_other_half_removes_no_record() {
    let mut left = shard();
    left.apply(2, &[put_expiring("a", "1", 20), put_expiring("z", "1", 30)]);
    let mut right = left.split(&key("m"));
    // Each half has a place of the other's record, which lives longer now.
    left.run(3, put_expiring("a", "2", 90));
    right.run(3, put_expiring("z", "2", 80));
    left.clip();
    left.merge(right);
    maintain(&mut left, 40);
    assert_eq!((left.value("a").as_deref(), left.value("z").as_deref()), (Some("2"), Some("2")));
    assert_eq!(places(&left), [Place::new(80, key("z")), Place::new(90, key("a"))]);
    maintain(&mut left, 100);
    assert_eq!((left.user_records().len(), places(&left).len()), (0, 0));
}

#[test]
fn a_command_that_either_half_has_applied_is_applied_no_more() {
    let mut left = shard();
    let first = in_session(add("a", 1), 1, 0, 1_000);
    let outcome = left.run(2, first.clone());
    let mut right = left.split(&key("m"));
    let second = in_session(add("z", 5), 2, 0, 1_000);
    let third = in_session(add("b", 7), 3, 2, 1_000);
    let of_second = right.run(3, second.clone());
    let of_third = left.run(3, third.clone());
    left.clip();
    left.merge(right);
    assert_eq!(left.run(4, second), of_second);
    assert_eq!(left.run(4, third), of_third);
    assert_eq!(left.run(4, first), refused(Refusal::OutcomeForgotten), "it was acknowledged");
    assert!(matches!(outcome, Outcome::Done { .. }));
    assert_eq!((left.value("z").as_deref(), left.value("b").as_deref()), (Some("5"), Some("7")));
}

#[test]
fn the_clock_is_the_later_one_and_the_counts_are_those_of_both() {
    let (mut left, mut right) = (shard(), shard());
    left.descriptor.range.end = key("m");
    right.descriptor.range.start = key("m");
    left.apply(2, &[put("a", "1"), put_expiring("b", "22", 50)]);
    right.apply(9, &[put("y", "333"), put_expiring("z", "4444", 70)]);
    left.merge(right);
    assert_eq!(left.machine.clock(), Timestamp::from_millis(9));
    let bytes = (4 * key("a").len() + 1 + 2 + 3 + 4) as u64;
    assert_eq!(left.count(9), Answer::Count { records: 4, bytes, expiring: 2, mean_expiry_ms: 60 });
    maintain(&mut left, 10);
    assert_eq!(left.count(10), Answer::Count { records: 4, bytes, expiring: 2, mean_expiry_ms: 60 });
}

#[test]
fn a_shard_without_records_that_expire_has_nothing_to_do_after_a_merge() {
    let mut left = shard();
    left.apply(2, &[put("a", "1"), put("z", "2")]);
    let right = left.split(&key("m"));
    left.clip();
    left.merge(right);
    left.assert_places();
    assert_eq!(left.machine.upkeep_due_ms(), None);
    assert_eq!(left.value("z").as_deref(), Some("2"));
}

#[test]
fn places_are_written_a_bounded_number_at_a_time_and_only_by_upkeep() {
    let mut left = shard();
    let puts: Vec<_> = (0..100).map(|n| put_expiring(&format!("k{n:02}"), "v", 50 + n)).collect();
    left.apply(2, &puts);
    let right = left.split(&key("k50"));
    left.clip();
    left.merge(right);
    left.apply(3, &[put("other", "1")]);
    assert_eq!(places(&left).len(), 0, "commands do not wait for it");
    // Writes meet keys with a place and keys without.
    left.apply(4, &[]);
    left.apply(5, &[put("k00", "v"), put("k99", "v"), put_expiring("k98", "v", 60), put_expiring("k01", "v", 60)]);
    left.assert_places();
    left.restart(3);
    let entries = maintain(&mut left, 6);
    assert_eq!(entries, 101_usize.div_ceil(PLACED_PER_UPKEEP) - 1);
    assert_eq!(places(&left).len(), 98);
    // A split, and a merge, in the middle of it.
    let right = left.split(&key("k30"));
    left.clip();
    left.merge(right);
    left.apply(7, &[]);
    let mut right = left.split(&key("k04"));
    left.clip();
    left.assert_places();
    let mut last = right.split(&key("k40"));
    for part in [&mut left, &mut right, &mut last] {
        part.clip();
        part.restart(3);
        maintain(part, 8);
        maintain(part, 500);
        assert_eq!(places(part), []);
    }
}

#[test]
fn due_records_without_a_place_are_counted_by_their_own_expiry() {
    let mut left = shard();
    let puts: Vec<_> = (0..40).map(|n| put_expiring(&format!("k{n:02}"), "v", 50 + n)).collect();
    left.apply(2, &puts);
    let right = left.split(&key("k20"));
    left.clip();
    left.merge(right);
    left.run(59, put("a", "1"));
    let Answer::Count { records, expiring, .. } = left.count(59) else { panic!("no count") };
    assert_eq!((records, expiring), (31, 30));
    assert_eq!(left.count(60), Answer::ClockAdvanceNeeded);
}

#[test]
fn a_merge_before_its_version_or_of_damaged_state_is_refused() {
    let merge = |left: &mut Replica, right: &[u8]| left.machine.merge(&KeyRange::of_users(), right).unwrap_err();
    let (mut new, mut old) = (shard(), Replica::default());
    old.switch(1, 7).unwrap();
    let before = new.machine.system();
    for (left, right) in [(&mut old, before.clone()), (&mut new, Replica::default().machine.system())] {
        assert!(matches!(merge(left, &right), MachineError::Corrupt(_)));
    }
    assert!(matches!(merge(&mut new, b"\x02\xff"), MachineError::Corrupt(_)));
    let internal = new.machine.merge(&KeyRange::internal(), &before).unwrap_err();
    assert!(matches!(internal, MachineError::Corrupt(_)));
    assert_eq!(new.machine.system(), before);
    let query = encode_query(&Query::Count { range: KeyRange::all() });
    assert!(new.machine.read(&new.read_context(1), &query, &Records::default()).is_ok());
}
