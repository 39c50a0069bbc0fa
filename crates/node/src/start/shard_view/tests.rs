//! Tests of the view of shards: metadata built by commands, replicas as a host reports them.

use std::{cell::Cell, collections::BTreeSet};

use flotilla_meta::{MetaCommand, Setting};
use flotilla_types::{Bucket, CollectionId, ConfState, Epoch, ReplicaDescriptor};

use super::{super::health::Totals, *};
use crate::start::testing::{Metadata, replica};

/// The data shards as node `me` sees them, while these nodes are down.
fn view(me: u64, meta: &MetaState, here: &[ReplicaStatus], hint: Option<u64>, down: &[u64]) -> Vec<ShardInfo> {
    let liveness = |node: NodeId| if down.contains(&node.0) { MemberState::Down } else { MemberState::Alive };
    let mut shards =
        ShardView::new(NodeId(me), meta, &here.iter().cloned().collect(), liveness).shards(|_| hint.map(NodeId));
    shards.retain(|shard| shard.id != ShardId::META);
    shards
}

fn facts(shards: &[ShardInfo]) -> (u32, u32, u32) {
    let Totals { available, replicated, failures_survivable, .. } = Totals::of(shards);
    (available, replicated, failures_survivable)
}

#[test]
fn a_node_that_was_removed_by_force_stays_a_missing_voter() {
    let mut metadata = Metadata::of_nodes(3);
    let shards = metadata.collections(&vec![vec![1, 2, 3]; 4]);
    let replicas = |metadata: &Metadata| {
        let meta = metadata.state();
        shards.iter().map(|shard| replica(&meta, *shard, 1, Some(1))).collect::<Vec<_>>()
    };
    let here = replicas(&metadata);
    assert_eq!(facts(&view(1, &metadata.state(), &here, None, &[])), (4, 4, 1));
    metadata.apply(&MetaCommand::RemoveNode { node: NodeId(3) });
    // Membership still has it as alive: late gossip about it is ignored.
    let here = replicas(&metadata);
    assert_eq!(facts(&view(1, &metadata.state(), &here, None, &[])), (4, 0, 0), "as a voter sees it");
    assert_eq!(facts(&view(4, &metadata.state(), &[], Some(2), &[])), (4, 0, 0), "by hints");
    assert_eq!(facts(&view(4, &metadata.state(), &[], Some(2), &[1])), (0, 0, 0), "two of three are gone");
    assert_eq!(facts(&view(4, &metadata.state(), &[], Some(3), &[])), (0, 0, 0), "a removed node leads nothing");
}

#[test]
fn with_one_of_many_nodes_down_every_shard_is_available_and_only_those_on_it_lack_a_replica() {
    const SHARDS: usize = 1_031;
    let mut metadata = Metadata::of_nodes(5);
    let sets: Vec<Vec<u64>> = (0..SHARDS as u64).map(|i| (0..3).map(|k| (i + k) % 5 + 1).collect()).collect();
    metadata.collections(&sets);
    let meta = metadata.state();
    let (asked, hinted) = (Cell::new(0), Cell::new(0));
    let liveness = |node| {
        asked.set(asked.get() + 1);
        if node == NodeId(4) { MemberState::Down } else { MemberState::Alive }
    };
    let leader = |shard: ShardId| {
        hinted.set(hinted.get() + 1);
        let voters = &meta.shard(shard).expect("a shard").descriptor.replicas;
        voters.iter().map(|voter| voter.node).find(|node| *node != NodeId(4))
    };
    let mut shards = ShardView::new(NodeId(6), &meta, &Replicas::default(), liveness).shards(leader);
    shards.retain(|shard| shard.id != ShardId::META);
    let on_it = |shard: &ShardInfo| shard.replicas.iter().any(|replica| replica.node == NodeId(4));
    assert_eq!(shards.len(), SHARDS);
    for shard in &shards {
        assert!(shard.available, "{shard:?}");
        assert_eq!(shard.fully_replicated, !on_it(shard), "{shard:?}");
        assert_eq!(shard.failures_survivable, u32::from(!on_it(shard)), "{shard:?}");
    }
    assert!(shards.iter().any(on_it) && !shards.iter().all(on_it));
    assert_eq!(Totals::of(&shards).available, SHARDS as u32);
    assert_eq!((asked.get(), hinted.get()), (5, SHARDS + 1), "once per node and once per shard");
}

#[test]
fn a_node_counts_its_own_replica_only_while_it_takes_part() {
    let mut metadata = Metadata::of_nodes(3);
    let shard = metadata.collections(&[vec![1, 2, 3]])[0];
    let meta = metadata.state();
    let mut own = replica(&meta, shard, 1, Some(2));
    assert_eq!(facts(&view(1, &meta, &[own.clone()], None, &[])), (1, 1, 1));
    assert_eq!(facts(&view(1, &meta, &[], Some(2), &[])), (1, 0, 0), "it has none");
    own.group = None;
    assert_eq!(facts(&view(1, &meta, &[own], Some(2), &[])), (1, 0, 0), "it is unverified");
}

#[test]
fn a_replica_that_its_node_replaces_is_missing() {
    let mut metadata = Metadata::of_nodes(3);
    let shard = metadata.collections(&[vec![1, 2, 3]])[0];
    let meta = metadata.state();
    let mut own = replica(&meta, shard, 1, Some(1));
    own.descriptor.epoch = Epoch { range: 1, config: 2 };
    let newer = ReplicaDescriptor { replica: ReplicaId(900), node: NodeId(3), role: ReplicaRole::Learner };
    own.descriptor.replicas.push(newer);
    assert_eq!(facts(&view(1, &meta, &[own], None, &[])), (1, 0, 0));
}

#[test]
fn a_joint_configuration_needs_both_halves() {
    let mut metadata = Metadata::of_nodes(5);
    let shard = metadata.collections(&[vec![1, 2, 3]])[0];
    let meta = metadata.state();
    let mut own = replica(&meta, shard, 1, Some(1));
    own.descriptor.epoch = Epoch { range: 1, config: 2 };
    let mut conf = ConfState::of_voters([own.replica]);
    for (id, node) in [(900, 4), (901, 5)] {
        let joining = ReplicaDescriptor { replica: ReplicaId(id), node: NodeId(node), role: ReplicaRole::Voter };
        own.descriptor.replicas.push(joining);
        conf.voters.push(joining.replica);
    }
    let group = own.group.as_mut().expect("a group");
    conf.voters_outgoing.clone_from(&group.conf.voters);
    group.conf = conf;
    assert_eq!(facts(&view(1, &meta, &[own.clone()], None, &[])), (1, 1, 1));
    assert_eq!(facts(&view(1, &meta, &[own.clone()], None, &[2])), (1, 0, 0), "in the outgoing half");
    assert_eq!(facts(&view(1, &meta, &[own], None, &[4])), (1, 0, 0), "in the incoming half");
}

#[test]
fn a_voter_trusts_its_own_group_and_nobody_else_an_old_report() {
    let mut metadata = Metadata::of_nodes(3);
    let shard = metadata.collections(&[vec![1, 2, 3]])[0];
    let meta = metadata.state();
    let without = replica(&meta, shard, 1, None);
    let shards = view(1, &meta, &[without], Some(2), &[]);
    assert_eq!((shards[0].leader, shards[0].available), (None, false), "it hears from no leader");
    assert_eq!(facts(&view(4, &meta, &[], Some(2), &[1, 3])), (0, 0, 0), "the leader lost its quorum since");
    // A learner never forgets its leader, so that it must not count as evidence.
    let mut learner = replica(&meta, shard, 1, Some(2));
    let group = learner.group.as_mut().expect("a group");
    group.conf.voters.retain(|voter| *voter != learner.replica);
    group.conf.learners.push(learner.replica);
    let shards = view(1, &meta, &[learner], None, &[]);
    assert_eq!((shards[0].leader, shards[0].available), (None, false));
}

#[test]
fn the_metadata_group_wants_as_many_replicas_as_the_setting_says() {
    let mut metadata = Metadata::of_nodes(3);
    let shard = |metadata: &Metadata| {
        let meta = metadata.state();
        let own = replica(&meta, ShardId::META, 1, Some(1));
        ShardView::new(NodeId(1), &meta, &[own].into_iter().collect(), |_| MemberState::Alive)
            .shards(|_| None)
            .remove(0)
    };
    let before = shard(&metadata);
    assert_eq!((before.desired_replicas, before.available, before.fully_replicated), (3, true, false));
    let (key, value) = (Setting::MetaReplicas.key().to_owned(), "1".to_owned());
    metadata.apply(&MetaCommand::PutSetting { key, value });
    let after = shard(&metadata);
    assert_eq!((after.desired_replicas, after.fully_replicated, after.failures_survivable), (1, true, 0));
}

#[test]
fn loads_count_each_node_of_a_shard_once() {
    let mut metadata = Metadata::of_nodes(3);
    metadata.collections(&[vec![1, 2, 3], vec![1]]);
    let meta = metadata.state();
    let shards = view(1, &meta, &[], Some(2), &[]);
    let loads = super::super::health::loads(&shards);
    assert_eq!(loads[&NodeId(1)], (2, 0));
    assert_eq!(loads[&NodeId(2)], (1, 2));
    assert_eq!(shards.iter().map(|shard| shard.id).collect::<BTreeSet<_>>().len(), 2);
}

#[test]
fn the_keys_of_a_shard_are_named_by_buckets_where_it_has_whole_ones() {
    let of = |sharding, buckets, start: (u16, &[u8]), end: (u16, &[u8])| {
        let (objects_from, chunking) = (Collection::OBJECTS_FROM_DEFAULT, Default::default());
        let split_bytes = Collection::SPLIT_BYTES_DEFAULT;
        let (id, name) = (CollectionId(7), "c".to_owned());
        let collection = Collection { id, name, sharding, buckets, replicas: 3, objects_from, chunking, split_bytes };
        let key = |(bucket, key): (u16, &[u8])| RecordKey::new(id, Bucket(bucket), key).into_bytes();
        range_of(&KeyRange { start: key(start), end: key(end) }, Some(&collection))
    };
    let hash = |start, end| of(Sharding::Hash, 8, start, end);
    assert_eq!(hash((0, b""), (4, b"")), "buckets 0–3");
    assert_eq!(hash((4, b""), (5, b"")), "bucket 4");
    assert_eq!(hash((4, b""), (4, b"m")), "from bucket 4 to before \"m\" of bucket 4");
    assert_eq!(hash((4, b"m"), (8, b"")), "from \"m\" of bucket 4 to before bucket 8");
    let range = |start, end| of(Sharding::Range, 1, start, end);
    assert_eq!(range((0, b""), (1, b"")), "all keys");
    assert_eq!(range((0, b""), (0, b"m")), "keys before \"m\"");
    assert_eq!(range((0, b"\x1b\xff"), (1, b"")), "keys from \"\\x1b\\xff\"");
    let long = [b'k'; KEY_BYTES_SHOWN_MAX + 1];
    let first = "k".repeat(KEY_BYTES_SHOWN_MAX);
    assert_eq!(range((0, b"a"), (0, &long)), format!("keys from \"a\" to before \"{first}…\""));
    assert_eq!(range((0, b"a"), (0, &long[1..])), format!("keys from \"a\" to before \"{first}\""));
    assert_eq!(range_of(&KeyRange::all(), None), "metadata");
}
