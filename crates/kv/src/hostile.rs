//! Hostile bytes: commands, queries, records and checkpoints that no gateway and no machine wrote.

use bytes::Bytes;
use flotilla_hostile::{Proportion, attack, extreme_u64, mutated};
use flotilla_storage::{MachineError, StateMachine, WriteSet};
use flotilla_types::{ClusterVersion, KeyRange, Refs, SessionId, Timestamp};
use proptest::{collection::vec, option, prelude::*};

use crate::{
    Answer, FORMAT_VERSION, KvMachine, Limits, Outcome, Query, Record, decode_answer, decode_command, decode_outcome,
    decode_query, encode_answer, encode_command, encode_outcome, encode_query,
    expiries::{Form, Owned, Stored, Unplaced},
    parse_integer,
    place::Place,
    record::StoredRecord,
    session::Sessions,
    system::System,
    testing::{self, Replica},
};

/// Memory per input byte: an empty operation takes two bytes encoded and two hundred decoded.
const MESSAGES: Proportion = Proportion { base: 16 << 10, per_byte: 320 };

fn bytes() -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..20).prop_map(Bytes::from)
}

fn query() -> impl Strategy<Value = Query> {
    let range = || (bytes(), bytes()).prop_map(|(start, end)| KeyRange { start, end });
    let limit = || extreme_u64().prop_map(|limit| limit as u32);
    prop_oneof![
        (vec(bytes(), 0..4), any::<bool>()).prop_map(|(keys, values)| Query::Get { keys, values }),
        (range(), limit(), limit(), any::<bool>()).prop_map(|(range, items_max, bytes_max, values)| Query::Scan {
            range,
            items_max,
            bytes_max,
            values
        }),
        range().prop_map(|range| Query::Count { range }),
    ]
}

fn answer() -> impl Strategy<Value = Answer> {
    let record = || {
        (bytes(), testing::value(), extreme_u64(), option::of(extreme_u64()), extreme_u64()).prop_map(
            |(key, value, version, expires_at_ms, value_bytes)| Record {
                key,
                value,
                version: Timestamp(version),
                expires_at_ms,
                value_bytes,
            },
        )
    };
    prop_oneof![
        vec(option::of(record()), 0..4).prop_map(Answer::Records),
        (vec(record(), 0..4), option::of(bytes())).prop_map(|(records, next)| Answer::Page { records, next }),
        (extreme_u64(), extreme_u64(), extreme_u64(), extreme_u64()).prop_map(
            |(records, bytes, expiring, mean_expiry_ms)| Answer::Count { records, bytes, expiring, mean_expiry_ms }
        ),
        Just(Answer::ClockAdvanceNeeded),
    ]
}

/// Outcomes of a machine.
fn outcomes() -> impl Strategy<Value = Vec<Bytes>> {
    vec(testing::command(), 1..4).prop_map(|commands| {
        let mut replica = Replica::default();
        replica.apply(7, &commands).iter().map(encode_outcome).collect()
    })
}

#[test]
fn hostile_messages_decode_within_proportional_memory() {
    let outcome = outcomes().prop_map(|outcomes| outcomes[0].clone());
    let valid = prop_oneof![
        testing::command().prop_map(|command| encode_command(&command)),
        query().prop_map(|query| encode_query(&query)),
        answer().prop_map(|answer| encode_answer(&answer)),
        outcome,
    ];
    attack(1_500, mutated(valid), |bytes| {
        let bytes = Bytes::from(bytes);
        MESSAGES.of(bytes.len(), || {
            let _ =
                decode_command(bytes.clone()).map(|read| assert_eq!(decode_command(encode_command(&read)), Ok(read)));
            let _ = decode_query(bytes.clone()).map(|read| assert_eq!(decode_query(encode_query(&read)), Ok(read)));
            let _ = decode_answer(bytes.clone()).map(|read| assert_eq!(decode_answer(encode_answer(&read)), Ok(read)));
            let _ =
                decode_outcome(bytes.clone()).map(|read| assert_eq!(decode_outcome(encode_outcome(&read)), Ok(read)));
        });
    });
    attack(128, (query(), answer()), |(query, answer)| {
        assert_eq!(decode_query(encode_query(&query)), Ok(query));
        assert_eq!(decode_answer(encode_answer(&answer)), Ok(answer));
    });
}

#[test]
fn the_machine_handles_hostile_commands_and_queries() {
    let command = prop_oneof![
        1 => testing::command().prop_map(|command| encode_command(&command).to_vec()),
        3 => mutated(testing::command().prop_map(|command| encode_command(&command))),
    ];
    let time = prop_oneof![3 => 0..60_u64, 1 => Just((Timestamp::MAX.0 >> Timestamp::COUNTER_BITS) - 1)];
    let entries = vec((time, vec(command, 0..4)), 1..8);
    attack(300, (entries, mutated(query().prop_map(|query| encode_query(&query)))), |(entries, query)| {
        let mut replica = Replica::default();
        for (index, (at_ms, commands)) in (1..).zip(entries) {
            let commands: Vec<_> = commands.into_iter().map(Bytes::from).collect();
            let context = Replica::context(&replica.descriptor, index, at_ms, &Refs::NONE);
            let mut writes = WriteSet::new();
            match replica.machine.apply(&context, &commands, &replica.records, &mut writes) {
                Ok(outcomes) => {
                    assert_eq!(outcomes.len(), commands.len());
                    let read: Result<Vec<Outcome>, _> = outcomes.into_iter().map(decode_outcome).collect();
                    read.expect("outcomes decode");
                    replica.records.write(writes);
                }
                // A newer binary wrote the command, so this one must stop.
                Err(MachineError::Version { .. }) => return,
                Err(error) => panic!("{error}"),
            }
        }
        match replica.machine.read(&replica.read_context(60), &query, &replica.records) {
            Ok(answer) => drop(decode_answer(answer).expect("answers decode")),
            Err(error) => assert!(matches!(error, MachineError::Version { .. }), "{error}"),
        }
        // The resulting state can be stored and restored.
        let system = replica.machine.system();
        let mut restored = KvMachine::new(Limits::default());
        restored.restore(&system, &replica.records).expect("the state restores");
        assert_eq!(restored.system(), system);
    });
}

#[test]
fn hostile_system_states_are_refused_or_round_trip() {
    let remembered = vec((0..4_u64, 1..9_u64, 0..60_u64, vec(any::<u8>(), 0..80)), 0..8);
    let valid = (extreme_u64(), extreme_u64(), remembered).prop_map(|(clock, number, remembered)| {
        let mut sessions = Sessions::default();
        for (session, sequence, expires_at_ms, outcome) in remembered {
            sessions.remember(SessionId(session), sequence, 0, expires_at_ms, &Bytes::from(outcome));
        }
        let version = ClusterVersion(1 + (number % 10) as u32);
        let to = Place::new(clock, Bytes::copy_from_slice(&number.to_be_bytes()));
        let form = match (version >= ClusterVersion::EXPIRY_RECORDS, clock % 2) {
            (false, _) => Form::Memory,
            (true, 0) => Form::Converting(to),
            (true, _) => Form::Records,
        };
        let part = KeyRange { start: Bytes::copy_from_slice(&number.to_be_bytes()), end: KeyRange::of_users().end };
        let foreign = if form == Form::Memory { 0 } else { clock };
        let may_lack_places = form == Form::Records && version >= ClusterVersion::MERGES && number > 0;
        let unplaced = may_lack_places.then(|| Unplaced { from: part.start.clone(), count: 1 + clock % number });
        let owned = (number % 3 > 0).then_some(Owned { keys: part, foreign, unplaced });
        let expiries = Stored { form, count: number, sum_ms: u128::from(clock), none_before_ms: clock, owned };
        System { version, clock: Timestamp(clock), records: number, bytes: number, expiries }.encode(&sessions)
    });
    attack(500, mutated(valid), |bytes| {
        if let Ok((system, mut sessions)) = MESSAGES.of(bytes.len(), || System::decode(&bytes)) {
            let encoded = system.encode(&sessions);
            assert!(
                System::decode(&encoded).is_ok() && (bytes.is_empty() || (FORMAT_VERSION..=2).contains(&encoded[0]))
            );
            sessions.expire(u64::MAX);
        }
        let mut machine = KvMachine::new(Limits::default());
        if machine.restore(&bytes, &testing::Records::default()).is_ok() {
            let _ = machine.system();
            let descriptor = Replica::default().descriptor;
            let context = Replica::context(&descriptor, 1, 60, &Refs::NONE);
            let put = [encode_command(&testing::put_expiring("k", "v", 70))];
            let _ = machine.apply(&context, &put, &testing::Records::default(), &mut WriteSet::new());
        }
    });
}

#[test]
fn hostile_places_are_refused_or_move_the_machine_on() {
    let valid = vec((0..80_u64, "[a-d]{1,3}", extreme_u64()), 0..6).prop_map(|places| {
        let record = |(at_ms, name, bytes): (u64, String, u64)| {
            (Place::new(at_ms, testing::key(&name)).stored_key(), bytes.to_be_bytes().to_vec())
        };
        places.into_iter().map(record).collect::<Vec<_>>()
    });
    let valid = (valid, vec(mutated(Just(b"12345678".to_vec())), 0..3), extreme_u64(), option::of(extreme_u64()));
    attack(300, valid, |(places, values, count, foreign)| {
        let mut replica = Replica::default();
        let mut records: Vec<_> = places.into_iter().map(|(key, value)| (key, Bytes::from(value))).collect();
        for ((_, value), other) in records.iter_mut().zip(values) {
            *value = other.into();
        }
        replica.records.0.extend(records);
        let part = KeyRange { start: testing::key("b"), end: testing::key("c") };
        let unplaced = (count % 2 == 1).then(|| Unplaced { from: part.start.clone(), count });
        let owned = foreign.map(|foreign| Owned { keys: part, foreign, unplaced });
        let expiries = Stored { form: Form::Records, count, sum_ms: u128::from(count), none_before_ms: 0, owned };
        let version = ClusterVersion::MERGES;
        let system = System { version, clock: Timestamp::ZERO, records: count, bytes: count, expiries };
        replica.machine.restore(&system.encode(&Sessions::default()), &replica.records).expect("it reads no record");
        let context = Replica::context(&replica.descriptor, 1, 60, &Refs::NONE);
        let query = encode_query(&crate::Query::Count { range: replica.descriptor.range.clone() });
        let _ = replica.machine.read(&replica.read_context(60), &query, &replica.records);
        let applied = replica.machine.apply(&context, &[], &replica.records, &mut WriteSet::new());
        assert!(matches!(applied, Ok(_) | Err(MachineError::Corrupt(_))));
    });
}

#[test]
fn hostile_records_decode_within_proportional_memory() {
    let valid =
        (any::<u64>(), option::of(any::<u64>()), testing::value()).prop_map(|(version, expires_at_ms, value)| {
            StoredRecord { version: Timestamp(version), expires_at_ms, value }.encode()
        });
    attack(300, mutated(valid), |bytes| {
        let bytes = Bytes::from(bytes);
        if let Ok(record) = Proportion::DEFAULT.of(bytes.len(), || StoredRecord::decode(bytes.clone())) {
            assert_eq!(record.encode(), bytes);
        }
    });
}

#[test]
fn hostile_integers_are_refused_or_round_trip() {
    attack(500, mutated(any::<i64>().prop_map(|number| number.to_string())), |text| {
        if let Some(number) = parse_integer(&text) {
            assert_eq!(number.to_string().as_bytes(), text);
        }
    });
}
