//! Injects the planned faults and ends them.
//!
//! Faults that lose data begin only when the cluster has converged, so that no shard loses more copies than
//! its majority can spare: a cluster promises nothing beyond that. All other faults may overlap in any
//! mixture.

use std::collections::{BTreeMap, BTreeSet};

use flotilla_meta::{
    CollectionSettings, MetaCommand, NodeRecord, NodeRole, NodeState, OperationChange, OperationReason, OperationState,
    SPLIT_BYTES, Setting, ShardRecord,
};
use flotilla_replication::{Input, Role, ShardChange};
use flotilla_storage::{Log as _, LogEvidence};
use flotilla_types::{Bucket, ClusterVersion, CollectionId, LogIndex, NodeId, OperationId, RecordKey, ShardId};
use rand::RngExt as _;

use crate::{
    convergence::LAG_MAX,
    disk::Disk,
    network::{Cut, NetworkFaults},
    node::Folder,
    operator::FollowUp,
    plan::{DRIFTS_PPM, Fault, Planned},
    workload::keys_apart,
    world::{Event, World},
};

/// Nodes that a world has at most, running and retired.
const NODES_MAX: usize = 14;

/// A scheduled step of a fault or of its repair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum FaultStep {
    /// A planned fault begins; by its index in the plan.
    Begin(usize),
    End(usize),
    /// A process that exited is restarted.
    Restart(NodeId),
    /// A machine that lost its disk joins as a new node at its old port.
    Rejoin(u16),
}

/// Faults in progress, by their index in the plan.
#[derive(Default)]
pub(crate) struct Faults {
    active: BTreeMap<usize, Active>,
    /// Set at the end of a run: no more faults begin.
    pub(crate) stopped: bool,
    /// Nodes with objects that were damaged.
    pub(crate) rotted: BTreeSet<NodeId>,
    /// Shards of which one replica got a flaw.
    pub(crate) flawed: BTreeSet<ShardId>,
    /// Moves that were paused.
    paused: usize,
}

/// Pause between looks at a move that is to be resumed, microseconds.
const RESUME_AGAIN_US: u64 = 300_000;
/// Moves that are paused have indices above those of the plan.
const PAUSED_FROM: usize = 1 << 20;

/// What must be undone when a fault ends.
enum Active {
    Down(Vec<NodeId>),
    Cut(Cut),
    Network(NetworkFaults),
    SlowSource(NodeId),
    SlowDisk(NodeId),
    FullDisk(NodeId),
    BrokenDisk(NodeId),
    Clock(NodeId),
    Removed(NodeId),
    /// A copy of a disk, to be restored at the end of the fault.
    Backup {
        node: NodeId,
        disk: Box<Disk>,
        folder: Box<Folder>,
        incarnation: flotilla_types::Incarnation,
        /// A node that is down until then, and so knows nothing of what the copy lacks.
        away: Option<NodeId>,
    },
    Restart(NodeId),
    Draining(NodeId),
    /// A move, which is left alone, paused or cancelled by this number.
    Moving(ShardId, u64),
    /// A merge into this shard, which is left alone or cancelled by this number.
    Merging(ShardId, u64),
    Paused(OperationId),
    /// Shards are split when they have more than a few bytes.
    SplittingBySize(CollectionId),
    /// Nothing: the fault took effect at once, or ends by itself.
    Nothing,
}

impl World {
    /// Schedules the faults of the plan.
    pub(crate) fn schedule_faults(&mut self) {
        for (at, planned) in self.plan.faults.clone().into_iter().enumerate() {
            self.schedule(planned.at_ms * 1_000, Event::Fault(FaultStep::Begin(at)));
        }
    }

    pub(crate) fn fault_step(&mut self, step: FaultStep) {
        match step {
            FaultStep::Begin(at) => {
                let Some(planned) = self.plan.faults.get(at).copied().filter(|_| !self.faults.stopped) else { return };
                match self.begin(planned) {
                    Some(active) => {
                        self.faults.active.insert(at, active);
                        self.schedule(planned.lasts_ms * 1_000, Event::Fault(FaultStep::End(at)));
                    }
                    None => self.note(format!("#{at} {:?} is not possible now", planned.fault)),
                }
            }
            FaultStep::End(at) => {
                if let Some(active) = self.faults.active.remove(&at) {
                    self.note(format!("#{at} ends"));
                    self.end(active);
                }
            }
            FaultStep::Restart(node) => self.start(node),
            FaultStep::Rejoin(port) => {
                let taken = self.nodes.values().any(|node| node.port == port && !node.retired);
                // The machine keeps its configuration.
                let role = self.nodes.values().find(|node| node.port == port).map(|node| node.role);
                if !taken && self.nodes.len() < NODES_MAX {
                    self.join(port, role.unwrap_or_default());
                }
            }
        }
    }

    /// Restarts a process that exited, as a supervisor does.
    pub(crate) fn restart_later(&mut self, node: NodeId) {
        let delay_us = self.rng.random_range(100_000..1_000_000);
        self.schedule(delay_us, Event::Fault(FaultStep::Restart(node)));
    }

    /// Joins a machine that lost its disk as a new node, as its operator does.
    pub(crate) fn rejoin_later(&mut self, node: NodeId) {
        let Some(port) = self.nodes.get(&node).map(|node| node.port) else { return };
        let delay_us = self.rng.random_range(100_000..2_000_000);
        self.schedule(delay_us, Event::Fault(FaultStep::Rejoin(port)));
    }

    fn running(&self) -> Vec<NodeId> {
        self.nodes.values().filter(|node| node.running.is_some()).map(|node| node.id).collect()
    }

    /// Whether a fault that loses data is in progress; the cluster may not have noticed it yet.
    pub(crate) fn is_losing_data(&self) -> bool {
        let mut active = self.faults.active.keys().filter_map(|at| self.plan.faults.get(*at));
        active.any(|planned| loses_data(planned.fault))
    }

    /// Whether every shard has two replicas beyond any one: with too few active nodes it is to have one only.
    fn survives_a_loss(&self) -> bool {
        self.newest_metadata().is_some_and(|meta| meta.shards().all(|shard| shard.intent.len() > 2))
    }

    fn begin(&mut self, planned: Planned) -> Option<Active> {
        let running = self.running();
        let id = *running.get(planned.pick as usize % running.len().max(1))?;
        let which = planned.pick >> 32;
        let lasts_us = planned.lasts_ms * 1_000;
        let name = format!("{:?} for {} ms", planned.fault, planned.lasts_ms);
        let forming = (self.nodes.len() as u64) < self.plan.nodes || !self.operator.is_idle();
        let is_redundant = || self.unconverged(LAG_MAX).is_none() && self.survives_a_loss();
        if loses_data(planned.fault) && (forming || self.is_losing_data() || !is_redundant()) {
            return None;
        }
        self.note(format!("{name}: {id}"));
        Some(match planned.fault {
            Fault::Crash => {
                self.crash(id);
                Active::Down(vec![id])
            }
            Fault::CrashAll => {
                running.iter().for_each(|node| self.crash(*node));
                Active::Down(running)
            }
            Fault::Pause => {
                let until_us = self.now_us + lasts_us;
                self.nodes.get_mut(&id)?.paused_until_us = until_us;
                Active::Nothing
            }
            Fault::Isolate | Fault::Halves | Fault::OneWay | Fault::Bridge => {
                let cut = self.cut_of(planned.fault, id, which);
                self.cut(&cut);
                Active::Cut(cut)
            }
            Fault::FlakyNetwork => self.degrade_network(which),
            Fault::CorruptPulls => {
                let before = self.network.faults.clone();
                self.network.faults.corrupt_pulls_per_mille = 400;
                Active::Network(before)
            }
            Fault::SlowSource => {
                self.network.slow_sources.insert(id);
                Active::SlowSource(id)
            }
            Fault::SlowDisk => {
                self.nodes.get_mut(&id)?.disk_us_max = 80_000;
                Active::SlowDisk(id)
            }
            Fault::FsyncFails => {
                self.nodes.get_mut(&id)?.fsync_fails = true;
                Active::Nothing
            }
            Fault::DiskFull => {
                self.nodes.get_mut(&id)?.disk.set_full(true);
                Active::FullDisk(id)
            }
            Fault::DiskFails => {
                self.nodes.get_mut(&id)?.disk.set_broken(true);
                Active::BrokenDisk(id)
            }
            Fault::ClockJump => self.jump_clock(id, which)?,
            Fault::ClockDrift => {
                let now_us = self.now_us;
                self.nodes.get_mut(&id)?.clock.set_drift(now_us, DRIFTS_PPM[which as usize % DRIFTS_PPM.len()]);
                Active::Clock(id)
            }
            Fault::TransferLeader => self.transfer_leader(planned.pick).map(|()| Active::Nothing)?,
            Fault::Join => self.join_one()?,
            Fault::Remove => self.remove(id)?,
            Fault::Wipe => {
                self.retire(id, "loses its disk");
                Active::Nothing
            }
            Fault::RollBack => {
                let node = self.nodes.get(&id)?;
                let (disk, folder) = (Box::new(node.disk.reopen()), Box::new(node.folder.clone()));
                let incarnation = node.incarnation;
                let others: Vec<_> = running.iter().copied().filter(|other| *other != id).collect();
                let away = others.get(which as usize % (2 * others.len()).max(1)).copied();
                away.into_iter().for_each(|away| self.crash(away));
                Active::Backup { node: id, disk, folder, incarnation, away }
            }
            Fault::LogBitRot => self.damage_log(id, which)?,
            Fault::ObjectBitRot => {
                self.damage_object(id, which)?;
                Active::Restart(id)
            }
            Fault::ObjectRots => {
                self.damage_object(id, which)?;
                Active::Nothing
            }
            Fault::Flaw => {
                self.flaw(id, which)?;
                Active::Nothing
            }
            Fault::RangeChange => self.change_range(which)?,
            Fault::Drain => self.drain(id)?,
            Fault::Move => self.move_replica(which)?,
            Fault::Split => self.split_shard(which)?,
            Fault::Merge => self.merge_shards(which)?,
            Fault::SplitBySize => self.split_by_size(which)?,
            Fault::MergeUnused => self.merge_unused()?,
        })
    }

    fn degrade_network(&mut self, which: u64) -> Active {
        let before = self.network.faults.clone();
        let faults = &mut self.network.faults;
        faults.lost_per_mille = 50 + (which % 200) as u32;
        faults.duplicated_per_mille = 100;
        faults.slow_per_mille = 100;
        Active::Network(before)
    }

    fn jump_clock(&mut self, id: NodeId, which: u64) -> Option<Active> {
        let jumps_ms = [-3_600_000, -60_000, -2_000, -300, 300, 700, 5_000, 60_000, 3_600_000];
        let jump_ms = jumps_ms[which as usize % jumps_ms.len()];
        self.note(format!("the wall clock of {id} jumps by {jump_ms} ms"));
        self.nodes.get_mut(&id)?.clock.jump(jump_ms);
        Some(Active::Clock(id))
    }

    fn join_one(&mut self) -> Option<Active> {
        if self.nodes.len() >= NODES_MAX {
            return None;
        }
        let port = self.next_port();
        let has_roles = self.newest_metadata().is_some_and(|meta| meta.cluster_version() >= ClusterVersion::NODE_ROLES);
        let role = self.plan.joining.filter(|_| has_roles).unwrap_or_default();
        self.join(port, role);
        Some(Active::Nothing)
    }

    fn remove(&mut self, id: NodeId) -> Option<Active> {
        let stores = |node: &&crate::node::Node| node.running.is_some() && node.role != NodeRole::Gateway;
        if self.nodes.values().filter(stores).count() < 4 {
            return None;
        }
        self.checks.damaged_nodes.insert(id);
        self.order(MetaCommand::RemoveNode { node: id }, FollowUp::Nothing);
        Some(Active::Removed(id))
    }

    /// Drains a node, once nodes know how.
    fn drain(&mut self, id: NodeId) -> Option<Active> {
        let meta = self.nodes.get(&id)?.running.as_ref()?.control.cluster.meta();
        if meta.cluster_version() < ClusterVersion::DRAINING {
            return None;
        }
        self.set_node_state(id, NodeState::Draining);
        Some(Active::Draining(id))
    }

    /// Orders another state of a node.
    pub(crate) fn set_node_state(&mut self, node: NodeId, state: NodeState) {
        self.note(format!("{node} is ordered to be {state}"));
        self.order(MetaCommand::SetNodeState { node, state }, FollowUp::Nothing);
    }

    /// Orders the move of a replica to a node that has none, once moves are recorded.
    fn move_replica(&mut self, which: u64) -> Option<Active> {
        let meta = self.newest_metadata()?;
        if meta.cluster_version() < ClusterVersion::OPERATIONS {
            return None;
        }
        let pick = |number: u64, of: usize| number as usize % of.max(1);
        let shards: Vec<_> = meta.shards().collect();
        let record = *shards.get(pick(which, shards.len()))?;
        let replica = record.intent.get(pick(which >> 8, record.intent.len()))?.replica;
        let is_free = |node: &&NodeRecord| node.state == NodeState::Active && record.desired_on(node.id).is_none();
        let free: Vec<_> = meta.nodes().filter(is_free).map(|node| node.id).collect();
        let (shard, to) = (record.id, *free.get(pick(which >> 16, free.len()))?);
        self.note(format!("{replica} of {shard} is ordered to move to {to}"));
        let (intent_version, reason) = (record.intent_version, OperationReason::Operator);
        self.order(MetaCommand::MoveReplica { shard, replica, to, intent_version, reason }, FollowUp::Nothing);
        Some(Active::Moving(shard, which))
    }

    /// Orders the split of a shard at a key of the clients or beside one, once shards can be split.
    fn split_shard(&mut self, which: u64) -> Option<Active> {
        let meta = self.newest_metadata()?;
        if meta.cluster_version() < ClusterVersion::SPLITS {
            return None;
        }
        let pick = |number: u64, of: usize| number as usize % of.max(1);
        let shards: Vec<_> = meta.shards().filter(|shard| shard.id != ShardId::META).collect();
        let record = *shards.get(pick(which, shards.len()))?;
        if self.faults.flawed.contains(&record.id) {
            return None;
        }
        let collection = meta.collections().find(|collection| collection.id == record.collection)?;
        let keys = keys_apart().map(|key| collection.record_key(key.as_bytes()).into_bytes());
        let buckets =
            (0..collection.buckets).map(|bucket| RecordKey::new(collection.id, Bucket(bucket), &[]).into_bytes());
        let range = &record.descriptor.range;
        let points: Vec<_> = keys.chain(buckets).filter(|at| *at > range.start && range.contains(at)).collect();
        let at = points.get(pick(which >> 8, points.len()))?.clone();
        let (shard, epoch) = (record.id, record.descriptor.epoch);
        self.note(format!("{shard} is ordered to split at {at:?}"));
        self.order(MetaCommand::SplitShard { shard, at, epoch, reason: OperationReason::Operator }, FollowUp::Nothing);
        Some(Active::Nothing)
    }

    /// Orders the merge of a shard with its right neighbour, if both have replicas on the same nodes and shards can be
    /// merged.
    fn merge_shards(&mut self, which: u64) -> Option<Active> {
        let meta = self.newest_metadata()?;
        if meta.cluster_version() < ClusterVersion::MERGES {
            return None;
        }
        let nodes =
            |record: &ShardRecord| record.descriptor.replicas.iter().map(|held| held.node).collect::<BTreeSet<_>>();
        let shards: Vec<_> = meta.shards().filter(|shard| shard.id != ShardId::META).collect();
        let is_flawed = |record: &ShardRecord| self.faults.flawed.contains(&record.id);
        let pairs = shards.iter().flat_map(|left| shards.iter().map(move |right| (*left, *right)));
        let fits = |(left, right): &(&ShardRecord, &ShardRecord)| {
            left.collection == right.collection
                && left.descriptor.range.end == right.descriptor.range.start
                && nodes(left) == nodes(right)
                && !is_flawed(left)
                && !is_flawed(right)
        };
        let pairs: Vec<_> = pairs.filter(fits).collect();
        let (left, right) = *pairs.get(which as usize % pairs.len().max(1))?;
        self.note(format!("{} is ordered to be merged into {}", right.id, left.id));
        let (left, right) = [left, right].map(|record| (record.id, record.descriptor.epoch)).into();
        let reason = OperationReason::Operator;
        self.order(MetaCommand::MergeShards { left, right, reason }, FollowUp::Nothing);
        Some(Active::Merging(left.0, which))
    }

    /// Leaves a merge alone, or cancels it.
    fn change_merge(&mut self, left: ShardId, which: u64) {
        let meta = self.newest_metadata();
        let operation = meta.and_then(|meta| Some(meta.shard(left)?.merge.as_ref()?.operation));
        if let Some(operation) = operation.filter(|_| which >> 24 & 3 == 0) {
            self.change_operation(operation, OperationChange::Cancel);
        }
    }

    /// Has shards split once they have a few records, once nodes do so.
    fn split_by_size(&mut self, which: u64) -> Option<Active> {
        let meta = self.newest_metadata()?;
        if meta.cluster_version() < ClusterVersion::SIZE_SPLITS {
            return None;
        }
        let collection = meta.collections().next()?.id;
        let bytes = SPLIT_BYTES.start() << (which % 3);
        self.note(format!("shards of more than {bytes} bytes are split"));
        self.set_split_bytes(collection, bytes);
        Some(Active::SplittingBySize(collection))
    }

    /// Has shards that came of splits merged again once nobody has used them for a second, from now on: that may be when
    /// the load is over.
    fn merge_unused(&mut self) -> Option<Active> {
        if self.newest_metadata()?.cluster_version() < ClusterVersion::MERGES {
            return None;
        }
        self.note("shards that nobody uses are merged");
        let (key, value) = (Setting::ShardMergeAfterS.key().to_owned(), "1".to_owned());
        self.order(MetaCommand::PutSetting { key, value }, FollowUp::Nothing);
        Some(Active::Nothing)
    }

    fn set_split_bytes(&mut self, collection: CollectionId, bytes: u64) {
        let settings = CollectionSettings { split_bytes: Some(bytes), ..CollectionSettings::NONE };
        self.order(MetaCommand::ChangeCollection { collection, settings }, FollowUp::Nothing);
    }

    /// Leaves a move alone, cancels it, or pauses it for a while.
    fn change_move(&mut self, shard: ShardId, which: u64) {
        let meta = self.newest_metadata();
        let Some(operation) = meta.and_then(|meta| Some(meta.running_of(shard).next()?.id)) else { return };
        match which >> 24 & 3 {
            0 => self.change_operation(operation, OperationChange::Cancel),
            1 | 2 => {
                self.change_operation(operation, OperationChange::Pause);
                self.resume_later(operation, 100_000 << (which >> 26 & 7));
            }
            _ => {}
        }
    }

    fn resume_later(&mut self, operation: OperationId, pause_us: u64) {
        self.faults.paused += 1;
        let at = PAUSED_FROM + self.faults.paused;
        self.faults.active.insert(at, Active::Paused(operation));
        self.schedule(pause_us, Event::Fault(FaultStep::End(at)));
    }

    /// Resumes a move. The order to pause it may not have been carried out yet.
    fn resume_move(&mut self, operation: OperationId) {
        let meta = self.newest_metadata();
        let record = meta.as_ref().and_then(|meta| meta.operation(operation));
        let is_paused = record.is_some_and(|record| record.state == OperationState::Paused);
        let is_pending = self.operator.changes(operation);
        if is_paused && !is_pending {
            self.change_operation(operation, OperationChange::Resume);
        }
        if meta.is_none() || is_paused || is_pending {
            self.resume_later(operation, RESUME_AGAIN_US);
        }
    }

    fn change_operation(&mut self, operation: OperationId, change: OperationChange) {
        let meta = self.newest_metadata();
        let Some(changes) = meta.and_then(|meta| Some(meta.operation(operation)?.changes)) else { return };
        self.note(format!("{operation} gets the order {change:?}"));
        self.order(MetaCommand::ChangeOperation { operation, changes, change }, FollowUp::Nothing);
    }

    fn damage_log(&mut self, id: NodeId, which: u64) -> Option<Active> {
        let node = self.nodes.get(&id)?;
        let replicas = node.disk.replicas().ok()?;
        let (replica, log) = replicas.get(which as usize % replicas.len().max(1))?;
        let entries = log.last.0 - log.truncated.0.0;
        let first = log.truncated.0.0 + 1 + (which >> 8) % entries.max(1);
        node.disk.damage_entries(*replica, LogIndex(first), LogIndex(first + which % 4));
        self.checks.damaged_nodes.insert(id);
        Some(Active::Restart(id))
    }

    fn damage_object(&mut self, id: NodeId, which: u64) -> Option<()> {
        let node = self.nodes.get(&id)?;
        let replicas = node.disk.replicas().ok()?;
        let objects: Vec<_> = replicas.iter().flat_map(|(_, log)| node.disk.needed_by(&log.checkpoint)).collect();
        node.disk.damage_object(*objects.get(which as usize % objects.len().max(1))?);
        self.checks.damaged_nodes.insert(id);
        self.faults.rotted.insert(id);
        Some(())
    }

    /// Has the leader of a shard propose the next range epoch, once the cluster version allows it.
    fn change_range(&mut self, which: u64) -> Option<Active> {
        let (_, meta) = self.leader(ShardId::META)?;
        let running = self.nodes.get(&meta.descriptor.node_of(meta.replica)?)?.running.as_ref()?;
        let meta = running.control.cluster.meta();
        if meta.cluster_version() < ClusterVersion::SHARD_ENTRIES {
            return None;
        }
        let shards: Vec<_> = meta.shards().map(|shard| shard.id).filter(|id| *id != ShardId::META).collect();
        let shard = *shards.get(which as usize % shards.len().max(1))?;
        let (leader, _) = self.leader(shard)?;
        self.note(format!("the range epoch of {shard} grows"));
        self.send_input(leader, Input::ChangeShard { shard, change: ShardChange::Bump });
        Some(Active::Nothing)
    }

    fn end(&mut self, active: Active) {
        match active {
            Active::Down(nodes) => nodes.into_iter().for_each(|node| self.start(node)),
            Active::Cut(cut) => self.restore(&cut),
            Active::Network(before) => self.network.faults = before,
            Active::SlowSource(id) => {
                self.network.slow_sources.remove(&id);
            }
            Active::SlowDisk(id) => {
                if let Some(node) = self.nodes.get_mut(&id) {
                    node.disk_us_max = 2_000;
                }
            }
            Active::FullDisk(id) => {
                if let Some(node) = self.nodes.get_mut(&id) {
                    node.disk.set_full(false);
                }
            }
            Active::BrokenDisk(id) => {
                if let Some(node) = self.nodes.get_mut(&id) {
                    node.disk.set_broken(false);
                }
            }
            Active::Clock(id) => {
                let now_us = self.now_us;
                if let Some(node) = self.nodes.get_mut(&id) {
                    node.clock.correct(now_us, node.wall_offset_ms);
                }
            }
            Active::SplittingBySize(collection) => self.set_split_bytes(collection, 0),
            Active::Removed(id) => {
                // The machine is switched off, whether or not the metadata has the removal.
                self.crash(id);
                if let Some(node) = self.nodes.get_mut(&id) {
                    node.retired = true;
                }
            }
            Active::Backup { node, disk, folder, incarnation, away } => {
                self.roll_back(node, *disk, *folder, incarnation, away);
                away.into_iter().for_each(|away| self.start(away));
            }
            Active::Nothing => {}
            Active::Draining(id) => self.set_node_state(id, NodeState::Active),
            Active::Moving(shard, which) => self.change_move(shard, which),
            Active::Merging(left, which) => self.change_merge(left, which),
            Active::Paused(operation) => self.resume_move(operation),
            Active::Restart(id) => {
                self.crash(id);
                self.start(id);
            }
        }
    }

    /// Restores an older copy of a disk, if the cluster can spare the node and enough peers have seen a later
    /// sequence than the copy holds. A roll-back that no peer can notice is documented as undetectable.
    ///
    /// If a node is `away`, all the others stop with the rolled-back one, so that only these two can verify
    /// each other for a while.
    fn roll_back(
        &mut self,
        id: NodeId,
        disk: Disk,
        folder: Folder,
        incarnation: flotilla_types::Incarnation,
        away: Option<NodeId>,
    ) {
        let copied = disk.recovered();
        let has_seen_more = |node: &crate::node::Node| {
            node.disk.peer_sequences().iter().any(|peer| peer.node == id && peer.sequence > copied)
        };
        let others: Vec<_> = self.nodes.values().filter(|node| node.id != id && !node.retired).collect();
        let present: Vec<_> = others.iter().filter(|node| Some(node.id) != away).collect();
        // Every node that may have acknowledged something together with this one.
        let copied_replicas = disk.replicas().unwrap_or_default();
        let mut voters: BTreeSet<NodeId> = BTreeSet::new();
        for (_, log) in &copied_replicas {
            let led = self.leader(log.shard).map(|(_, replica)| replica.descriptor.replicas).unwrap_or_default();
            let copied = &log.checkpoint.position.descriptor.replicas;
            voters.extend(copied.iter().chain(&led).map(|replica| replica.node));
        }
        let noticeable = present.iter().filter(|node| voters.contains(&node.id)).all(|node| has_seen_more(node));
        let spared = match away {
            None => self.unconverged(LAG_MAX).is_none(),
            // Enough for any group: all but one of its other voters remember.
            Some(away) => {
                self.nodes.get(&away).is_some_and(|node| node.running.is_none() && !node.retired)
                    && present.iter().all(|node| node.running.is_some())
                    && !self.is_losing_data()
            }
        };
        let retired = self.nodes.get(&id).is_none_or(|node| node.retired);
        if !noticeable || !spared || retired || others.len() < 2 {
            self.note(format!("{id} is not rolled back: not possible now"));
            return;
        }
        let stopped: Vec<_> = present.iter().map(|node| node.id).filter(|_| away.is_some()).collect();
        self.crash(id);
        stopped.iter().for_each(|node| self.crash(*node));
        self.note(format!("{id} restarts on an older copy of its disk, up to {copied}"));
        self.checks.damaged_nodes.insert(id);
        self.checks.rolled_back(&disk);
        if let Some(node) = self.nodes.get_mut(&id) {
            // The copy restores the content of the disk, neither its free space nor its health.
            disk.set_full(node.disk.is_full());
            disk.set_broken(node.disk.is_broken());
            (node.disk, node.folder, node.incarnation) = (disk.reopen_with(LogEvidence::Unknown), folder, incarnation);
        }
        self.start(id);
        for node in stopped {
            let delay_us = self.rng.random_range(1_000_000..6_000_000);
            self.schedule(delay_us, Event::Fault(FaultStep::Restart(node)));
        }
    }

    /// The directions that a partition cuts.
    fn cut_of(&self, fault: Fault, id: NodeId, which: u64) -> Cut {
        let all: Vec<_> = self.nodes.keys().copied().collect();
        let others = || all.iter().copied().filter(move |other| *other != id);
        // The bits of `which` put each node on a side.
        let side = |node: NodeId| which >> (node.0 % 16) & 1 == 0;
        let between = |left: &dyn Fn(NodeId) -> bool, right: &dyn Fn(NodeId) -> bool| -> Cut {
            let pairs = all.iter().flat_map(|a| all.iter().map(move |b| (*a, *b)));
            pairs.filter(|(a, b)| (left(*a) && right(*b)) || (right(*a) && left(*b))).collect()
        };
        match fault {
            Fault::Isolate => others().flat_map(|other| [(id, other), (other, id)]).collect(),
            Fault::OneWay if which.is_multiple_of(2) => others().map(|other| (id, other)).collect(),
            Fault::OneWay => others().map(|other| (other, id)).collect(),
            Fault::Bridge => between(&|node| node != id && side(node), &|node| node != id && !side(node)),
            _ => between(&side, &|node| !side(node)),
        }
    }

    /// Tells one leader to transfer its leadership to another voter.
    pub(crate) fn transfer_leader(&mut self, pick: u64) -> Option<()> {
        let led: Vec<_> = self
            .nodes
            .values()
            .flat_map(|node| node.status().into_iter().map(|replica| (node.id, replica)))
            .filter(|(_, replica)| replica.group.as_ref().is_some_and(|group| group.role == Role::Leader))
            .collect();
        let (node, replica) = led.get(pick as usize % led.len().max(1))?;
        let others: Vec<_> = replica.descriptor.replicas.iter().filter(|other| other.node != *node).collect();
        let to = others.get((pick >> 16) as usize % others.len().max(1))?.node;
        let shard: ShardId = replica.shard;
        self.send_input(*node, Input::Transfer { shard, to });
        Some(())
    }

    /// Ends all active faults but pauses; no more begin.
    pub(crate) fn heal(&mut self) {
        self.faults.stopped = true;
        self.note("all faults are healed");
        for (_, active) in std::mem::take(&mut self.faults.active) {
            // A copy that was not restored yet is dropped.
            if !matches!(active, Active::Backup { .. }) {
                self.end(active);
            }
        }
        self.network.heal();
        let now_us = self.now_us;
        // A pause lasts until its end, for which the node's timers wait.
        for node in self.nodes.values_mut() {
            node.fsync_fails = false;
        }
        for node in self.nodes.values_mut() {
            node.clock.correct(now_us, node.wall_offset_ms);
        }
        for id in self.nodes.keys().copied().collect::<Vec<_>>() {
            self.start(id);
        }
    }
}

/// Whether a fault destroys a copy of acknowledged data.
fn loses_data(fault: Fault) -> bool {
    matches!(
        fault,
        Fault::Remove
            | Fault::Wipe
            | Fault::RollBack
            | Fault::LogBitRot
            | Fault::ObjectBitRot
            | Fault::ObjectRots
            | Fault::Flaw
    )
}
