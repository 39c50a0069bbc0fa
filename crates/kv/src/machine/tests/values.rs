//! Large values and media types.

use flotilla_types::Refs;

use super::*;
use crate::{Content, Value, testing::large};

fn typed(content: Content) -> Value {
    Value { content, media_type: Bytes::from_static(b"image/png") }
}

fn put_value(name: &str, value: Value) -> Command {
    of(vec![operation(name, Action::Put { value, expiry: Expiry::Never, return_old: false })])
}

fn get(replica: &Replica, name: &str) -> Value {
    let Answer::Records(mut found) = replica.read(9, &Query::Get { keys: vec![key(name)], values: true }) else {
        panic!("no records")
    };
    found.remove(0).unwrap().value
}

#[test]
fn a_large_value_is_read_back_and_counts_as_long_as_it_is() {
    let mut replica = Replica::default();
    let value = typed(Content::Large(large(200)));
    replica.run(1, put_value("a", value.clone()));
    assert_eq!(get(&replica, "a"), value);
    let expected = key("a").len() as u64 + value.bytes();
    assert!(matches!(replica.count(2), Answer::Count { records: 1, bytes, .. } if bytes == expected));
    replica.assert_places();
    replica.run(3, put("a", "small"));
    assert_eq!(get(&replica, "a"), "small".into());
    assert!(matches!(replica.count(3), Answer::Count { bytes, .. } if bytes == key("a").len() as u64 + 5));
}

#[test]
fn a_record_keeps_its_objects_for_as_long_as_it_names_them() {
    let mut replica = Replica::default();
    let value = Value { content: Content::Large(large(9)), ..Value::default() };
    let mut writes = WriteSet::new();
    let expire = of(vec![operation("a", Action::Expire { expiry: Expiry::At(90) })]);
    let refs = value.refs();
    for (at_ms, command, named) in [(1, put_value("a", value), &refs), (2, expire, &Refs::NONE)] {
        writes.clear();
        let context = Replica::context(&replica.descriptor, at_ms, at_ms, named);
        let command = encode_command(&command);
        replica.machine.apply(&context, &[command], &replica.records, &mut writes).unwrap();
        let (_, written) = writes.iter().find(|(written, _)| *written == key("a")).unwrap();
        assert_eq!(written.as_ref().unwrap().refs(), &refs);
        replica.records.write(writes.clone());
    }
}

#[test]
fn a_value_whose_entry_does_not_name_its_objects_is_refused() {
    let mut replica = Replica::default();
    let value = Value { content: Content::Large(large(9)), ..Value::default() };
    let refs = value.refs();
    let without_one: Refs = refs.iter().skip(1).copied().collect();
    let command = encode_command(&put_value("a", value));
    for (named, outcome) in [
        (&Refs::NONE, Outcome::Refused(Refusal::UnnamedObjects)),
        (&without_one, Outcome::Refused(Refusal::UnnamedObjects)),
    ] {
        assert_eq!(replica.apply_naming(1, std::slice::from_ref(&command), &replica.records.clone(), named), [outcome]);
    }
    let outcomes = replica.apply_naming(1, &[command], &replica.records.clone(), &refs);
    assert!(matches!(outcomes[0], Outcome::Done { .. }));
}

#[test]
fn an_append_needs_the_content_and_leaves_the_media_type() {
    let mut replica = Replica::default();
    let append = |name| of(vec![operation(name, Action::Append { bytes: Bytes::from_static(b"7") })]);
    let add = |name| of(vec![operation(name, Action::Add { delta: 1 })]);
    replica.run(1, put_value("large", typed(Content::Large(large(1)))));
    assert_eq!(replica.run(1, append("large")), Outcome::Refused(Refusal::NeedsContent));
    assert_eq!(replica.run(1, add("large")), Outcome::Refused(Refusal::NotAnInteger));
    replica.run(1, put_value("small", typed(Content::Inline(Bytes::from_static(b"1")))));
    replica.run(1, append("small"));
    replica.run(1, add("small"));
    assert_eq!(get(&replica, "small"), typed(Content::Inline(Bytes::from_static(b"18"))));
}

#[test]
fn values_and_media_types_have_a_limit() {
    let limits = Limits { large_value_bytes_max: 5_000, value_bytes_max: 10, ..Limits::default() };
    let mut replica = Replica::with_limits(limits);
    let refused = |limit_bytes| Outcome::Refused(Refusal::TooLarge { limit_bytes });
    let value = Value { content: Content::Large(large(9)), ..Value::default() };
    assert_eq!(replica.run(1, put_value("a", value)), refused(5_000));
    assert_eq!(replica.run(1, put_value("a", vec![0; 11].into())), refused(10));
    assert!(matches!(replica.run(1, put_value("a", typed(Content::Large(large(1))))), Outcome::Done { .. }));
}
