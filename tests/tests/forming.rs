//! A cluster forms, and every node serves all keys.

use bytes::Bytes;
use flotilla_api::{BatchOperation, BatchRequest, BatchVerb, Liveness, ProblemType};
use flotilla_client::{PutOptions, ScanOptions};

use flotilla_tests::support::{Mode, client, eventually, led_shards, start_in, status, wait_liveness, wait_replicated};

in_both_modes!(a_cluster_forms_and_serves_from_every_node);

async fn a_cluster_forms_and_serves_from_every_node(mode: Mode) {
    let cluster = start_in(mode, 3).await;
    wait_replicated(&cluster, &[1, 2, 3]).await;
    for i in 1..=3 {
        let id = status(&cluster, i).await.node;
        for j in 1..=3 {
            wait_liveness(&cluster, j, id, Liveness::Alive).await;
        }
        eventually("every node leads shards", async || {
            let status = status(&cluster, i).await;
            if led_shards(&status, id) > 0 { Ok(()) } else { Err(format!("{id} leads none")) }
        })
        .await;
    }
    let collections = client(&cluster, 2).collections().await.expect("collections");
    let default = collections.iter().find(|collection| collection.name == "default").expect("the default collection");
    assert_eq!((default.buckets, default.replicas), (16, 3));

    for writer in 1..=3_usize {
        for number in 0..20 {
            let key = format!("{writer}/{number}");
            let value = Bytes::from(format!("value of {key}"));
            client(&cluster, writer)
                .put("default", key.as_bytes(), value, &PutOptions::default())
                .await
                .expect("a put");
        }
    }
    for reader in 1..=3 {
        let client = client(&cluster, reader);
        for writer in 1..=3 {
            for number in 0..20 {
                let key = format!("{writer}/{number}");
                let found = client.get("default", key.as_bytes()).await.expect("a read").expect("a record");
                assert_eq!(found.value, format!("value of {key}"), "through node {reader}");
            }
            let prefix = Bytes::from(format!("{writer}/"));
            let options = ScanOptions { prefix, ..ScanOptions::default() };
            let page = client.scan("default", &options).await.expect("a scan");
            assert_eq!((page.records.len(), page.cursor), (20, None));
            assert!(page.records.is_sorted_by(|a, b| a.key < b.key));
        }
    }
}

in_both_modes!(conditions_hold_and_a_batch_is_atomic_through_any_node);

async fn conditions_hold_and_a_batch_is_atomic_through_any_node(mode: Mode) {
    let cluster = start_in(mode, 3).await;
    let [a, b, c] = [1, 2, 3].map(|i| client(&cluster, i));
    let absent = PutOptions { if_absent: true, ..PutOptions::default() };
    let first = a.put("default", b"k", "1".into(), &absent).await.expect("the key is absent");
    let refused = b.put("default", b"k", "2".into(), &absent).await.expect_err("the key exists");
    assert_eq!(refused.problem().map(|problem| problem.kind), Some(ProblemType::ConditionFailed));
    let same = PutOptions { if_version: Some(first.version), ..PutOptions::default() };
    let second = c.put("default", b"k", "2".into(), &same).await.expect("the version is right");
    assert!(second.version > first.version);
    assert!(a.put("default", b"k", "3".into(), &same).await.is_err(), "the version is old");

    let operation = |op, key: &str, value: Option<&str>, delta| BatchOperation {
        op,
        key: key.to_owned(),
        value: value.map(str::to_owned),
        delta,
        ..BatchOperation::default()
    };
    let batch = |operations| BatchRequest { collection: "default".to_owned(), conditions: Vec::new(), operations };
    let both = [operation(BatchVerb::Put, "{t}a", Some("x"), None), operation(BatchVerb::Add, "{t}n", None, Some(5))];
    b.batch(&batch(both.to_vec())).await.expect("one shard");
    assert_eq!(c.add("default", b"{t}n", 2).await.expect("a sum"), 7);
    // The second operation fails, so the first one must have no effect.
    let bad = [operation(BatchVerb::Put, "{t}a", Some("y"), None), operation(BatchVerb::Add, "{t}a", None, Some(1))];
    let refused = a.batch(&batch(bad.to_vec())).await.expect_err("`x` is not a number");
    assert_eq!(refused.problem().map(|problem| problem.kind), Some(ProblemType::NotAnInteger));
    assert_eq!(c.get("default", b"{t}a").await.expect("a read").expect("a record").value, "x");

    assert!(b.delete("default", b"k", None).await.expect("a deletion").is_some());
    for client in [&a, &b, &c] {
        assert_eq!(client.get("default", b"k").await.expect("a read"), None);
    }
}
