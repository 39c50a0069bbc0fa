//! What commands do: operations, conditions, limits.

use super::*;

#[test]
fn a_command_applies_whole_or_not_at_all() {
    let mut replica = Replica::default();
    replica.run(1, put("a", "1"));
    let mut failing = of(vec![
        operation("b", Action::Append { bytes: Bytes::from_static(b"x") }),
        delete("a", false),
        operation("a", Action::Add { delta: 1 }),
    ]);
    failing.operations[2].condition = Some(Condition::Present);
    let outcome = replica.run(2, failing);
    assert_eq!(outcome, refused(Refusal::ConditionFailed { operation: 2, found: None }));
    assert_eq!((replica.value("a").as_deref(), replica.value("b")), (Some("1"), None));
    assert_eq!(
        replica.count(2),
        Answer::Count { records: 1, bytes: key("a").len() as u64 + 1, expiring: 0, mean_expiry_ms: 0 }
    );
}

#[test]
fn conditions_are_numbered_before_operations_and_name_what_was_found() {
    let mut replica = Replica::default();
    let version = written(&replica.run(1, put("a", "1")));
    let mut command = put("b", "2");
    command.conditions = vec![(key("a"), Condition::Version(version)), (key("a"), Condition::Absent)];
    let outcome = replica.run(2, command.clone());
    assert_eq!(outcome, refused(Refusal::ConditionFailed { operation: 1, found: Some(version) }));
    command.conditions.pop();
    assert!(matches!(replica.run(3, command), Outcome::Done { .. }));
}

#[test]
fn a_skipped_operation_leaves_the_others_alone() {
    let mut replica = Replica::default();
    let version = written(&replica.run(1, put("a", "old")));
    let mut command = put("a", "new");
    let Action::Put { return_old, .. } = &mut command.operations[0].action else { unreachable!() };
    *return_old = true;
    command.operations[0].condition = Some(Condition::Absent);
    command.operations[0].otherwise = Otherwise::Skip;
    command.operations.push(put("b", "2").operations.remove(0));
    let Outcome::Done { results, .. } = replica.run(2, command) else { panic!("refused") };
    let old = Some("old".into());
    assert_eq!(results[0], OperationResult::Skipped { version: Some(version), old });
    assert_eq!((replica.value("a").as_deref(), replica.value("b").as_deref()), (Some("old"), Some("2")));
}

#[test]
fn commands_of_one_entry_have_growing_versions_and_see_each_other() {
    let mut replica = Replica::default();
    let outcomes = replica.apply(5, &[add("n", 1), add("n", 1), add("n", 1)]);
    let versions: Vec<_> = outcomes.iter().map(written).collect();
    assert_eq!(versions, (0..3).map(|n| Timestamp::from_millis(5).plus(n)).collect::<Vec<_>>());
    assert_eq!(replica.value("n").as_deref(), Some("3"));
}

#[test]
fn counters_refuse_other_values_and_overflow() {
    let mut replica = Replica::default();
    replica.run(1, put("text", "1.5"));
    assert_eq!(replica.run(2, add("text", 1)), refused(Refusal::NotAnInteger));
    replica.run(3, add("n", i64::MAX));
    assert_eq!(replica.run(4, add("n", 1)), refused(Refusal::Overflow));
    assert_eq!(replica.value("n"), Some(i64::MAX.to_string()));
}

#[test]
fn limits_and_the_range_are_checked_before_anything_is_written() {
    let limits = Limits { key_bytes_max: 4, value_bytes_max: 8, operations_max: 2, ..Limits::default() };
    let mut replica = Replica::with_limits(limits);
    assert_eq!(replica.run(1, put("12345", "")), refused(Refusal::TooLarge { limit_bytes: 4 }));
    assert_eq!(replica.run(2, put("k", "123456789")), refused(Refusal::TooLarge { limit_bytes: 8 }));
    replica.run(3, put("k", "12345678"));
    let append = of(vec![operation("k", Action::Append { bytes: Bytes::from_static(b"9") })]);
    assert_eq!(replica.run(4, append), refused(Refusal::TooLarge { limit_bytes: 8 }));
    let many = of(vec![delete("a", false), delete("b", false), delete("c", false)]);
    assert_eq!(replica.run(5, many), refused(Refusal::TooManyOperations { limit: 2 }));
    let mut elsewhere = put("k", "");
    elsewhere.operations[0].key = Bytes::from_static(b"\xff\xff\xff\xff\xff\xff");
    assert_eq!(replica.run(6, elsewhere.clone()), refused(Refusal::WrongShard));
    elsewhere.operations[0].key = Bytes::from_static(b"short");
    assert_eq!(replica.run(7, elsewhere), refused(Refusal::Malformed));
}

#[test]
fn old_values_are_returned_within_a_limit() {
    let limits = Limits { value_bytes_max: 8, answer_bytes_max: 12, ..Limits::default() };
    let mut replica = Replica::with_limits(limits);
    replica.apply(1, &[put("a", "12345678"), put("b", "12345678")]);
    let both = of(vec![delete("a", true), delete("b", true)]);
    assert_eq!(replica.run(2, both), refused(Refusal::TooLarge { limit_bytes: 12 }));
    let Outcome::Done { results, .. } = replica.run(3, of(vec![delete("a", true)])) else { panic!("refused") };
    assert!(matches!(&results[0], OperationResult::Deleted { old: Some(old), .. } if *old == "12345678".into()));
}

#[test]
fn expire_changes_only_the_expiry_and_tells_whether_there_was_one() {
    let mut replica = Replica::default();
    let expire = |expiry| of(vec![operation("a", Action::Expire { expiry })]);
    let number = |outcome: Outcome| match outcome {
        Outcome::Done { results, .. } => match results[0] {
            OperationResult::Written { number, .. } => Some(number),
            _ => None,
        },
        Outcome::Refused(refusal) => panic!("{refusal}"),
    };
    assert_eq!(number(replica.run(1, expire(Expiry::Never))), None);
    replica.run(2, put("a", "1"));
    assert_eq!(number(replica.run(3, expire(Expiry::At(10)))), Some(0));
    replica.run(4, add("a", 1));
    assert_eq!(number(replica.run(5, expire(Expiry::Never))), Some(1));
    replica.run(20, Command::empty());
    assert_eq!(replica.value("a").as_deref(), Some("2"));
    assert_eq!(number(replica.run(21, expire(Expiry::At(21)))), Some(0));
    assert_eq!(replica.value("a"), None, "an expiry that is due removes the record");
}
