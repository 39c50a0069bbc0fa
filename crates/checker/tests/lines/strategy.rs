//! Operations of every kind, with bytes that are text and bytes that are not.

use bytes::Bytes;
use flotilla_checker::{Condition, Kind, Operation, Outcome, Write};
use proptest::{collection::vec, option, prelude::*, sample::select};

fn bytes() -> impl Strategy<Value = Bytes> + Clone {
    prop_oneof![
        select(vec!["", "x", "é\"\\\n\u{0}", "{\"base64\":\"\"}"]).prop_map(Bytes::from),
        vec(any::<u8>(), 0..6).prop_map(Bytes::from),
    ]
}

fn condition() -> impl Strategy<Value = Condition> {
    prop_oneof![Just(Condition::Absent), Just(Condition::Present), bytes().prop_map(Condition::Equals)]
}

fn write() -> impl Strategy<Value = Write> {
    prop_oneof![
        bytes().prop_map(Write::Put),
        Just(Write::Delete),
        any::<i64>().prop_map(Write::Add),
        bytes().prop_map(Write::Append),
    ]
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![
        bytes().prop_map(Kind::get),
        vec(bytes(), 0..4).prop_map(Kind::read),
        (bytes(), write()).prop_map(|(key, write)| Kind::Write { key, write }),
        (bytes(), condition(), option::of(bytes()))
            .prop_map(|(key, expected, new)| Kind::compare_and_set(key, expected, new)),
        (vec((bytes(), condition()), 0..3), vec((bytes(), write()), 0..3))
            .prop_map(|(conditions, writes)| Kind::Batch { conditions, writes }),
    ]
}

fn outcome(kind: &Kind) -> impl Strategy<Value = Outcome> + use<> {
    let values = if let Kind::Read { keys } = kind { keys.len() } else { 0 };
    let kind = kind.clone();
    prop_oneof![
        Just(Outcome::Unknown),
        Just(Outcome::Refused),
        Just(Outcome::ConditionFailed),
        Just(Outcome::Done),
        any::<bool>().prop_map(Outcome::Existed),
        option::of(bytes()).prop_map(Outcome::Value),
        vec(option::of(bytes()), values).prop_map(Outcome::Values),
        any::<i64>().prop_map(Outcome::Number),
    ]
    .prop_map(move |outcome| if kind.allows(&outcome) { outcome } else { Outcome::Unknown })
}

fn operation() -> impl Strategy<Value = Operation> {
    let timed = (any::<u64>(), any::<u64>(), any::<u64>(), any::<bool>());
    (kind().prop_flat_map(|kind| (outcome(&kind), Just(kind))), timed).prop_map(|((outcome, kind), timed)| {
        let (client, one, other, returns) = timed;
        let ret = (returns || outcome != Outcome::Unknown).then_some(one.max(other));
        Operation { client, call: one.min(other), ret, kind, outcome }
    })
}

/// A few operations, each valid by itself.
pub(crate) fn history() -> impl Strategy<Value = Vec<Operation>> {
    vec(operation(), 0..5)
}
