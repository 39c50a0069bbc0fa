//! Expiry: when it takes effect, and the removal of due records.

use super::*;

#[test]
fn expiry_takes_effect_only_through_the_log() {
    let mut replica = Replica::default();
    replica.run(10, put_expiring("a", "1", 20));
    let query = Query::Get { keys: vec![key("a")], values: true };
    assert!(matches!(&replica.read(19, &query), Answer::Records(found) if found[0].is_some()));
    assert_eq!(replica.read(20, &query), Answer::ClockAdvanceNeeded);
    assert_eq!(replica.count(20), Answer::ClockAdvanceNeeded);
    assert_eq!(replica.scan(20), Answer::ClockAdvanceNeeded);
    replica.run(20, Command::empty());
    assert_eq!(replica.read(20, &query), Answer::Records(vec![None]));
    assert_eq!(replica.count(20), Answer::Count { records: 0, bytes: 0, expiring: 0, mean_expiry_ms: 0 });
    assert!(replica.records.0.is_empty(), "the due record was removed");
}

#[test]
fn a_due_record_is_absent_before_it_is_removed() {
    let mut replica = Replica::default();
    let many = REMOVALS_PER_ENTRY * 3;
    for n in 0..many {
        replica.run(1, put_expiring(&format!("k{n:03}"), "v", 5));
    }
    let mut late = put(&format!("k{:03}", many - 1), "new");
    late.operations[0].condition = Some(Condition::Absent);
    assert!(matches!(replica.run(5, late), Outcome::Done { .. }));
    assert_eq!(replica.records.0.len(), many - REMOVALS_PER_ENTRY - 1, "some due records are still stored");
    assert!(matches!(replica.count(5), Answer::Count { records: 1, .. }));
    let Answer::Page { records, next: None } = replica.scan(5) else { panic!("no page") };
    assert_eq!(records.len(), 1);
    assert!(
        matches!(replica.run(5, of(vec![delete("k040", false)])), Outcome::Done { results, .. } if results == [OperationResult::Absent])
    );
    replica.apply(6, &[]);
    replica.apply(7, &[]);
    assert_eq!(replica.records.0.len(), 1);
}

#[test]
fn upkeep_removes_due_records_in_bounded_steps_once_the_version_says_so() {
    let many = REMOVALS_PER_UPKEEP * 2 + 10;
    let mut replica = with_due_records(many);
    assert_eq!(replica.machine.upkeep_due_ms(), Some(5));
    replica.apply(4, &[]);
    assert_eq!(replica.records.0.len(), many, "nothing is due yet");
    for left in [many - REMOVALS_PER_UPKEEP, 10, 0] {
        assert_eq!(replica.machine.upkeep_due_ms(), Some(5));
        replica.apply(6, &[]);
        assert_eq!(replica.records.0.len(), left);
        assert_eq!(replica.count(6), Answer::Count { records: 0, bytes: 0, expiring: 0, mean_expiry_ms: 0 });
    }
    assert_eq!(replica.machine.upkeep_due_ms(), None, "nothing is left to do");

    let mut first = Replica::default();
    (0..100).for_each(|n| drop(first.run(1, put_expiring(&format!("k{n}"), "v", 5))));
    assert_eq!(first.machine.upkeep_due_ms(), None, "binaries of the first version would not follow");
    first.apply(6, &[]);
    assert_eq!(first.records.0.len(), 100 - REMOVALS_PER_ENTRY);
}

#[test]
fn upkeep_is_due_as_before_after_a_restart() {
    let mut replica = with_due_records(REMOVALS_PER_UPKEEP + 10);
    replica.apply(6, &[]);
    let system = replica.machine.system();
    let mut restored = Replica::default();
    restored.machine.restore(&system, &replica.records).unwrap();
    restored.records = replica.records.clone();
    assert_eq!(restored.machine.upkeep_due_ms(), Some(5));
    assert_eq!(restored.count(6), Answer::Count { records: 0, bytes: 0, expiring: 0, mean_expiry_ms: 0 });
    restored.apply(7, &[]);
    assert!(restored.records.0.is_empty());
}

#[test]
fn reads_that_advanced_the_clock_end_although_records_become_due_all_the_time() {
    let mut replica = Replica::default();
    for n in 0..100 {
        replica.run(1, put_expiring(&format!("k{n:02}"), "v", 100 + n));
    }
    let range = replica.descriptor.range.clone();
    let scan = Query::Scan { range: range.clone(), items_max: 1_000, bytes_max: 1 << 20, values: false };
    let get = Query::Get { keys: vec![key("k50")], values: false };
    let as_of = |replica: &Replica, query: &Query, now_ms, as_of_ms| {
        let query = encode_query_as_of(query, as_of_ms);
        let answer = replica.machine.read(&replica.read_context(now_ms), &query, &replica.records).unwrap();
        crate::decode_answer(answer).unwrap()
    };
    let count = Query::Count { range };
    for query in [&scan, &get, &count] {
        assert_eq!(as_of(&replica, query, 150, None), Answer::ClockAdvanceNeeded);
    }
    replica.run(150, Command::empty());
    // More records are due by the time at which the reads come again.
    assert!(matches!(replica.count(160), Answer::ClockAdvanceNeeded));
    assert!(matches!(as_of(&replica, &count, 160, Some(150)), Answer::Count { records: 49, .. }));
    assert_eq!(as_of(&replica, &get, 160, Some(150)), Answer::Records(vec![None]));
    let Answer::Page { records, next: None } = as_of(&replica, &scan, 160, Some(150)) else { panic!("no page") };
    assert_eq!(records.len(), 49);
    // Without it, a page still gets as far as it can.
    let Answer::Page { records, next: Some(next) } = as_of(&replica, &scan, 160, None) else { panic!("no page") };
    assert_eq!((records.len(), next), (0, key("k51")));
    assert!(matches!(as_of(&replica, &get, 160, Some(140)), Answer::Records(found) if found == [None]));
}
