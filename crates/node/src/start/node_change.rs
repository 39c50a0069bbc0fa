//! What a verb such as `drain` or `leave` does to a node, and why it is refused.
//!
//! Pure: metadata, status and liveness go in, a plan comes out. The metadata group decides in the end.

use std::collections::BTreeSet;

use flotilla_api::{ClusterStatus, NodeChange, NodeVerb, ShardInfo};
use flotilla_control::Capacity;
use flotilla_meta::{Liveness, MetaCommand, MetaState, NodeRecord, NodeState as RecordState};
use flotilla_placement::{Disks, Obstacle, Preflight, preflight};
use flotilla_types::{ClusterVersion, NodeId, ReplicaRole, ShardId};

use super::{placement, status};

/// Shards that a plan names.
const SHARDS_NAMED_MAX: usize = 10;
/// Replicas that speak against a plan and are named.
const BLOCKERS_NAMED_MAX: usize = 100;

/// What is known of the cluster.
pub(super) struct Facts<'a> {
    pub(super) meta: &'a MetaState,
    pub(super) status: &'a ClusterStatus,
    /// For placement; nothing counts as dead here.
    pub(super) liveness: &'a dyn Fn(NodeId) -> Liveness,
    /// Other nodes whose replicas are to move away as well.
    pub(super) with: &'a BTreeSet<NodeId>,
    /// What [`preflight_of`] found.
    pub(super) preflight: &'a Preflight,
}

/// Whether a node, and others with it, can give up their replicas: if that is what the verb is about. Visits all
/// shards.
pub(super) fn preflight_of(
    meta: &MetaState,
    liveness: impl Fn(NodeId) -> Liveness,
    verb: NodeVerb,
    node: NodeId,
    with: &BTreeSet<NodeId>,
    disks: &Disks,
) -> Preflight {
    let is_gone = meta.node(node).is_none_or(|record| record.state.is_gone());
    match verb {
        NodeVerb::Decommission | NodeVerb::Leave if !is_gone => {
            let leaving = with.iter().copied().chain([node]).collect();
            preflight(&meta.plan_input(liveness), &leaving, disks)
        }
        _ => Preflight::default(),
    }
}

/// Why a verb is refused, and whether force does it all the same.
struct Refusal {
    reason: String,
    force_helps: bool,
}

impl Refusal {
    fn always(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), force_helps: false }
    }

    fn unless_forced(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), force_helps: true }
    }
}

/// What nodes report of their disks and replicas.
pub(super) fn disks(capacities: Vec<(NodeId, Option<Capacity>)>) -> Disks {
    let mut disks = Disks::default();
    for (node, capacity) in capacities {
        let Capacity { disk, shards } = capacity.unwrap_or_default();
        disks.nodes.extend(disk.map(|disk| (node, disk)));
        for (shard, bytes) in shards {
            let most = disks.shards.entry(shard).or_default();
            *most = bytes.max(*most);
        }
    }
    disks
}

/// The command that a verb proposes.
pub(super) fn command(node: NodeId, verb: NodeVerb) -> MetaCommand {
    let state = match verb {
        NodeVerb::Remove => return MetaCommand::RemoveNode { node },
        NodeVerb::Drain => RecordState::Draining,
        NodeVerb::Undrain | NodeVerb::Recommission => RecordState::Active,
        NodeVerb::Decommission => RecordState::Decommissioning,
        NodeVerb::Leave => RecordState::Leaving,
    };
    MetaCommand::SetNodeState { node, state }
}

/// Why what needs a version is refused, if that is not in force.
pub(super) fn version_missing(meta: &MetaState, needed: ClusterVersion) -> Option<String> {
    let in_force = meta.cluster_version();
    (in_force < needed).then(|| {
        format!(
            "the cluster is at version {in_force}, and this needs version {needed}: start every node with a newer binary, \
             then run `flotilla upgrade finish`"
        )
    })
}

impl Facts<'_> {
    /// What a verb does to a node.
    pub(super) fn plan(&self, node: &NodeRecord, verb: NodeVerb, dry_run: bool) -> NodeChange {
        let leads = |shard: &&ShardInfo| shard.leader == Some(node.id);
        let led = || self.status.shards.iter().filter(leads);
        let replicas = self.meta.shards().filter(|shard| shard.descriptor.replica_on(node.id).is_some()).count();
        let stuck = match verb {
            NodeVerb::Drain => self.led_by_it_alone(node.id),
            _ => self.blocked_by(|why| why == Obstacle::NoNode),
        };
        let remaining = match verb {
            NodeVerb::Drain => led().filter(|shard| !stuck.contains(&shard.id)).count(),
            NodeVerb::Decommission | NodeVerb::Leave => replicas,
            NodeVerb::Undrain | NodeVerb::Recommission | NodeVerb::Remove => 0,
        };
        let leaders = led().count();
        let refusal = self.refusal(node, verb, replicas, &stuck);
        NodeChange {
            node: node.id,
            verb,
            dry_run,
            state: status::node_state(node.state, leaders),
            replicas: replicas as u32,
            leaders: leaders as u32,
            remaining: remaining as u32,
            stuck_total: stuck.len() as u32,
            stuck: stuck.into_iter().take(SHARDS_NAMED_MAX).collect(),
            moves: matches!(verb, NodeVerb::Decommission | NodeVerb::Leave)
                .then(|| self.preflight.moves.get(&node.id).copied().unwrap_or(0) as u64),
            move_bytes: self.preflight.bytes.get(&node.id).copied().filter(|bytes| *bytes > 0),
            blockers_total: self.preflight.blockers.len() as u64,
            blockers: self
                .preflight
                .blockers
                .iter()
                .take(BLOCKERS_NAMED_MAX)
                .map(|found| placement::blocker(found, self.meta))
                .collect(),
            force_helps: refusal.as_ref().is_some_and(|refusal| refusal.force_helps),
            refusal: refusal.map(|refusal| refusal.reason),
        }
    }

    /// Shards of which a replica cannot, or should not, leave its node.
    fn blocked_by(&self, is_why: impl Fn(Obstacle) -> bool) -> Vec<ShardId> {
        let found = self.preflight.blockers.iter().filter(|blocker| is_why(blocker.why));
        let shards: BTreeSet<_> = found.map(|blocker| blocker.shard).collect();
        shards.into_iter().collect()
    }

    /// Shards of which the node holds a voter, and no other node holds one that can lead now.
    fn led_by_it_alone(&self, node: NodeId) -> Vec<ShardId> {
        let can_lead = |other: NodeId| other != node && self.is_active(other) && self.lives(other);
        let voters = |shard: &ShardInfo| {
            let voters = shard.replicas.iter().filter(|replica| replica.role == ReplicaRole::Voter);
            voters.map(|voter| voter.node).collect::<Vec<_>>()
        };
        let is_stuck = |voters: &Vec<NodeId>| voters.contains(&node) && !voters.iter().any(|other| can_lead(*other));
        self.status.shards.iter().filter(|shard| is_stuck(&voters(shard))).map(|shard| shard.id).collect()
    }

    fn is_active(&self, node: NodeId) -> bool {
        self.meta.node(node).is_some_and(|record| record.state == RecordState::Active)
    }

    fn lives(&self, node: NodeId) -> bool {
        (self.liveness)(node) == Liveness::Live
    }

    fn refusal(&self, node: &NodeRecord, verb: NodeVerb, replicas: usize, stuck: &[ShardId]) -> Option<Refusal> {
        let id = node.id;
        if node.state.is_gone() && !(verb == NodeVerb::Remove && node.state == RecordState::Lost) {
            let is_done = verb == NodeVerb::Remove || verb == NodeVerb::Leave;
            return (!is_done).then(|| Refusal::always(format!("{id} is {}: it can never come back", node.state)));
        }
        if matches!(verb, NodeVerb::Drain | NodeVerb::Leave)
            && let Some(missing) = version_missing(self.meta, ClusterVersion::DRAINING)
        {
            return Some(Refusal::always(missing));
        }
        let stays = |other: &NodeRecord| other.id != id && !self.with.contains(&other.id);
        let is_last = || !self.meta.nodes().any(|other| stays(other) && other.state == RecordState::Active);
        match verb {
            NodeVerb::Undrain | NodeVerb::Recommission => None,
            NodeVerb::Drain if node.state.moves_replicas_away() => Some(Refusal::always(format!(
                "{id} is {}: take it back with undrain first, or let it finish",
                node.state
            ))),
            _ if is_last() => Some(Refusal::always(format!("{id} is the last active node; none would be left"))),
            NodeVerb::Drain if !stuck.is_empty() && node.state == RecordState::Active => {
                Some(Refusal::unless_forced(format!(
                    "no other active node that answers holds a voter of {}: {id} would go on leading {}; wait until \
                     others can take over, or use force",
                    shards(stuck),
                    if stuck.len() == 1 { "it" } else { "them" }
                )))
            }
            NodeVerb::Decommission | NodeVerb::Leave if !node.state.moves_replicas_away() => self.blocked(id),
            NodeVerb::Remove if self.lives(id) || replicas > 0 => Some(Refusal::unless_forced(format!(
                "node {id} is {} and holds {replicas} replicas; use `flotilla node leave {id}`, or stop it and wait until \
                 they are replaced, or use force (a shard without another live majority would lose writes)",
                if self.lives(id) { "alive" } else { "not alive" }
            ))),
            _ => None,
        }
    }
}

impl Facts<'_> {
    /// Why a node's replicas cannot, or should not, move away.
    fn blocked(&self, id: NodeId) -> Option<Refusal> {
        let mut reasons = Vec::new();
        let stuck = self.blocked_by(|why| why == Obstacle::NoNode);
        if !stuck.is_empty() {
            let others = self.meta.nodes().filter(|other| other.id != id && !self.with.contains(&other.id));
            let able = others.filter(|other| self.is_active(other.id) && self.lives(other.id)).count();
            reasons.push(format!(
                "the {able} other active nodes that answer cannot take the replicas of {}, because two replicas of a shard \
                 are never on one node; add a node first",
                shards(&stuck)
            ));
        }
        let unsettled = self.blocked_by(|why| why == Obstacle::Unsettled);
        if !unsettled.is_empty() {
            let text = "cannot change, because too few of their voters answer; bring them back first";
            reasons.push(format!("{} {text}", shards(&unsettled)));
        }
        let closer = self.blocked_by(|why| matches!(why, Obstacle::Zone { .. }));
        if !closer.is_empty() {
            let text = "would have replicas closer together by their labels, and survive less; add a node first";
            reasons.push(format!("{} {text}", shards(&closer)));
        }
        let full = self.blocked_by(|why| matches!(why, Obstacle::Disk { .. }));
        if !full.is_empty() {
            let text = "have no room on the disks of the nodes that would take them; make room or add a node first";
            reasons.push(format!("{} {text}", shards(&full)));
        }
        let force = format!("With force, {id} leaves as soon as the others can take over");
        (!reasons.is_empty()).then(|| Refusal::unless_forced(format!("{}. {force}", reasons.join("; "))))
    }
}

/// A list of shards, of bounded length.
fn shards(shards: &[ShardId]) -> String {
    let named: Vec<_> = shards.iter().take(SHARDS_NAMED_MAX).map(ShardId::to_string).collect();
    let more = shards.len().saturating_sub(SHARDS_NAMED_MAX);
    let noun = if shards.len() == 1 { "shard" } else { "shards" };
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{} {noun} ({}{more})", shards.len(), named.join(", "))
}

#[cfg(test)]
mod tests {
    use flotilla_api::NodeState;
    use flotilla_placement::Disk;
    use flotilla_types::{Incarnation, VersionRange};

    use super::*;
    use crate::start::{
        shard_view::ShardView,
        testing::{Metadata, replica},
    };
    use flotilla_control::MemberState;

    /// Nodes 1 to `nodes` at the second version, with a shard on each of these sets of nodes, led by the
    /// first.
    fn cluster(nodes: u64, shards: &[Vec<u64>]) -> Metadata {
        let mut metadata = Metadata::of_nodes(nodes);
        metadata.collections(shards);
        let versions = VersionRange::supported();
        let seen = |node| flotilla_meta::SeenNode { node: NodeId(node), incarnation: Incarnation(0), versions };
        let seen = (1..=nodes).map(seen).collect();
        metadata.apply(&MetaCommand::SetClusterVersion { version: ClusterVersion(2), seen });
        metadata
    }

    /// What `verb` does to node 1, which leads all shards, while these nodes are down.
    fn planned(metadata: &Metadata, verb: NodeVerb, down: &[u64]) -> NodeChange {
        let meta = metadata.state();
        let led: flotilla_replication::Replicas =
            meta.shards().map(|shard| replica(&meta, shard.id, 1, Some(1))).collect();
        let alive = |node: NodeId| if down.contains(&node.0) { MemberState::Down } else { MemberState::Alive };
        let shards = ShardView::new(NodeId(1), &meta, &led, alive).shards(|_| None);
        let status: ClusterStatus = serde_json::from_value(serde_json::json!({
            "cluster_id": "00112233445566778899aabbccddeeff", "node": "n1", "version": "", "started_ms": 0,
            "draining": false, "metadata_leader": null, "quorum": true, "health": {"ok": true, "reasons": []},
            "nodes": [], "collections": [], "shards": shards, "peers": [],
        }))
        .expect("a status");
        let liveness = |node: NodeId| if down.contains(&node.0) { Liveness::Suspect } else { Liveness::Live };
        let with = BTreeSet::new();
        let preflight = preflight_of(&meta, liveness, verb, NodeId(1), &with, &Disks::default());
        let facts = Facts { meta: &meta, status: &status, liveness: &liveness, with: &with, preflight: &preflight };
        facts.plan(meta.node(NodeId(1)).expect("node 1"), verb, true)
    }

    fn set(state: RecordState) -> MetaCommand {
        MetaCommand::SetNodeState { node: NodeId(1), state }
    }

    #[test]
    fn a_drain_is_refused_while_leaderships_have_nowhere_to_go() {
        let mut metadata = cluster(3, &[vec![1, 2, 3], vec![1]]);
        let plan = planned(&metadata, NodeVerb::Drain, &[]);
        // The metadata group and the second shard have one voter here.
        assert_eq!((plan.leaders, plan.remaining, plan.stuck_total), (3, 1, 2));
        let refusal = plan.refusal.expect("a reason");
        assert!(plan.force_helps && refusal.contains("2 shards (s0, s2)"), "{refusal}");
        let plan = planned(&metadata, NodeVerb::Drain, &[2, 3]);
        assert_eq!((plan.remaining, plan.stuck_total), (0, 3), "nodes that do not answer lead nothing");
        metadata.apply(&set(RecordState::Draining));
        let plan = planned(&metadata, NodeVerb::Drain, &[]);
        assert_eq!((plan.state, plan.refusal), (NodeState::Draining, None), "it drains already");
    }

    #[test]
    fn a_leave_is_refused_while_other_nodes_cannot_hold_the_replicas() {
        let metadata = cluster(3, &[vec![1, 2, 3]]);
        let plan = planned(&metadata, NodeVerb::Leave, &[]);
        assert_eq!((plan.replicas, plan.stuck_total), (2, 1), "another node can take the metadata group");
        assert_eq!((plan.moves, plan.blockers_total), (Some(1), 1));
        let blocker = &plan.blockers[0];
        assert_eq!((blocker.shard, blocker.node, blocker.why.as_str()), (ShardId(1), NodeId(1), "no_node"));
        let refusal = plan.refusal.expect("a reason");
        assert!(plan.force_helps && refusal.contains("the 2 other active nodes"), "{refusal}");
        let mut metadata = cluster(4, &[vec![1, 2, 3]]);
        assert_eq!(planned(&metadata, NodeVerb::Leave, &[]).refusal, None);
        assert!(planned(&metadata, NodeVerb::Leave, &[4]).refusal.is_some(), "node 4 does not answer");
        metadata.apply(&set(RecordState::Leaving));
        assert_eq!(planned(&metadata, NodeVerb::Leave, &[4]).refusal, None, "it leaves already");
        let refusal = planned(&metadata, NodeVerb::Drain, &[]).refusal.expect("a reason");
        assert!(refusal.contains("undrain"), "{refusal}");
        metadata.apply(&MetaCommand::RemoveNode { node: NodeId(1) });
        assert_eq!(planned(&metadata, NodeVerb::Leave, &[]).refusal, None, "it has left");
        let plan = planned(&metadata, NodeVerb::Undrain, &[]);
        assert!(plan.refusal.is_some() && !plan.force_helps, "it can never come back");
    }

    #[test]
    fn a_leave_that_brings_replicas_closer_or_that_no_quorum_can_carry_out_is_refused_unless_forced() {
        let mut metadata = cluster(4, &[vec![1, 2, 3]]);
        for (node, zone) in [(1, "a"), (2, "b"), (3, "c"), (4, "b")] {
            metadata.label(node, &format!("zone={zone}"));
        }
        let plan = planned(&metadata, NodeVerb::Decommission, &[]);
        let refusal = plan.refusal.expect("a reason");
        assert!(plan.force_helps && refusal.contains("1 shard (s1) would have replicas closer"), "{refusal}");
        assert_eq!(plan.blockers[0].detail, "n4 would take it, and bring replicas closer (zone=b, as n2)");
        metadata.label(4, "zone=a");
        assert_eq!(planned(&metadata, NodeVerb::Decommission, &[]).refusal, None);
        let plan = planned(&metadata, NodeVerb::Decommission, &[2, 3]);
        let refusal = plan.refusal.expect("a reason");
        assert!(plan.force_helps && refusal.contains("too few of their voters answer"), "{refusal}");
        assert_eq!(plan.blockers[0].why, "unsettled");
    }

    #[test]
    fn the_largest_replica_of_a_shard_counts_and_nodes_that_do_not_report_have_no_disk() {
        let disk = Disk { bytes: 9, free_bytes: 8 };
        let of = |disk, bytes| Some(Capacity { disk, shards: vec![(ShardId(4), bytes)] });
        let found = disks(vec![(NodeId(1), of(Some(disk), 5)), (NodeId(2), None), (NodeId(3), of(None, 3))]);
        assert_eq!((found.nodes, found.shards), ([(NodeId(1), disk)].into(), [(ShardId(4), 5)].into()));
    }

    #[test]
    fn the_last_active_node_and_the_first_version_are_refused_even_by_force() {
        let plan = planned(&cluster(1, &[]), NodeVerb::Drain, &[]);
        assert!(plan.refusal.is_some_and(|reason| reason.contains("last active node")) && !plan.force_helps);
        let plan = planned(&Metadata::of_nodes(3), NodeVerb::Leave, &[]);
        assert!(plan.refusal.is_some_and(|reason| reason.contains("upgrade finish")) && !plan.force_helps);
    }

    #[test]
    fn a_removal_is_refused_unless_forced_while_the_node_lives_or_holds_replicas() {
        let plan = planned(&cluster(3, &[vec![1, 2, 3]]), NodeVerb::Remove, &[]);
        assert!(plan.refusal.is_some_and(|reason| reason.contains("node leave n1")) && plan.force_helps);
    }
}
