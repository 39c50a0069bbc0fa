//! Expiry: when it takes effect, and the removal of due records.

use std::sync::atomic::{AtomicUsize, Ordering};

use flotilla_storage::EngineError;
use flotilla_types::Refs;

use super::*;
use crate::{
    encode_query,
    expiries::{Form, Stored},
    place::encode_bytes,
};

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

/// The records of a shard at version 4 in which this many records expire, one every millisecond. It counts what
/// is read.
struct Expiring {
    many: u64,
    /// Those that entries have removed.
    removed: u64,
    reads: AtomicUsize,
}

const FIRST_MS: u64 = 1_000;

impl Expiring {
    fn place(n: u64) -> Place {
        Place::new(FIRST_MS + n, key(&format!("k{n:07}")))
    }

    fn system(&self) -> Bytes {
        let sum_ms = (0..self.many).map(|n| u128::from(FIRST_MS + n)).sum();
        let expiries = Stored { form: Form::Records, count: self.many, sum_ms, none_before_ms: 1, owned: None };
        let (version, clock) = (ClusterVersion::EXPIRY_RECORDS, Timestamp::ZERO);
        System { version, clock, records: self.many, bytes: self.many * 15, expiries }.encode(&Sessions::default())
    }
}

impl StateReader for Expiring {
    fn get(&self, _: &[u8]) -> Result<Option<Bytes>, EngineError> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        Ok(None)
    }

    fn scan(&self, range: &KeyRange, items_max: usize, _: usize) -> Result<Vec<(Bytes, Bytes)>, EngineError> {
        assert!(KeyRange::internal().contains(&range.start), "only what says when records expire is scanned");
        self.reads.fetch_add(1, Ordering::Relaxed);
        let start = Place::of_stored_key(&range.start).unwrap().at_ms.saturating_sub(FIRST_MS).max(self.removed);
        let records = (start.saturating_sub(1)..self.many).map(|n| (Self::place(n).stored_key(), encode_bytes(15)));
        Ok(records.filter(|(key, _)| range.contains(key)).take(items_max).collect())
    }
}

#[test]
fn a_load_and_the_removal_of_due_records_read_little_whatever_their_number() {
    let mut shard = Expiring { many: 1_000_000, removed: 0, reads: AtomicUsize::new(0) };
    let mut replica = Replica::default();
    replica.machine.restore(&shard.system(), &shard).unwrap();
    assert_eq!(shard.reads.load(Ordering::Relaxed), 0, "a load reads no record");
    assert_eq!(replica.machine.system(), shard.system());
    let upkeeps = 100;
    for upkeep in 1..=upkeeps {
        let context = Replica::context(&replica.descriptor, upkeep, FIRST_MS + 999_999, &Refs::NONE);
        let mut writes = WriteSet::new();
        replica.machine.apply(&context, &[], &shard, &mut writes).unwrap();
        shard.removed += REMOVALS_PER_UPKEEP as u64;
        assert_eq!(writes.len(), 2 * REMOVALS_PER_UPKEEP, "each with the record of its expiry");
        let next_ms = FIRST_MS + shard.removed;
        // At the end of what is in memory only the last one that was removed is known.
        assert!(replica.machine.upkeep_due_ms().is_some_and(|due_ms| (next_ms - 1..=next_ms).contains(&due_ms)));
        assert!(replica.machine.stats.expiries.in_memory() <= 2 * NEXT_MAX);
    }
    let reads = shard.reads.load(Ordering::Relaxed);
    assert!(reads <= 1 + upkeeps as usize * REMOVALS_PER_UPKEEP / NEXT_MAX, "{reads} reads");

    // More are due than a count reads where entries are applied.
    let query = encode_query(&Query::Count { range: replica.descriptor.range.clone() });
    let context = replica.read_context(0);
    let here = replica.machine.read(&context, &query, &shard);
    assert!(matches!(here, Err(MachineError::Engine(EngineError::NotInMemory))), "{here:?}");
    let answer = replica.machine.deferred().unwrap().read(&context, &query, &shard).unwrap();
    let counted = Answer::Count { records: 0, bytes: 0, expiring: 0, mean_expiry_ms: 0 };
    assert_eq!(crate::decode_answer(answer).unwrap(), counted);
}

/// The place up to which a replica's places are records, while it converts them.
fn converted_to(replica: &Replica) -> Option<Place> {
    match System::decode(&replica.machine.system()).unwrap().0.expiries.form {
        Form::Converting(to) => Some(to),
        Form::Memory | Form::Records => None,
    }
}

#[test]
fn a_switch_makes_the_expiries_records_in_bounded_steps() {
    let many = REMOVALS_PER_UPKEEP * 2 + 10;
    let mut replica = with_records_due_at(many, 90);
    let places = |replica: &Replica| replica.records.0.len() - many;
    replica.switch(2, 4).unwrap();
    let mut restarted = Replica::default();
    for expected in [REMOVALS_PER_UPKEEP, 2 * REMOVALS_PER_UPKEEP, many] {
        assert_eq!(replica.machine.upkeep_due_ms(), Some(0), "the shard goes on although nobody writes");
        restarted.records = replica.records.clone();
        restarted.machine.restore(&replica.machine.system(), &replica.records).unwrap();
        replica.apply(3, &[]);
        restarted.apply(3, &[]);
        assert_eq!(places(&replica), expected);
        assert_eq!((&restarted.records, restarted.machine.system()), (&replica.records, replica.machine.system()));
        replica.assert_places();
        assert_eq!(converted_to(&replica).is_none(), expected == many);
    }
    assert_eq!(replica.machine.upkeep_due_ms(), Some(90));
    replica.apply(95, &[]);
    assert_eq!(replica.records.0.len(), 2 * (many - REMOVALS_PER_UPKEEP));
}

#[test]
fn records_of_expiries_are_nobodys_keys() {
    let mut replica = Replica::default();
    replica.descriptor.range = KeyRange::all();
    replica.switch(1, 4).unwrap();
    replica.run(2, put_expiring("a", "1", 50));
    assert_eq!(replica.records.0.len(), 2);
    let stored = Place::new(50, key("a")).stored_key();
    let mut operation = delete("a", false);
    operation.key = stored.clone();
    assert_eq!(replica.run(3, of(vec![operation])), refused(Refusal::WrongShard));
    let get = Query::Get { keys: vec![stored.clone()], values: true };
    assert_eq!(replica.read(3, &get), Answer::WrongShard);
    assert!(matches!(replica.scan(3), Answer::Page { records, next: None } if records.len() == 1));
    let part = Query::Count { range: KeyRange { start: key("a"), end: Bytes::new() } };
    assert!(matches!(replica.read(3, &part), Answer::Count { records: 1, .. }));
    assert!(matches!(replica.count(3), Answer::Count { records: 1, expiring: 1, .. }));
}

#[test]
fn an_expiry_that_moves_leaves_no_record_behind() {
    let mut replica = Replica::default();
    replica.switch(1, 4).unwrap();
    let expire = |expiry| of(vec![operation("a", Action::Expire { expiry })]);
    for (at_ms, command, stored) in [
        (2, put_expiring("a", "1", 50), 2),
        (3, put_expiring("a", "22", 50), 2),
        (4, expire(Expiry::At(60)), 2),
        (5, expire(Expiry::Never), 1),
        (6, expire(Expiry::At(70)), 2),
        (7, add("a", 1), 2),
        (8, of(vec![delete("a", false)]), 0),
        (9, put_expiring("a", "1", 50), 2),
        (50, Command::empty(), 0),
    ] {
        replica.run(at_ms, command);
        assert_eq!(replica.records.0.len(), stored, "at {at_ms}");
        replica.assert_places();
    }
}

#[test]
fn places_that_disagree_with_the_counts_stop_the_replica() {
    let mut replica = Replica::default();
    replica.switch(1, 4).unwrap();
    replica.run(2, put_expiring("a", "1", 50));
    let place = Place::new(50, key("a")).stored_key();
    replica.records.0.remove(&place);
    replica.restart(NEXT_MAX);
    let context = Replica::context(&replica.descriptor, 9, 60, &Refs::NONE);
    let failed = replica.machine.apply(&context, &[], &replica.records, &mut WriteSet::new());
    assert!(matches!(failed, Err(MachineError::Corrupt(_))), "{failed:?}");
}
