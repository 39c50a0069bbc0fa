//! Tests with malformed and hostile paths, query strings and bodies.

use flotilla_api::{
    BatchRequest, CreateCollection, KEY_BYTES_MAX, NeedRequest, SCAN_ITEMS_MAX, SettingRequest, TokenRequest,
};
use flotilla_hostile::{Proportion, attack, extreme_u64, mutated};
use flotilla_types::{ObjectId, ObjectRef};
use percent_encoding::{NON_ALPHANUMERIC, percent_encode};
use proptest::{collection::vec, prelude::*, sample::select};
use serde_json::{Value, json};

use super::{
    batch, body, objects,
    raw::{Query, Target, percent_decode, segment},
    rpc::Call,
    scan::Parameters,
};

/// A JSON value takes some 30 bytes, however short its text, and lists of values grow by doubling.
const JSON: Proportion = Proportion { base: 32 << 10, per_byte: 200 };

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..24)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn hostile_paths_give_a_key_within_its_limit_or_none() {
    let valid = (bytes(), bytes()).prop_map(|(collection, key)| {
        format!("{}/{}", percent_encode(&collection, NON_ALPHANUMERIC), percent_encode(&key, NON_ALPHANUMERIC))
    });
    attack(128, bytes(), |key| {
        let path = format!("c/{}", percent_encode(&key, NON_ALPHANUMERIC));
        assert_eq!(Target::parse(&path).ok().and_then(|target| target.key), (!key.is_empty()).then_some(key.into()));
    });
    attack(1_000, mutated(valid), |path| {
        let path = text(&path);
        if let Ok(target) = Proportion::DEFAULT.of(path.len(), || Target::parse(&path)) {
            assert!(target.key.is_none_or(|key| (1..=KEY_BYTES_MAX).contains(&key.len())));
        }
        let _ = segment(&path);
        if let Ok(decoded) = percent_decode(&path) {
            assert!(decoded.len() <= path.len());
        }
    });
}

#[test]
fn hostile_queries_give_parameters_within_their_limits_or_a_refusal() {
    let names = select(&["prefix", "start", "end", "limit", "cursor", "values", "encoding", "consistency", "evil"][..]);
    let value = prop_oneof![
        3 => bytes().prop_map(|bytes| percent_encode(&bytes, NON_ALPHANUMERIC).to_string()),
        1 => extreme_u64().prop_map(|number| number.to_string()),
        1 => select(&["true", "base64", "strong", "bounded_staleness:1e999", "bounded_staleness:nan", "", "-1"][..]).prop_map(str::to_owned),
    ];
    let valid = vec((names, value), 0..6).prop_map(|parameters| {
        let parameters: Vec<_> = parameters.iter().map(|(name, value)| format!("{name}={value}")).collect();
        parameters.join("&")
    });
    attack(1_500, mutated(valid), |query| {
        let query = text(&query);
        if let Ok(parameters) = Proportion::DEFAULT.of(query.len(), || Parameters::parse(Some(&query))) {
            let scan = parameters.scan;
            assert!((1..=SCAN_ITEMS_MAX).contains(&scan.items_max));
            assert!([&scan.prefix, &scan.start, &scan.end].iter().all(|bound| bound.len() <= KEY_BYTES_MAX));
            // The smallest key after the longest one is a byte longer.
            assert!(scan.from.is_none_or(|from| from.len() <= KEY_BYTES_MAX + 1));
        }
        if let Ok(mut query) = Query::parse(Some(&query), &["limit", "values", "consistency"]) {
            let _ = (query.number::<u64>("limit"), query.flag("values"), query.consistency());
        }
    });
}

fn batches() -> impl Strategy<Value = Vec<u8>> {
    let key = || select(&["k", "", "a/b", "\u{0}", "/w=="][..]);
    let operation = (select(&["put", "delete", "add", "append", "expire", "steal"][..]), key(), extreme_u64(), 0..5_u8)
        .prop_map(|(verb, key, number, field)| {
            let mut operation = json!({ "op": verb, "key": key });
            match field {
                0 => operation["value"] = json!(number.to_string()),
                1 => operation["delta"] = json!(number),
                2 => operation["ttl_ms"] = json!(number),
                3 => operation["encoding"] = json!("base64"),
                _ => operation["if_version"] = json!(number),
            }
            operation
        });
    let condition = (key(), extreme_u64()).prop_map(|(key, version)| json!({ "key": key, "if_version": version }));
    (vec(operation, 0..4), vec(condition, 0..3)).prop_map(|(operations, conditions)| {
        json!({ "collection": "default", "operations": operations, "conditions": conditions }).to_string().into_bytes()
    })
}

#[test]
fn hostile_bodies_are_parsed_in_proportionate_memory() {
    let other = select(vec![
        json!({ "jsonrpc": "2.0", "id": 1, "method": "status", "params": {} }),
        json!([{ "jsonrpc": "2.0", "id": "x", "method": "m", "params": [1, 2, null] }]),
        json!({ "name": "c", "buckets": 16, "replicas": 3, "sharding": "hash" }),
        json!({ "uses": 1, "ttl_ms": 1000 }),
        json!({ "value": 5 }),
        json!({ "collection": "c", "upload": "00000000000000aa", "refs": [
            { "id": ObjectId::of(b"x").to_string(), "height": 2, "bytes": u64::MAX },
        ] }),
    ])
    .prop_map(|value| value.to_string().into_bytes());
    let nested = (select(&["[", "{\"a\":", "[{\"params\":"][..]), 0..50_000_usize)
        .prop_map(|(part, times)| part.repeat(times).into_bytes());
    let hostile = prop_oneof![5 => mutated(batches()), 3 => mutated(other), 1 => nested];
    attack(1_000, hostile, |bytes| {
        if let Ok((conditions, operations)) =
            JSON.of(bytes.len(), || body::parse_json::<BatchRequest>(&bytes).and_then(batch::decode))
        {
            let keys = conditions.iter().map(|(key, _)| key).chain(operations.iter().map(|operation| &operation.key));
            keys.for_each(|key| assert!((1..=KEY_BYTES_MAX).contains(&key.len())));
        }
        JSON.of(bytes.len(), || {
            if let Ok(value) = body::parse_json::<Value>(&bytes) {
                let _ = Call::parse(value);
            }
            let _ = body::parse_json::<CreateCollection>(&bytes);
            let _ = body::parse_json::<TokenRequest>(&bytes);
            let _ = body::parse_json::<SettingRequest>(&bytes);
            if let Ok(request) = body::parse_json::<NeedRequest>(&bytes)
                && let Ok(refs) = objects::refs(request.refs)
            {
                assert!(refs.iter().all(|reference| reference.height <= ObjectRef::HEIGHT_MAX));
            }
        });
    });
}
