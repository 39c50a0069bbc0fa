//! The work of shards, for operators: reports of all nodes as one list.

use std::cmp::Reverse;

use flotilla_api::{NodeLoad, ShardLoad, ShardOrder, ShardTop};
use flotilla_control::ShardRates;
use flotilla_meta::MetaState;
use flotilla_types::{NodeId, ShardId};

/// The shards that are the most work, at most `limit`; a node without a report is listed as silent.
pub(super) fn top(
    reports: Vec<(NodeId, Option<flotilla_control::NodeLoad>)>,
    order: ShardOrder,
    limit: usize,
    meta: &MetaState,
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
    use super::*;

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
            let top = top(reports.clone(), order, limit, &MetaState::default());
            assert_eq!((top.silent, top.nodes[0].cpu, top.nodes.len()), (vec![NodeId(2)], Some(0.25), 2));
            top.shards.iter().map(|found| (found.shard.0, found.leader.0)).collect::<Vec<_>>()
        };
        assert_eq!(shown(ShardOrder::Cpu, 9), [(2, 1), (3, 3), (1, 1)]);
        assert_eq!(shown(ShardOrder::Reads, 2), [(3, 3), (1, 1)]);
        let first = &top(reports, ShardOrder::Cpu, 1, &MetaState::default()).shards[0];
        assert_eq!((first.cpu, first.reads), (0.5, 1.0));
    }
}
