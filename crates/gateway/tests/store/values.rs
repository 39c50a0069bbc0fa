//! Large values through the store's calls.

use flotilla_kv::{Condition, Content, OperationResult, Value};

use super::*;

/// A node at the version that has large values.
pub(super) async fn node() -> (Node, Gateway) {
    let node = Node::start_at(ClusterVersion::VALUE_REFS).await;
    node.create(SHARD, 1, "", "");
    let gateway = node.outdated();
    (node, gateway)
}

/// Bytes that no two parts have in common.
pub(super) fn content(bytes: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u8
    };
    (0..bytes).map(|_| next()).collect()
}

fn put_value(key: &str, value: Vec<u8>) -> Operation {
    let action = Action::Put { value: value.into(), expiry: Expiry::Never, return_old: true };
    Operation { key: key.to_owned().into(), condition: None, otherwise: Otherwise::Refuse, action }
}

fn append(key: &str, bytes: Vec<u8>) -> Operation {
    Operation { action: Action::Append { bytes: bytes.into() }, ..put(key) }
}

impl Gateway {
    async fn write_all(&self, operations: Vec<Operation>) -> Result<Vec<OperationResult>, StoreError> {
        self.store.write("c", Vec::new(), operations, deadline()).await.map(|written| written.results)
    }

    async fn value(&self, key: &str) -> Option<Value> {
        let keys = vec![Bytes::copy_from_slice(key.as_bytes())];
        let found = self.store.get("c", keys, true, Consistency::Strong, deadline()).await.expect("an answer");
        found.into_iter().next().flatten().map(|found| found.value)
    }

    async fn content(&self, key: &str) -> Vec<u8> {
        let value = self.value(key).await.expect("a record");
        self.store.part(&value, SHARD, 0..value.bytes(), deadline()).await.expect("its content").to_vec()
    }
}

#[tokio::test]
async fn long_values_become_objects_and_short_ones_do_not() {
    let (_node, gateway) = node().await;
    let long = content(3 << 20);
    let written = gateway.write_all(vec![put_value("long", long.clone()), put_value("short", content(4_096))]).await;
    assert_eq!(written.expect("written").len(), 2);
    assert!(matches!(gateway.value("long").await.expect("a record").content, Content::Large(_)));
    assert!(matches!(gateway.value("short").await.expect("a record").content, Content::Inline(_)));
    assert_eq!(gateway.content("long").await, long);
    let value = gateway.value("long").await.expect("a record");
    let part = gateway.store.part(&value, SHARD, 2_000_000..2_000_010, deadline()).await.expect("a part");
    assert_eq!(part, long[2_000_000..2_000_010]);
}

#[tokio::test]
async fn before_the_version_values_stay_whole_and_short() {
    let node = Node::start().await;
    node.create(SHARD, 1, "", "");
    let gateway = node.outdated();
    assert!(gateway.write_all(vec![put_value("k", content(1 << 20))]).await.is_ok());
    assert!(gateway.value("k").await.expect("a record").inline().is_some());
    let refused = gateway.write_all(vec![put_value("k", content((4 << 20) + 1))]).await;
    assert_eq!(refused, Err(StoreError::ValueTooLarge { limit_bytes: 4 << 20 }));
    assert_eq!(gateway.store.value_bytes_max(), 4 << 20);
}

#[tokio::test]
async fn a_replaced_large_value_comes_back_as_the_old_one() {
    let (_node, gateway) = node().await;
    let long = content(1 << 20);
    gateway.write_all(vec![put_value("k", long.clone())]).await.expect("written");
    let results = gateway.write_all(vec![put_value("k", b"short".to_vec())]).await.expect("written");
    let [OperationResult::Written { old: Some(old), .. }] = &results[..] else { panic!("{results:?}") };
    let old = gateway.store.part(old, SHARD, 0..old.bytes(), deadline()).await.expect("its content");
    assert_eq!(old, long);
}

#[tokio::test]
async fn appends_to_large_values_and_beyond_what_a_record_has_read_and_put_the_whole() {
    let (_node, gateway) = node().await;
    let (long, more) = (content(3 << 20), content(2 << 20));
    let lengths = async |operations| {
        let results = gateway.write_all(operations).await.expect("written");
        results
            .iter()
            .map(|result| match result {
                OperationResult::Written { number, .. } => *number,
                other => panic!("{other:?}"),
            })
            .collect::<Vec<_>>()
    };
    gateway.write_all(vec![put_value("k", long.clone())]).await.expect("written");
    assert_eq!(lengths(vec![append("k", b"!".to_vec())]).await, [(3 << 20) + 1]);
    assert_eq!(gateway.content("k").await, [&long[..], b"!"].concat());
    // Inline, until it is too long for a record.
    assert_eq!(lengths(vec![append("n", long.clone())]).await, [3 << 20]);
    assert!(gateway.value("n").await.expect("a record").inline().is_some());
    assert_eq!(lengths(vec![append("n", more.clone()), append("o", b"x".to_vec())]).await, [5 << 20, 1]);
    assert_eq!(gateway.content("n").await, [&long[..], &more].concat());
    // Longer than a record by itself.
    assert_eq!(lengths(vec![append("p", content(5 << 20))]).await, [5 << 20]);
    assert_eq!(gateway.content("p").await, content(5 << 20));
    let twice = gateway.write_all(vec![append("k", b"a".to_vec()), append("k", b"b".to_vec())]).await;
    assert_eq!(twice, Err(StoreError::LargeValue));
    let beyond = gateway.write_all(vec![append("k", content(62 << 20))]).await;
    assert_eq!(beyond, Err(StoreError::ValueTooLarge { limit_bytes: 64 << 20 }));
}

#[tokio::test]
async fn concurrent_appends_to_a_large_value_are_all_there_once() {
    let (_node, gateway) = node().await;
    gateway.write_all(vec![put_value("k", content(100_000))]).await.expect("written");
    let writes = (0..8_u8).map(|byte| gateway.write_all(vec![append("k", vec![byte])]));
    for written in futures_util::future::join_all(writes).await {
        written.expect("written");
    }
    let mut appended = gateway.content("k").await.split_off(100_000);
    appended.sort_unstable();
    assert_eq!(appended, (0..8).collect::<Vec<u8>>());
}

#[tokio::test]
async fn conditions_of_a_batch_with_appends_keep_their_numbers() {
    let (_node, gateway) = node().await;
    gateway.write_all(vec![put_value("k", content(100_000))]).await.expect("written");
    let absent = (Bytes::from_static(b"k"), Condition::Absent);
    let write = gateway.store.write("c", vec![absent.clone()], vec![append("k", b"x".to_vec())], deadline()).await;
    assert!(matches!(write, Err(StoreError::ConditionFailed { operation: 0, .. })), "{write:?}");
    let refused = Operation { condition: Some(Condition::Present), ..put("other") };
    let write = gateway.store.write("c", Vec::new(), vec![append("k", b"x".to_vec()), refused], deadline()).await;
    assert!(matches!(write, Err(StoreError::ConditionFailed { operation: 1, .. })), "{write:?}");
    assert_eq!(gateway.content("k").await.len(), 100_000);
}
