//! What changes a shard, as operators see it.

use flotilla_api::{NodeVerb, OperationInfo, OperationList, ProblemType};
use flotilla_client::PutOptions;
use flotilla_types::{NodeId, OperationKind, OperationPhase};

use flotilla_tests::support::{client, eventually, start, status, wait_replicated};

fn find(
    list: &OperationList,
    kind: OperationKind,
    phase: OperationPhase,
    node: NodeId,
) -> Result<OperationInfo, String> {
    let mut operations = list.operations.iter();
    let found = operations.find(|found| (found.kind, found.phase, found.node) == (kind, phase, Some(node)));
    found.cloned().ok_or_else(|| format!("no {kind} {phase} at {node} in {list:?}"))
}

#[tokio::test]
async fn what_changes_a_shard_is_shown_by_every_node_until_it_is_done() {
    let mut cluster = start(3).await;
    for key in 0..64_u8 {
        client(&cluster, 1).put("default", &[key], "value".into(), &PutOptions::default()).await.expect("a put");
    }
    // No node sends a snapshot for now.
    for i in 1..=3 {
        cluster.set_failpoints(i, "snapshot::serve=pause").expect("settings");
    }
    cluster.add_node().await.expect("a fourth node");
    cluster.wait_node(4).await.expect("a node that serves");
    let (first, fourth) = (status(&cluster, 1).await.node, status(&cluster, 4).await.node);
    client(&cluster, 2).change_node(first, NodeVerb::Decommission, false, false).await.expect("a decommission");

    for i in [2, 4] {
        let added = eventually("node n4 waits for a snapshot", async || {
            let list = client(&cluster, i).operations().await.map_err(|error| error.to_string())?;
            let received = find(&list, OperationKind::ReceiveSnapshot, OperationPhase::Fetching, fourth)?;
            let added = find(&list, OperationKind::AddReplica, OperationPhase::ReceivingSnapshot, fourth)?;
            find(&list, OperationKind::RemoveReplica, OperationPhase::Waiting, first)?;
            if !list.silent.is_empty() {
                return Err(format!("{:?} did not report", list.silent));
            }
            assert_eq!(received.reported_by, fourth);
            let (objects, total) = (received.progress.objects, received.progress.objects_total);
            assert!(objects < total, "no object was sent: {objects:?} of {total:?}");
            assert_ne!(added.reported_by, fourth, "the leader reports it");
            assert_eq!(added.reason, format!("{first} is decommissioned"));
            assert!(added.since_ms > 0 && added.progress.lag.is_some(), "{added:?}");
            Ok(added)
        })
        .await;
        let shards = client(&cluster, i).shards().await.expect("shards");
        let shard = shards.iter().find(|shard| shard.id == added.shard).expect("the shard");
        assert!(shard.operations.iter().any(|found| found.id == added.id), "{shard:?}");
        let shown = client(&cluster, i).operation(&added.id).await.expect("an operation");
        assert_eq!((shown.id, shown.since_ms), (added.id, added.since_ms), "the phase began once");
    }
    // Each node's own part is also in its status.
    let shards = status(&cluster, 4).await.shards;
    let mut own = shards.iter().flat_map(|shard| &shard.operations);
    let received = own.find(|found| found.kind == OperationKind::ReceiveSnapshot).expect("a snapshot").clone();

    for i in 1..=3 {
        cluster.clear_failpoints(i).expect("settings");
    }
    wait_replicated(&cluster, &[2, 3, 4]).await;
    eventually("nothing changes", async || {
        let list = client(&cluster, 3).operations().await.map_err(|error| error.to_string())?;
        if list == OperationList::default() { Ok(()) } else { Err(format!("{list:?}")) }
    })
    .await;
    let gone = client(&cluster, 3).operation(&received.id).await.expect_err("it is done");
    assert_eq!(gone.problem().map(|problem| problem.kind), Some(ProblemType::NotFound), "{gone}");
}
