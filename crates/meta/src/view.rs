//! Converts metadata to placement's input, and plans to commands.

use flotilla_placement::{Change, NodeStatus, Plan, PlanInput, PlanNode, PlanShard, Reason, Shard, ShardMap, place};
use flotilla_types::{ClusterVersion, NodeId, ShardId};

use crate::{MetaCommand, MetaState, NodeState, OperationReason, Setting, ShardRecord};

/// A node's liveness, which the caller derives from membership and the grace period.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Liveness {
    /// It answers.
    Live,
    /// It does not answer at present.
    Suspect,
    /// It has not answered for longer than the grace period.
    Dead,
}

impl ShardRecord {
    /// The shard as it was last reported.
    #[must_use]
    pub fn reported(&self) -> Shard {
        Shard { collection: self.collection, descriptor: self.descriptor.clone() }
    }
}

impl MetaState {
    /// The shard map, built from the descriptors that the shards reported.
    #[must_use]
    pub fn shard_map(&self) -> ShardMap {
        ShardMap::new(self.version(), self.collections().cloned(), self.shards().map(ShardRecord::reported))
    }

    /// The desired number of a shard's replicas, once there are enough nodes. For the metadata group it is a
    /// setting.
    #[must_use]
    pub fn replicas_desired(&self, shard: &ShardRecord) -> u8 {
        if shard.id == ShardId::META {
            u8::try_from(self.setting(Setting::MetaReplicas)).unwrap_or(u8::MAX)
        } else {
            shard.replicas_desired
        }
    }

    /// The nodes of a placement plan.
    #[must_use]
    pub fn plan_nodes(&self, liveness: impl Fn(NodeId) -> Liveness) -> Vec<PlanNode> {
        let nodes = self.nodes().map(|node| {
            let status = match (node.state, liveness(node.id)) {
                (NodeState::Removed | NodeState::Lost, _) => NodeStatus::Removed,
                (_, Liveness::Dead) => NodeStatus::Dead,
                (NodeState::Decommissioning | NodeState::Leaving, _) => NodeStatus::Leaving,
                (NodeState::Draining, Liveness::Live) => NodeStatus::Draining,
                (NodeState::Draining, Liveness::Suspect) => NodeStatus::Suspect,
                (NodeState::Active, Liveness::Suspect) => NodeStatus::Suspect,
                (NodeState::Active, Liveness::Live) => NodeStatus::Live,
            };
            PlanNode { id: node.id, status, locality: node.locality.clone(), weight: node.role.weight() }
        });
        nodes.collect()
    }

    /// A shard of a placement plan.
    #[must_use]
    pub fn plan_shard(&self, shard: &ShardRecord) -> PlanShard {
        PlanShard {
            id: shard.id,
            replicas_desired: self.replicas_desired(shard),
            intent: shard.intent.clone(),
            actual: shard.descriptor.replicas.clone(),
        }
    }

    /// The limits of a placement plan: the balance threshold, and the moves at most.
    #[must_use]
    pub fn plan_limits(&self) -> (u32, usize) {
        let threshold = u32::try_from(self.setting(Setting::BalanceThreshold)).unwrap_or(u32::MAX);
        (threshold, usize::try_from(self.setting(Setting::BalanceMovesMax)).unwrap_or(usize::MAX))
    }

    /// The whole input of a placement plan.
    #[must_use]
    pub fn plan_input(&self, liveness: impl Fn(NodeId) -> Liveness) -> PlanInput {
        let (balance_threshold, moves_max) = self.plan_limits();
        let shards = self.shards().map(|shard| self.plan_shard(shard)).collect();
        PlanInput { nodes: self.plan_nodes(liveness), shards, balance_threshold, moves_max }
    }

    /// Chooses the initial nodes of a new collection's shards, for [`MetaCommand::CreateCollection`]. A list
    /// is empty when no node can take a replica.
    #[must_use]
    pub fn initial_nodes(&self, shards: u16, replicas: u8, liveness: impl Fn(NodeId) -> Liveness) -> Vec<Vec<NodeId>> {
        let input = self.plan_input(liveness);
        let first = self.header.next_shard.0;
        let new: Vec<_> = (0..u64::from(shards)).map(|i| (ShardId(first + i), replicas)).collect();
        place(&input.nodes, &input.shards, &new)
    }

    /// Converts a plan to commands: one batch per shard, so that a shard that has changed since does not
    /// block the others.
    #[must_use]
    pub fn commands_for(&self, plan: &Plan) -> Vec<MetaCommand> {
        let changes: Vec<_> = plan.changes().collect();
        changes
            .chunk_by(|a, b| a.shard() == b.shard())
            .filter_map(|changes| {
                let intent_version = self.shard(changes.first()?.shard())?.intent_version;
                Some(MetaCommand::Batch(self.commands_for_shard(changes, intent_version)))
            })
            .collect()
    }

    /// The commands for the changes of one shard. Each increments the version of its intent by one.
    fn commands_for_shard(&self, changes: &[Change], intent_version: u64) -> Vec<MetaCommand> {
        let mut commands = Vec::new();
        let mut rest = changes;
        while let [change, after @ ..] = rest {
            let intent_version = intent_version + commands.len() as u64;
            rest = after;
            commands.push(match (*change, after.first()) {
                (Change::Assign { shard, node, reason }, Some(Change::Unassign { replica, .. })) => {
                    match self.move_reason(reason) {
                        Some(reason) => {
                            rest = &after[1..];
                            MetaCommand::MoveReplica { shard, replica: *replica, to: node, intent_version, reason }
                        }
                        None => MetaCommand::AssignReplica { shard, node, intent_version },
                    }
                }
                (Change::Assign { shard, node, .. }, None | Some(Change::Assign { .. })) => {
                    MetaCommand::AssignReplica { shard, node, intent_version }
                }
                (Change::Unassign { shard, replica, .. }, _) => MetaCommand::UnassignReplica { shard, replica },
            });
        }
        commands
    }

    /// The reason of a planned move, if moves are recorded.
    fn move_reason(&self, reason: Reason) -> Option<OperationReason> {
        let are_recorded = self.cluster_version() >= ClusterVersion::OPERATIONS;
        OperationReason::of_plan(reason).filter(|_| are_recorded)
    }
}
