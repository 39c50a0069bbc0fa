//! What a question of an operator costs with many shards: a table of medians.
//!
//! Every shard has three replicas. *Leaves* is the preflight of a node whose replicas others can take; *blocked*
//! that of all nodes but two, where each replica finds none; *explain* the explanation of one shard.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use flotilla_placement::{
    Disks, NodeStatus, PlanInput, PlanNode, PlanReplica, PlanShard, Planning, preflight, rendezvous_score,
};
use flotilla_types::{Locality, NodeId, ReplicaDescriptor, ReplicaId, ReplicaRole, ShardId};

/// Runs that a median is of.
const RUNS: usize = 11;

fn main() {
    println!("| shards | nodes | leaves | blocked | explain |");
    println!("|---|---|---|---|---|");
    for (shards, nodes) in [(1_000, 5), (20_000, 5), (20_000, 100)] {
        let input = input(shards, nodes);
        let some = |nodes: std::ops::RangeInclusive<u64>| nodes.map(NodeId).collect::<BTreeSet<_>>();
        let leaves = median(|| preflight(&input, &some(1..=1), &Disks::default()).moves.len());
        let blocked = median(|| preflight(&input, &some(1..=nodes - 2), &Disks::default()).blockers.len());
        let mut planning = Planning::default();
        planning.set_nodes(input.nodes.clone());
        for shard in &input.shards {
            planning.set_shard(shard.id, Some(shard.clone()));
        }
        planning.plan(input.limits());
        let explain = median(|| planning.explain(ShardId(7), input.limits()).map_or(0, |found| found.replicas.len()));
        println!("| {shards} | {nodes} | {leaves:.1?} | {blocked:.1?} | {explain:.1?} |");
    }
}

/// Shards on the nodes with the highest scores, which is even enough to leave balancing something to do.
fn input(shards: u64, nodes: u64) -> PlanInput {
    let node = |id| PlanNode { id: NodeId(id), status: NodeStatus::Live, locality: Locality::default(), weight: 100 };
    let shard = |id: u64| {
        let mut order: Vec<NodeId> = (1..=nodes).map(NodeId).collect();
        order.sort_by_key(|node| std::cmp::Reverse(rendezvous_score(ShardId(id), *node, 1)));
        let intent: Vec<_> =
            (0..3).map(|at| PlanReplica { replica: ReplicaId(3 * id + at), node: order[at as usize] }).collect();
        let voter =
            |held: &PlanReplica| ReplicaDescriptor { replica: held.replica, node: held.node, role: ReplicaRole::Voter };
        let actual = intent.iter().map(voter).collect();
        PlanShard { id: ShardId(id), replicas_desired: 3, intent, actual }
    };
    PlanInput {
        nodes: (1..=nodes).map(node).collect(),
        shards: (1..=shards).map(shard).collect(),
        balance_threshold: 0,
        moves_max: 2,
    }
}

fn median(run: impl Fn() -> usize) -> Duration {
    let mut times: Vec<_> = (0..RUNS)
        .map(|_| {
            let began = Instant::now();
            std::hint::black_box(run());
            began.elapsed()
        })
        .collect();
    times.sort();
    times[RUNS / 2]
}
