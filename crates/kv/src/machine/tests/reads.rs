//! Bounds of reads.

use super::*;
use crate::Value;

#[test]
fn a_count_of_more_than_the_shard_holds_is_refused() {
    let mut replica = Replica::default();
    replica.apply(1, &[put("a", "1"), put("b", "1")]);
    let before = replica.descriptor.range.clone();
    replica.descriptor.range.end = key("b");
    assert_eq!(replica.read(1, &Query::Count { range: before }), Answer::WrongShard);
    assert!(matches!(replica.count(1), Answer::Count { .. }));
}

#[test]
fn a_page_passes_over_a_bounded_number_of_due_records() {
    let mut replica = with_due_records(10_000);
    replica.run(1, put("z", "live"));
    replica.run(6, Command::empty());
    let mut range = replica.descriptor.range.clone();
    let (mut pages, mut found) = (0, 0);
    loop {
        let query = Query::Scan { range: range.clone(), items_max: 10, bytes_max: 1 << 20, values: true };
        let Answer::Page { records, next } = replica.read(6, &query) else { panic!("no page") };
        (pages, found) = (pages + 1, found + records.len());
        let Some(next) = next else { break };
        range.start = next;
    }
    assert_eq!((pages, found), (3, 1));
}

#[test]
fn scans_continue_where_they_stopped() {
    let mut replica = Replica::default();
    for n in 0..10 {
        replica.run(1, put(&format!("k{n}"), "value"));
    }
    let range = replica.descriptor.range.clone();
    let mut from = range.start.clone();
    let mut found = Vec::new();
    for page in [4, 4, 2] {
        let range = KeyRange { start: from, end: range.end.clone() };
        let query = Query::Scan { range, items_max: 4, bytes_max: u32::MAX, values: false };
        let Answer::Page { records, next } = replica.read(1, &query) else { panic!("no page") };
        assert_eq!((records.len(), next.is_some()), (page, page == 4));
        assert!(records.iter().all(|record| record.value == Value::default() && record.value_bytes == 5));
        found.extend(records.into_iter().map(|record| record.key));
        from = next.unwrap_or_default();
    }
    assert_eq!(found, (0..10).map(|n| key(&format!("k{n}"))).collect::<Vec<_>>());
    let tiny = Query::Scan { range: range.clone(), items_max: 9, bytes_max: 0, values: true };
    assert!(matches!(replica.read(1, &tiny), Answer::Page { records, next: Some(_) } if records.len() == 1));
    let part = Query::Count { range: KeyRange { start: key("k7"), end: range.end } };
    assert!(matches!(replica.read(1, &part), Answer::Count { records: 3, .. }));
}

#[test]
fn reads_outside_the_shard_and_beyond_limits_are_refused() {
    let limits = Limits { query_keys_max: 1, answer_bytes_max: 4, scan_examined_max: 2, ..Limits::default() };
    let mut replica = Replica::with_limits(limits);
    replica.apply(1, &[put("a", "12345"), put("b", "1"), put("c", "1"), put("d", "1")]);
    let get = |keys: &[Bytes]| Query::Get { keys: keys.to_vec(), values: true };
    assert_eq!(replica.read(1, &get(&[key("a"), key("b")])), Answer::TooLarge);
    assert_eq!(replica.read(1, &get(&[key("a")])), Answer::TooLarge);
    assert_eq!(replica.read(1, &get(&[Bytes::from_static(b"short")])), Answer::Malformed);
    assert_eq!(replica.read(1, &get(&[Bytes::from_static(b"\xff\xff\xff\xff\0\0")])), Answer::WrongShard);
    let scan = Query::Scan { range: KeyRange::all(), items_max: 1, bytes_max: 1, values: true };
    assert_eq!(replica.read(1, &scan), Answer::WrongShard);
    assert!(matches!(replica.scan(1), Answer::Page { records, next: Some(_) } if records.len() <= 2));
    let part = Query::Count { range: KeyRange::of_prefix(&key("")[..6]) };
    assert!(matches!(replica.read(1, &part), Answer::Count { records: 4, .. } | Answer::TooLarge));
    let part = KeyRange { start: key("a"), end: replica.descriptor.range.end.clone() };
    assert_eq!(replica.read(1, &Query::Count { range: part }), Answer::TooLarge);
    let answer = replica.machine.read(&replica.read_context(1), b"\x01\xff", &replica.records).unwrap();
    assert_eq!(crate::decode_answer(answer), Ok(Answer::Malformed));
}
