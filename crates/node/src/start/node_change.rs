//! What a verb such as `drain` or `leave` does to a node, and why it is refused.
//!
//! Pure: metadata, status and liveness go in, a plan comes out. The metadata group decides in the end.

use flotilla_api::{ClusterStatus, NodeChange, NodeVerb, ShardInfo};
use flotilla_meta::{Liveness, MetaCommand, MetaState, NodeRecord, NodeState as RecordState};
use flotilla_placement::stuck_on;
use flotilla_types::{ClusterVersion, NodeId, ReplicaRole, ShardId};

use super::status;

/// Shards that a plan names.
const SHARDS_NAMED_MAX: usize = 10;

/// What is known of the cluster.
pub(super) struct Facts<'a> {
    pub(super) meta: &'a MetaState,
    pub(super) status: &'a ClusterStatus,
    /// For placement; nothing counts as dead here.
    pub(super) liveness: &'a dyn Fn(NodeId) -> Liveness,
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

impl Facts<'_> {
    /// What a verb does to a node.
    pub(super) fn plan(&self, node: &NodeRecord, verb: NodeVerb, dry_run: bool) -> NodeChange {
        let leads = |shard: &&ShardInfo| shard.leader == Some(node.id);
        let led = || self.status.shards.iter().filter(leads);
        let replicas = self.meta.shards().filter(|shard| shard.descriptor.replica_on(node.id).is_some()).count();
        let stuck = match verb {
            NodeVerb::Drain => self.led_by_it_alone(node.id),
            NodeVerb::Decommission | NodeVerb::Leave if !node.state.is_gone() => {
                stuck_on(&self.meta.plan_input(self.liveness), node.id)
            }
            _ => Vec::new(),
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
            force_helps: refusal.as_ref().is_some_and(|refusal| refusal.force_helps),
            refusal: refusal.map(|refusal| refusal.reason),
        }
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
        let in_force = self.meta.cluster_version();
        if matches!(verb, NodeVerb::Drain | NodeVerb::Leave) && in_force < ClusterVersion::DRAINING {
            return Some(Refusal::always(format!(
                "the cluster is at version {in_force}, and this needs version {}: start every node with a newer binary, \
                 then run `flotilla upgrade finish`",
                ClusterVersion::DRAINING
            )));
        }
        let is_last = || !self.meta.nodes().any(|other| other.id != id && other.state == RecordState::Active);
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
                     they are fully replicated, or use force",
                    shards(stuck),
                    if stuck.len() == 1 { "it" } else { "them" }
                )))
            }
            NodeVerb::Decommission | NodeVerb::Leave if !stuck.is_empty() && !node.state.moves_replicas_away() => {
                let others = self.meta.nodes().filter(|other| other.id != id);
                let able = others.filter(|other| self.is_active(other.id) && self.lives(other.id)).count();
                Some(Refusal::unless_forced(format!(
                    "the {able} other active nodes that answer cannot take its replica of {}, because two replicas of a \
                     shard are never on one node; add a node first. With force, {id} leaves as soon as they can",
                    shards(stuck)
                )))
            }
            NodeVerb::Remove if self.lives(id) || replicas > 0 => Some(Refusal::unless_forced(format!(
                "node {id} is {} and holds {replicas} replicas; use `flotilla node leave {id}`, or stop it and wait until \
                 they are replaced, or use force (a shard without another live majority would lose writes)",
                if self.lives(id) { "alive" } else { "not alive" }
            ))),
            _ => None,
        }
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
