//! The scrubs of all nodes, and damaged replicas of this one, for operators.

use flotilla_api::{DamagedReplica, NodeScrub, ScrubReport, ScrubState};
use flotilla_control::{DamagedReplica as Damaged, NodeScrub as Reported};
use flotilla_replication::ReplicaStatus;
use flotilla_types::NodeId;

/// Damaged replicas that the status names; of more, only the number.
const NAMED_MAX: usize = 8;

/// Joins the reports of nodes; a node without one is listed as silent.
pub(super) fn report(reports: Vec<(NodeId, Option<Reported>)>) -> ScrubReport {
    let mut joined = ScrubReport::default();
    for (node, report) in reports {
        match report {
            Some(report) => joined.nodes.push(describe(node, &report)),
            None => joined.silent.push(node),
        }
    }
    joined
}

fn describe(node: NodeId, Reported { status, damaged }: &Reported) -> NodeScrub {
    NodeScrub {
        node,
        state: match (status.running, status.next_ms) {
            (true, _) => ScrubState::Running,
            (false, Some(_)) => ScrubState::Waiting,
            (false, None) => ScrubState::OnDemand,
        },
        bytes_per_second: status.bytes_per_second,
        bytes: status.bytes,
        bytes_total: status.bytes_total,
        passes: status.passes_total,
        objects: status.objects_total,
        objects_damaged: status.damaged_total,
        objects_unreadable: status.unreadable_total,
        began_ms: status.began_ms,
        ended_ms: status.ended_ms,
        next_ms: status.next_ms,
        damaged: damaged
            .iter()
            .map(|Damaged { shard, replica, repairable }| DamagedReplica {
                shard: *shard,
                replica: *replica,
                repairable: *repairable,
            })
            .collect(),
    }
}

/// What is wrong with this node's replicas, those first that nothing can repair.
pub(super) fn problems<'a>(here: impl IntoIterator<Item = &'a ReplicaStatus>) -> Vec<String> {
    let mut damaged: Vec<_> = here.into_iter().filter(|replica| replica.damaged).map(Damaged::of).collect();
    damaged.sort_by_key(|damaged| (damaged.repairable, damaged.shard));
    let more = damaged.len().saturating_sub(NAMED_MAX);
    let named = damaged.iter().take(NAMED_MAX).map(|Damaged { shard, replica, repairable }| {
        let what = if *repairable {
            "it is being replaced from its peers"
        } else {
            "there is no other replica; records that cannot be read must be written again"
        };
        format!("objects of replica {replica} of shard {shard} are damaged on this node's disk: {what}")
    });
    named.chain((more > 0).then(|| format!("{more} more replicas on this node have damaged objects"))).collect()
}

#[cfg(test)]
mod tests {
    use flotilla_replication::ScrubStatus;
    use flotilla_types::{ReplicaId, ShardId};

    use super::*;
    use crate::start::testing::{Metadata, replica};

    #[test]
    fn what_nothing_can_repair_is_named_first_and_much_is_only_counted() {
        let mut meta = Metadata::of_nodes(3);
        let shards = meta.collections(&[vec![1, 2, 3], vec![1]]);
        let state = meta.state();
        let mut here = vec![replica(&state, shards[0], 1, Some(2)), replica(&state, shards[1], 1, Some(1))];
        assert!(problems(&here).is_empty());
        here.iter_mut().for_each(|replica| replica.damaged = true);
        let shown = problems(&here);
        assert!(shown[0].contains("no other replica") && shown[1].contains("is being replaced"), "{shown:?}");
        let many = problems(&vec![here; 20].concat());
        assert!(many.len() == NAMED_MAX + 1 && many[NAMED_MAX].starts_with("32 more"), "{many:?}");
    }

    #[test]
    fn reports_are_joined_and_nodes_without_one_are_named() {
        let damaged = Damaged { shard: ShardId(4), replica: ReplicaId(6), repairable: true };
        let running = Reported {
            status: ScrubStatus { running: true, bytes: 3, damaged_total: 2, ..ScrubStatus::default() },
            damaged: vec![damaged],
        };
        let waiting = Reported { status: ScrubStatus { next_ms: Some(7), ..Default::default() }, damaged: vec![] };
        let report = report(vec![
            (NodeId(1), Some(running)),
            (NodeId(2), None),
            (NodeId(3), Some(waiting)),
            (NodeId(4), Some(Reported::default())),
        ]);
        assert_eq!(report.silent, [NodeId(2)]);
        let states: Vec<_> = report.nodes.iter().map(|node| node.state).collect();
        assert_eq!(states, [ScrubState::Running, ScrubState::Waiting, ScrubState::OnDemand]);
        assert_eq!((report.nodes[0].bytes, report.nodes[0].objects_damaged), (3, 2));
        assert!(report.nodes[0].damaged[0].repairable && report.nodes[0].damaged[0].replica == ReplicaId(6));
    }
}
