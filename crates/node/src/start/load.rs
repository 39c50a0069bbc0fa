//! The work of shards, for operators: reports of all nodes as one list, and what would balance it.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use flotilla_api::{LoadAction, LoadStep, NodeLoad, ShardLoad, ShardOrder, ShardTop};
use flotilla_control::ShardRates;
use flotilla_meta::{Liveness, MetaState, ShardRecord};
use flotilla_placement::{LoadLimits, LoadRest, LoadShard, plan_by_load};
use flotilla_types::{NodeId, ReplicaRole, ShardId};

use super::operations::busy_with;

/// Steps that are shown.
const STEPS_MAX: LoadLimits = LoadLimits { transfers_max: 16, moves_max: 8 };
/// The work of a follower, in thousandths of what commands are at the leader: it writes and applies, and answers
/// nobody.
const FOLLOWER_MILLI: u64 = 500;

/// The shards that are the most work, at most `limit`; a node without a report is listed as silent.
pub(super) fn top(
    reports: Vec<(NodeId, Option<flotilla_control::NodeLoad>)>,
    order: ShardOrder,
    limit: usize,
    meta: &MetaState,
    liveness: impl Fn(NodeId) -> Liveness,
) -> ShardTop {
    let mut top = ShardTop::default();
    let mut shards: Vec<(NodeId, ShardId, ShardRates)> = Vec::new();
    for (node, report) in reports {
        let Some(report) = report else {
            top.silent.push(node);
            continue;
        };
        let cpu = report.used_milli.map(|milli| f64::from(milli) / 1e3);
        top.nodes.push(NodeLoad { node, cpu, shards: report.shards.len() });
        shards.extend(report.shards.into_iter().map(|(shard, rates)| (node, shard, rates)));
    }
    (top.steps, top.rest) = steps(&shards, &top.silent, meta, liveness);
    let amount = |rates: &ShardRates| match order {
        ShardOrder::Cpu => rates.cpu_us,
        ShardOrder::Reads => rates.reads_milli,
        ShardOrder::Writes => rates.commands_milli,
        ShardOrder::Bytes => rates.bytes,
    };
    shards.sort_by_key(|(node, shard, rates)| (Reverse(amount(rates)), *shard, *node));
    shards.truncate(limit);
    top.shards = shards.into_iter().map(|(leader, shard, rates)| described(leader, shard, rates, meta)).collect();
    top
}

/// What would balance the work of the nodes, and why not more.
fn steps(
    measured: &[(NodeId, ShardId, ShardRates)],
    silent: &[NodeId],
    meta: &MetaState,
    liveness: impl Fn(NodeId) -> Liveness,
) -> (Vec<LoadStep>, String) {
    let of = |(leader, shard, rates): &(NodeId, ShardId, ShardRates)| {
        let record = meta.shard(*shard)?;
        let load = flotilla_placement::ShardLoad {
            lead_us: rates.cpu_minute_us,
            follow_us: rates.write_minute_us * FOLLOWER_MILLI / 1_000,
        };
        let is_free = is_settled(record) && busy_with(meta, *shard).is_none();
        Some(LoadShard { shard: meta.plan_shard(record), leader: *leader, load, is_free })
    };
    let shards: Vec<_> = measured.iter().filter_map(of).collect();
    let mut moving: BTreeMap<NodeId, usize> = BTreeMap::new();
    for (from, to) in meta.running().filter_map(flotilla_meta::OperationRecord::moved) {
        for node in [from.node, to.node] {
            *moving.entry(node).or_default() += 1;
        }
    }
    let silent: BTreeSet<_> = silent.iter().copied().collect();
    let (steps, rest) = plan_by_load(&meta.plan_nodes(liveness), &shards, &silent, &moving, STEPS_MAX);
    let shown = steps.into_iter().map(|step| LoadStep {
        action: if step.replica.is_some() { LoadAction::Move } else { LoadAction::Transfer },
        shard: step.shard,
        from: step.from,
        to: step.to,
        gain: step.gain_us as f64 / 1e6,
    });
    (shown.collect(), rest_words(rest))
}

/// Whether the shard has the replicas that it is to have, and all vote.
fn is_settled(record: &ShardRecord) -> bool {
    let found = &record.descriptor.replicas;
    found.len() == record.intent.len()
        && found.iter().all(|held| held.role == ReplicaRole::Voter)
        && record.intent.iter().all(|held| record.descriptor.node_of(held.replica) == Some(held.node))
}

fn rest_words(rest: LoadRest) -> String {
    let percent = |us: u64| format!("{:.1}%", us as f64 / 1e4);
    match rest {
        LoadRest::Balanced { most_us, mean_us } => format!(
            "balanced: for its weight the busiest node has {} of a CPU for shards, and the mean is {}",
            percent(most_us),
            percent(mean_us)
        ),
        LoadRest::NoStep { node, most_us, mean_us } => format!(
            "{node} has {} of a CPU for shards, for its weight, and the mean is {}; no step would gain enough",
            percent(most_us),
            percent(mean_us)
        ),
        LoadRest::Enough => "more would follow when these are done".to_owned(),
    }
}

fn described(leader: NodeId, shard: ShardId, rates: ShardRates, meta: &MetaState) -> ShardLoad {
    let collection = meta.shard(shard).and_then(|record| meta.collection_with_id(record.collection));
    let share = |us: u64| us as f64 / 1e6;
    ShardLoad {
        shard,
        collection: collection.map(|collection| collection.name.clone()),
        leader,
        cpu: share(rates.cpu_us),
        cpu_minute: share(rates.cpu_minute_us),
        cpu_peak: share(rates.cpu_peak_us),
        reads: rates.reads_milli as f64 / 1e3,
        writes: rates.commands_milli as f64 / 1e3,
        bytes: rates.bytes,
    }
}

#[cfg(test)]
mod tests {
    use flotilla_meta::{MetaCommand, ValueSettings};
    use flotilla_placement::Sharding;
    use flotilla_types::ReplicaId;

    use super::*;
    use crate::start::testing::Metadata;

    #[test]
    fn shards_of_all_nodes_are_ordered_by_what_is_asked_for_and_bounded() {
        let rates = |cpu_us, reads_milli| ShardRates { cpu_us, reads_milli, ..ShardRates::default() };
        let report = |shards: &[(u64, ShardRates)]| {
            let shards = shards.iter().map(|(shard, rates)| (ShardId(*shard), *rates)).collect();
            Some(flotilla_control::NodeLoad { used_milli: Some(250), shards })
        };
        let reports = vec![
            (NodeId(1), report(&[(1, rates(10, 5_000)), (2, rates(500_000, 1_000))])),
            (NodeId(2), None),
            (NodeId(3), report(&[(3, rates(20, 9_000))])),
        ];
        let shown = |order, limit| {
            let top = top(reports.clone(), order, limit, &MetaState::default(), |_| Liveness::Live);
            assert_eq!((top.silent, top.nodes[0].cpu, top.nodes.len()), (vec![NodeId(2)], Some(0.25), 2));
            top.shards.iter().map(|found| (found.shard.0, found.leader.0)).collect::<Vec<_>>()
        };
        assert_eq!(shown(ShardOrder::Cpu, 9), [(2, 1), (3, 3), (1, 1)]);
        assert_eq!(shown(ShardOrder::Reads, 2), [(3, 3), (1, 1)]);
        let first = &top(reports, ShardOrder::Cpu, 1, &MetaState::default(), |_| Liveness::Live).shards[0];
        assert_eq!((first.cpu, first.reads), (0.5, 1.0));
    }

    #[test]
    fn a_hot_node_is_told_what_would_relieve_it_and_moving_shards_are_left_alone() {
        let mut metadata = Metadata::of_nodes(3);
        let nodes = vec![vec![NodeId(1), NodeId(2), NodeId(3)]; 2];
        metadata.apply(&MetaCommand::CreateCollection {
            name: "c".to_owned(),
            sharding: Sharding::Hash,
            buckets: 2,
            replicas: 3,
            initial_nodes: nodes,
            values: ValueSettings::NONE,
        });
        let meta = metadata.state();
        let hot = |shard| {
            let rates =
                ShardRates { cpu_us: 1, cpu_minute_us: 400_000, write_minute_us: 200_000, ..Default::default() };
            (ShardId(shard), rates)
        };
        let leads = |shards: &[u64]| flotilla_control::NodeLoad {
            used_milli: None,
            shards: shards.iter().map(|shard| hot(*shard)).collect(),
        };
        let reports = |first: &[u64], second: &[u64]| {
            vec![(NodeId(1), Some(leads(first))), (NodeId(2), Some(leads(second))), (NodeId(3), Some(leads(&[])))]
        };
        let shown = top(reports(&[1, 2], &[]), ShardOrder::Cpu, 9, &meta, |_| Liveness::Live);
        let [LoadStep { action: LoadAction::Transfer, shard: ShardId(1), from: NodeId(1), to: NodeId(2), gain }] =
            shown.steps[..]
        else {
            panic!("{shown:?}")
        };
        assert!((gain - 0.3).abs() < 1e-9, "the leader is 0.4 of a CPU, and a follower 0.1: {gain}");
        let shown = top(reports(&[1], &[2]), ShardOrder::Cpu, 9, &meta, |_| Liveness::Live);
        assert!(shown.steps.is_empty() && shown.rest.contains("no step"), "{shown:?}");
        // Placement wants another replica, and the shard has not got it yet.
        metadata.apply(&MetaCommand::UnassignReplica { shard: ShardId(1), replica: ReplicaId(4) });
        let meta = metadata.state();
        let shown = top(reports(&[1, 2], &[]), ShardOrder::Cpu, 9, &meta, |_| Liveness::Live);
        assert_eq!(shown.steps.iter().map(|step| step.shard).collect::<Vec<_>>(), [ShardId(2)], "{shown:?}");
    }
}
