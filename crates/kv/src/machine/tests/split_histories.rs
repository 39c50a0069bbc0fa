//! Random histories with splits and merges, against a map of all records and an oracle of what each entry removes.
//!
//! Each shard has two replicas: one that never restarts, and one that does and has few places in memory. They must
//! stay equal.

use std::{collections::BTreeMap, sync::Arc};

use flotilla_storage::{CountAhead, EngineError};
use flotilla_types::{Bucket, CollectionId, RecordKey, Refs};
use proptest::{
    collection::{btree_map, vec},
    option,
    prelude::*,
    sample::Index,
};

use super::*;
use crate::{expiries::Form, place::Place, testing::Records};

/// A write of one record: the length of its value and how long it lives; `None` deletes it.
type Write = (Bytes, Option<(usize, Option<u64>)>);

#[derive(Debug, Clone)]
enum Step {
    /// An entry, so many milliseconds after the last.
    Entry(u64, Vec<Write>),
    /// A split of a shard.
    Split(Index, At),
    /// A merge of a shard with its right neighbour, if both are at a version that has merges.
    Merge(Index),
    /// One replica of a shard begins to count ahead of a split, in place of an earlier count.
    Count(Index, At),
    /// A restart of a replica of each shard, which then keeps so many places in memory.
    Restart(usize),
    /// The checkpoint after a split.
    Clip,
    Switch(u32),
}

/// Where a shard is split.
#[derive(Debug, Clone)]
enum At {
    First,
    Present(Index),
    Key(Bytes),
    /// Where a replica has counted ahead, which ends now.
    Counted,
}

fn whole_key(bucket: u16, name: &str) -> Bytes {
    RecordKey::new(CollectionId::DEFAULT, Bucket(bucket), name.as_bytes()).into_bytes()
}

fn some_key() -> impl Strategy<Value = Bytes> {
    (0..3u16, prop_oneof!["[a-d]", "p[0-2][0-9]"]).prop_map(|(bucket, name)| whole_key(bucket, &name))
}

fn write() -> impl Strategy<Value = Write> {
    let put = (0..9usize, option::weighted(0.8, 0..40u64));
    (some_key(), option::weighted(0.8, put))
}

fn step() -> impl Strategy<Value = Step> {
    let at = prop_oneof![
        1 => Just(At::First),
        3 => any::<Index>().prop_map(At::Present),
        2 => some_key().prop_map(At::Key),
        1 => (0..3u16).prop_map(|bucket| At::Key(whole_key(bucket, ""))),
        4 => Just(At::Counted),
    ];
    let counted = prop_oneof![any::<Index>().prop_map(At::Present), some_key().prop_map(At::Key)];
    prop_oneof![
        12 => (0..6u64, vec(write(), 0..6)).prop_map(|(wait_ms, writes)| Step::Entry(wait_ms, writes)),
        2 => (20..40u64, vec(write(), 0..2)).prop_map(|(wait_ms, writes)| Step::Entry(wait_ms, writes)),
        3 => (any::<Index>(), at).prop_map(|(shard, at)| Step::Split(shard, at)),
        3 => any::<Index>().prop_map(Step::Merge),
        3 => (any::<Index>(), counted).prop_map(|(shard, at)| Step::Count(shard, at)),
        3 => prop_oneof![1..9usize, 16..60usize].prop_map(Step::Restart),
        1 => Just(Step::Clip),
        2 => prop_oneof![Just(2u32), Just(4), Just(7), Just(10)].prop_map(Step::Switch),
    ]
}

/// In some histories: a split soon after the switch to places that are records.
fn split_while_converting() -> impl Strategy<Value = Vec<Step>> {
    let writes = || vec(write(), 1..3);
    (any::<bool>(), (1..40u64, writes()), any::<(Index, Index)>(), 16..60usize).prop_map(
        |(is_there, (wait_ms, writes), (shard, at), next_max)| {
            let split = Step::Split(shard, At::Present(at));
            let steps = [Step::Restart(next_max), Step::Switch(7), Step::Entry(wait_ms, writes), split];
            if is_there { steps.to_vec() } else { Vec::new() }
        },
    )
}

/// Many records, and then anything.
fn history() -> impl Strategy<Value = Vec<Step>> {
    let many = btree_map(some_key(), (0..9usize, option::weighted(0.8, 1..40u64)), 0..100);
    let version = prop_oneof![Just(1u32), Just(3), Just(7), Just(10), Just(10)];
    (version, many, split_while_converting(), vec(step(), 0..40)).prop_map(|(version, many, converting, steps)| {
        let puts: Vec<Write> = many.into_iter().map(|(key, put)| (key, Some(put))).collect();
        let puts = puts.chunks(20).map(|puts| Step::Entry(0, puts.to_vec()));
        [Step::Switch(version)].into_iter().chain(puts).chain(converting).chain(steps).collect()
    })
}

/// Records that may only be scanned if the machine has said so.
struct Guarded<'a> {
    records: &'a Records,
    may_scan: bool,
}

impl StateReader for Guarded<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        self.records.get(key)
    }

    fn scan(&self, range: &KeyRange, items_max: usize, bytes_max: usize) -> Result<Vec<(Bytes, Bytes)>, EngineError> {
        assert!(self.may_scan, "an entry scans {range:?}");
        self.records.scan(range, items_max, bytes_max)
    }
}

/// The expiries of records by their keys.
type Expiring = BTreeMap<Bytes, Option<u64>>;

struct Shard {
    steady: Replica,
    restarting: Replica,
    /// What `restarting` has said of the entries that come next.
    may_scan: bool,
    /// The count that `steady` has begun, and the records as they were then.
    counted: Option<(Bytes, Arc<dyn CountAhead>, Records)>,
}

impl Shard {
    fn commands(&self, now_ms: u64, writes: &[Write]) -> Vec<Command> {
        let range = &self.steady.descriptor.range;
        let own = writes.iter().filter(|(key, _)| range.contains(key));
        own.map(|(key, write)| {
            let action = match write {
                Some((bytes, lives_ms)) => Action::Put {
                    value: Bytes::from(vec![b'v'; *bytes]).into(),
                    expiry: lives_ms.map_or(Expiry::Never, |ms| Expiry::At(now_ms + ms)),
                    return_old: false,
                },
                None => Action::Delete { return_old: false },
            };
            of(vec![Operation { key: key.clone(), condition: None, otherwise: Otherwise::Refuse, action }])
        })
        .collect()
    }

    /// Asks as a host does before entries.
    fn announce(&mut self, now_ms: u64, entries: &[(u64, Vec<Write>)]) {
        let (mut upcoming, mut named, mut until_ms) = (Upcoming::default(), Vec::new(), now_ms);
        for (wait_ms, writes) in entries {
            until_ms += wait_ms;
            let commands = self.commands(until_ms, writes);
            let commands: Vec<_> = commands.iter().map(encode_command).collect();
            self.restarting.machine.keys_read(&commands, &mut named);
            *(if commands.is_empty() { &mut upcoming.upkeeps } else { &mut upcoming.entries }) += 1;
        }
        upcoming.keys = named.len();
        upcoming.until = Timestamp::from_millis(until_ms);
        self.may_scan = self.restarting.machine.scans(&upcoming);
    }

    fn form(&self) -> Form {
        System::decode(&self.steady.machine.system()).unwrap().0.expiries.form
    }

    /// The stored records of its keys.
    fn stored(&self) -> Expiring {
        let range = &self.steady.descriptor.range;
        let own = self.steady.user_records().into_iter().filter(|(key, _)| range.contains(key));
        own.map(|(key, stored)| (key, StoredRecord::decode(stored).unwrap().expires_at_ms)).collect()
    }

    /// The places that are records, in order.
    fn places(&self) -> Vec<Place> {
        let internal = KeyRange::internal();
        let keys = self.steady.records.0.keys().filter(|key| internal.contains(key));
        keys.map(|key| Place::of_stored_key(key).unwrap()).collect()
    }

    fn foreign(&self) -> Vec<Place> {
        let range = &self.steady.descriptor.range;
        self.places().into_iter().filter(|place| !range.contains(&place.key)).collect()
    }

    /// What it has after an entry: its records, and the places of others.
    fn expected(&self, now_ms: u64, commands: &[Command]) -> (Expiring, Vec<Place>) {
        let (mut stored, mut foreign) = (self.stored(), self.foreign());
        let own = |(key, at_ms): (&Bytes, &Option<u64>)| at_ms.map(|at_ms| Place::new(at_ms, key.clone()));
        let mut queue: Vec<_> =
            if self.form() == Form::Records { self.places() } else { stored.iter().filter_map(own).collect() };
        queue.sort();
        let is_upkeep = commands.is_empty() && self.steady.machine.version >= ClusterVersion(2);
        let removals_max = if is_upkeep { REMOVALS_PER_UPKEEP } else { REMOVALS_PER_ENTRY + commands.len() };
        let due = queue.into_iter().take_while(|place| place.at_ms <= now_ms).take(removals_max);
        for place in due.collect::<Vec<_>>() {
            if self.steady.descriptor.range.contains(&place.key) {
                assert_eq!(stored.remove(&place.key), Some(Some(place.at_ms)));
            } else {
                foreign.retain(|other| *other != place);
            }
        }
        for operation in commands.iter().flat_map(|command| &command.operations) {
            match &operation.action {
                Action::Put { expiry: Expiry::At(at_ms), .. } if *at_ms <= now_ms => {
                    stored.remove(&operation.key);
                }
                Action::Put { expiry: Expiry::At(at_ms), .. } => {
                    stored.insert(operation.key.clone(), Some(*at_ms));
                }
                Action::Put { .. } => {
                    stored.insert(operation.key.clone(), None);
                }
                // A due record is absent, and stays until it is removed.
                Action::Delete { .. } => {
                    stored.retain(|key, at_ms| *key != operation.key || at_ms.is_some_and(|at_ms| at_ms <= now_ms));
                }
                _ => panic!("no such write"),
            }
        }
        (stored, foreign)
    }

    fn apply(&mut self, now_ms: u64, writes: &[Write]) {
        let commands = self.commands(now_ms, writes);
        let expected = self.expected(now_ms, &commands);
        let outcomes = self.steady.apply(now_ms, &commands);
        assert!(outcomes.iter().all(|outcome| matches!(outcome, Outcome::Done { .. })), "{outcomes:?}");
        let commands: Vec<_> = commands.iter().map(encode_command).collect();
        let records = self.restarting.records.clone();
        let reader = Guarded { records: &records, may_scan: self.may_scan };
        assert_eq!(self.restarting.apply_naming(now_ms, &commands, &reader, &Refs::NONE), outcomes);
        assert_eq!((self.stored(), self.foreign()), expected);
    }

    /// Splits it, if the key is inside.
    fn split(&mut self, at: &At) -> Option<Self> {
        if matches!(at, At::Counted) {
            let (at, counting, records) = self.counted.take()?;
            counting.run(&records, &mut || ()).unwrap();
            return self.split_at(&at);
        }
        self.split_at(&self.key(at)?)
    }

    fn key(&self, at: &At) -> Option<Bytes> {
        let (stored, range) = (self.stored(), self.steady.descriptor.range.clone());
        let at = match at {
            At::Counted => return None,
            At::First => stored.keys().next()?.clone(),
            At::Present(index) if !stored.is_empty() => stored.keys().nth(index.index(stored.len()))?.clone(),
            At::Present(_) => return None,
            At::Key(key) => key.clone(),
        };
        (at > range.start && range.contains(&at)).then_some(at)
    }

    /// Begins to count what a split there would give up.
    fn count(&mut self, at: &At) {
        if let Some(at) = self.key(at) {
            let right = KeyRange { start: at.clone(), end: self.steady.descriptor.range.end.clone() };
            let counting = self.steady.machine.count_ahead(&right).expect("a count");
            self.counted = Some((at, counting, self.steady.records.clone()));
        }
    }

    fn split_at(&mut self, at: &Bytes) -> Option<Self> {
        if !self.steady.descriptor.range.contains(at) {
            return None;
        }
        let (steady, mut restarting) = (self.steady.split(at), self.restarting.split(at));
        restarting.restart(3);
        Some(Self { steady, restarting, may_scan: false, counted: None })
    }

    fn may_merge(&self, right: &Self) -> bool {
        let end = &self.steady.descriptor.range.end;
        let are_neighbours = !end.is_empty() && *end == right.steady.descriptor.range.start;
        are_neighbours && self.steady.machine.version.min(right.steady.machine.version) >= ClusterVersion::MERGES
    }

    fn merge(&mut self, right: Self) {
        self.steady.merge(right.steady);
        self.restarting.merge(right.restarting);
        // Nothing was said of the entries that come.
        self.may_scan = true;
    }

    fn is_placing(&self) -> bool {
        self.steady.machine.stats.expiries.is_placing()
    }

    /// Compares it with the records of all shards.
    fn check(&self, now_ms: u64, all: &BTreeMap<Bytes, (u64, Option<u64>)>) {
        let range = &self.steady.descriptor.range;
        let own = all.iter().filter(|(key, _)| range.contains(key));
        let live: Vec<_> = own.filter(|(_, (_, at_ms))| at_ms.is_none_or(|at_ms| at_ms > now_ms)).collect();
        let expiring_ms: Vec<_> = live.iter().filter_map(|(_, (_, at_ms))| *at_ms).collect();
        let (records, expiring) = (live.len() as u64, expiring_ms.len() as u64);
        let bytes = live.iter().map(|(key, (bytes, _))| key.len() as u64 + bytes).sum();
        let mean_expiry_ms = expiring_ms.iter().sum::<u64>().checked_div(expiring).unwrap_or(0);
        let count = Answer::Count { records, bytes, expiring, mean_expiry_ms };
        for replica in [&self.steady, &self.restarting] {
            replica.assert_places();
            let expiries = &replica.machine.stats.expiries;
            assert!(self.form() != Form::Records || expiries.in_memory() <= 2 * expiries.next_max());
            assert_eq!(replica.count(now_ms), count);
            let changes = self.is_placing() || expiring_ms.iter().any(|at_ms| *at_ms <= now_ms + 3);
            assert_eq!(replica.count(now_ms + 3), if changes { Answer::ClockAdvanceNeeded } else { count.clone() });
            let Answer::Page { records, next: None } = replica.scan(now_ms) else { panic!("no page") };
            assert!(records.iter().map(|record| &record.key).eq(live.iter().map(|(key, _)| *key)));
        }
        assert_eq!(self.steady.machine.system(), self.restarting.machine.system());
        let visible = |replica: &Replica| {
            let is_kept = |key: &Bytes| range.contains(key) || KeyRange::internal().contains(key);
            let kept = replica.records.0.iter().filter(|(key, _)| is_kept(key));
            kept.map(|(key, value)| (key.clone(), value.clone())).collect::<Vec<_>>()
        };
        assert_eq!(visible(&self.steady), visible(&self.restarting));
    }
}

/// Runs a history over a shard of this range, and then lets all records with an expiry expire.
fn run(range: KeyRange, steps: &[Step], task: usize) {
    let replica = || {
        let mut replica = Replica::default();
        replica.descriptor.range = range.clone();
        replica
    };
    let mut shards = vec![Shard { steady: replica(), restarting: replica(), may_scan: false, counted: None }];
    let (mut all, mut now_ms, mut announced) = (BTreeMap::new(), 1, 0);
    for (n, step) in steps.iter().enumerate() {
        match step {
            Step::Entry(wait_ms, writes) => {
                if announced == 0 {
                    let entries: Vec<_> = steps[n..].iter().take(task).map_while(entry).collect();
                    shards.iter_mut().for_each(|shard| shard.announce(now_ms, &entries));
                    announced = entries.len();
                }
                announced -= 1;
                now_ms += wait_ms;
                shards.iter_mut().for_each(|shard| shard.apply(now_ms, writes));
                for (key, write) in writes {
                    match write {
                        Some((bytes, lives_ms)) => {
                            all.insert(key.clone(), (*bytes as u64, lives_ms.map(|ms| now_ms + ms)));
                        }
                        None => drop(all.remove(key)),
                    }
                }
            }
            Step::Split(shard, at) => {
                let shard = shard.index(shards.len());
                if let Some(right) = shards[shard].split(at) {
                    shards.push(right);
                }
            }
            Step::Merge(shard) => {
                let shard = shard.index(shards.len());
                if let Some(right) = shards.iter().position(|right| shards[shard].may_merge(right)) {
                    let right = shards.remove(right);
                    let left = shards.iter_mut().find(|left| left.may_merge(&right));
                    left.expect("it was found").merge(right);
                }
            }
            Step::Count(shard, at) => {
                let shard = shard.index(shards.len());
                shards[shard].count(at);
            }
            Step::Restart(next_max) => shards.iter_mut().for_each(|shard| shard.restarting.restart(*next_max)),
            Step::Clip => shards.iter_mut().for_each(|shard| {
                shard.steady.clip();
                shard.restarting.clip();
            }),
            Step::Switch(version) => shards.iter_mut().for_each(|shard| {
                let outcome = shard.steady.switch(now_ms, *version).unwrap();
                assert_eq!(shard.restarting.switch(now_ms, *version).unwrap(), outcome);
            }),
        }
        shards.iter().for_each(|shard| shard.check(now_ms, &all));
    }
    now_ms += 100;
    for shard in &mut shards {
        shard.steady.switch(now_ms, 10).unwrap();
        shard.restarting.switch(now_ms, 10).unwrap();
        shard.may_scan = true;
        let mut upkeeps = 0;
        while shard.steady.machine.upkeep_due_ms().is_some_and(|due_ms| due_ms <= now_ms) {
            shard.apply(now_ms, &[]);
            shard.check(now_ms, &all);
            upkeeps += 1;
            assert!(upkeeps < 60, "upkeep never ends");
        }
        assert_eq!(shard.places(), []);
        assert_eq!(shard.steady.machine.upkeep_due_ms(), None);
    }
}

fn entry(step: &Step) -> Option<(u64, Vec<Write>)> {
    match step {
        Step::Entry(wait_ms, writes) => Some((*wait_ms, writes.clone())),
        _ => None,
    }
}

proptest! {
    #[test]
    fn the_parts_of_a_shard_have_what_the_whole_had(steps in history(), is_whole: bool, task in 1..4usize) {
        let buckets = KeyRange::of_buckets(CollectionId::DEFAULT, Bucket(0), Bucket(2));
        run(if is_whole { KeyRange::all() } else { buckets }, &steps, task);
    }
}
