//! The verification of workloads itself: it must detect wrong data.

use flotilla_client::PutOptions;

use flotilla_tests::support::{Workload, client, start};

#[tokio::test]
async fn lost_duplicated_and_changed_writes_are_detected() {
    let cluster = start(1).await;
    let client = client(&cluster, 1);
    let history = Workload::start_warm(&cluster).await.finish().await;
    history.verify(&client).await;

    client.add("default", b"counter/7", 1).await.expect("a sum");
    assert_eq!(history.wrong(&client).await.len(), 1, "duplicated");
    client.add("default", b"counter/7", -2).await.expect("a sum");
    assert_eq!(history.wrong(&client).await.len(), 1, "lost");
    client.add("default", b"counter/7", 1).await.expect("a sum");
    history.verify(&client).await;

    // The first put of the first writer, which every load has.
    let key = b"put/0/1";
    client.put("default", key, "something else".into(), &PutOptions::default()).await.expect("a put");
    assert!(!history.wrong(&client).await.is_empty(), "changed");
    client.delete("default", key, None).await.expect("a deletion").expect("a record");
    assert!(!history.wrong(&client).await.is_empty(), "deleted");
    client.put("default", b"put/0/0", "x".into(), &PutOptions::default()).await.expect("a put");
    assert!(history.wrong(&client).await.iter().any(|wrong| wrong.contains("was never put")), "a record without a put");
}
