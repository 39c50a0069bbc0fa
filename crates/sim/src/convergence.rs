//! The end of a run: all faults are healed, and the cluster must converge within a time limit: no replica
//! missing or surplus, writes succeed, and all replicas of a shard hold the same records.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use flotilla_kv::verify;
use flotilla_membership as membership;
use flotilla_meta::{MetaState, NodeRecord, NodeRole, NodeState};
use flotilla_replication::{Contents, ReplicaStatus, Role};
use flotilla_storage::Log as _;
use flotilla_types::{Holder, KeyRange, NodeId, ReplicaDescriptor, ReplicaId, ReplicaRole, ShardId, VersionRange};
use rand::RngExt as _;

use crate::{clock::WALL_START_MS, world::World};

/// A replica that lacks at most this many entries counts as caught up while clients are writing.
pub(crate) const LAG_MAX: u64 = 64;

/// Time for clients to finish their operations: their longest deadline, and slack.
const DRAIN_MS_MAX: u64 = 12_000;
/// Time for a healed cluster to converge.
const CONVERGE_MS_MAX: u64 = 60_000;
/// Time for [`WRITES_MIN`] writes to succeed in a converged cluster.
const WRITES_MS_MAX: u64 = 20_000;
const WRITES_MIN: usize = 20;
/// Time for a drained node to hand everything over, elections included.
const DRAINED_MS_MAX: u64 = 20_000;
/// Time for the shards of a crashed node to elect other leaders.
const ELECTION_MS: u64 = 2_000;
/// Time in which a drained node must be left alone: others look for leaderships to move every second.
const REST_MS: u64 = 5_000;
/// Time for all replicas of an idle cluster to apply the same entries: longer than a pull waits for an answer
/// that a partition swallowed.
const CATCH_UP_MS_MAX: u64 = 40_000;
/// Holds on objects end within this time after that.
const LET_GO_MS_MAX: u64 = 20_000;
/// Time for the last records that expire soon to become due and to be removed on all replicas, some of which
/// catch up meanwhile.
const EXPIRE_MS_MAX: u64 = 60_000;

impl World {
    /// The replica that leads a shard in the highest term.
    pub(crate) fn leader(&self, shard: ShardId) -> Option<(NodeId, ReplicaStatus)> {
        let all = self.nodes.values().flat_map(|node| node.status().into_iter().map(|replica| (node.id, replica)));
        let led = all.filter(|(_, replica)| replica.shard == shard);
        let led = led.filter(|(_, replica)| replica.group.as_ref().is_some_and(|group| group.role == Role::Leader));
        led.max_by_key(|(_, replica)| replica.group.as_ref().map(|group| group.term))
    }

    /// Why the cluster has not converged; `None` when it has. Then every live node runs, has the newest
    /// metadata and holds no surplus replica, and every shard has its desired replicas, none of them lagging
    /// by more than `lag_max` entries.
    pub(crate) fn unconverged(&self, lag_max: u64) -> Option<String> {
        let Some((node, _)) = self.leader(ShardId::META) else { return Some("no metadata leader".to_owned()) };
        let Some(running) = self.nodes.get(&node).and_then(|node| node.running.as_ref()) else {
            return Some("the metadata leader does not run".to_owned());
        };
        let meta = running.control.cluster.meta().clone();
        self.unconverged_node(&meta)
            .or_else(|| self.rotten())
            .or_else(|| self.flawed())
            .or_else(|| meta.running().next().map(|operation| format!("{} has not ended: {operation:?}", operation.id)))
            .or_else(|| meta.shards().find_map(|record| self.unconverged_shard(&meta, record.id, lag_max)))
            .or_else(|| self.left_over(&meta))
    }

    /// Which replica would not open again, because objects of its checkpoint are damaged, found or not. The
    /// cluster cannot spare another copy before it is replaced.
    fn rotten(&self) -> Option<String> {
        let rotted = self.faults.rotted.iter().filter_map(|id| self.nodes.get(id)).filter(|node| !node.retired);
        rotted
            .flat_map(|node| node.disk.replicas().unwrap_or_default().into_iter().map(move |held| (node, held)))
            .find_map(|(node, (replica, log))| {
                let objects = node.disk.rotten_in(&log.checkpoint);
                (!objects.is_empty()).then(|| format!("{objects:?} of {replica} on {} are damaged", node.id))
            })
    }

    fn unconverged_node(&self, meta: &MetaState) -> Option<String> {
        for node in self.nodes.values() {
            let active = meta.node(node.id).is_some_and(|record| record.state == NodeState::Active);
            match &node.running {
                _ if node.retired && active => {
                    return Some(format!("{} is retired and still active in the metadata", node.id));
                }
                _ if node.retired => {}
                None => return Some(format!("{} does not run", node.id)),
                Some(_) if !active => {}
                Some(_) if node.paused_until_us > self.now_us => return Some(format!("{} is paused", node.id)),
                Some(running) if running.control.cluster.meta().version() != meta.version() => {
                    return Some(format!("{} has stale metadata", node.id));
                }
                Some(_) => {}
            }
        }
        None
    }

    /// Which replica is of a shard that is gone.
    fn left_over(&self, meta: &MetaState) -> Option<String> {
        let held = self.nodes.values().filter(|node| !node.retired).flat_map(|node| node.status());
        let gone = held.into_iter().find(|replica| meta.shard(replica.shard).is_none());
        gone.map(|replica| format!("{} of {}, which is gone, still exists", replica.replica, replica.shard))
    }

    fn unconverged_shard(&self, meta: &MetaState, shard: ShardId, lag_max: u64) -> Option<String> {
        let record = meta.shard(shard)?;
        let Some((_, leader)) = self.leader(shard) else { return Some(format!("{shard} has no leader")) };
        let Some(group) = &leader.group else { return Some(format!("{shard} has no group")) };
        let stores = |node: &&NodeRecord| node.state == NodeState::Active && node.role != NodeRole::Gateway;
        let live = meta.nodes().filter(stores).count();
        let wanted = usize::from(record.replicas_desired.max(3)).min(if live < 3 { 1 } else { live });
        let intent: BTreeSet<_> = record.intent.iter().map(|held| held.replica).collect();
        let voters: BTreeSet<_> = group.conf.voters.iter().copied().collect();
        if group.conf.is_joint() || !group.conf.learners.is_empty() || voters != intent || voters.len() < wanted.min(3)
        {
            let intent = &record.intent;
            return Some(format!(
                "{shard} has {:?}, and of {live} active nodes these are desired: {intent:?}",
                group.conf
            ));
        }
        if record.descriptor.epoch != leader.descriptor.epoch {
            return Some(format!("the metadata has an older epoch of {shard}"));
        }
        for node in self.nodes.values() {
            for replica in node.status().iter().filter(|replica| replica.shard == shard) {
                if !voters.contains(&replica.replica) {
                    return Some(format!("{} of {} is surplus and still exists", replica.replica, node.id));
                }
            }
        }
        let held: Vec<_> = self.nodes.values().flat_map(crate::node::Node::status).collect();
        // A leader that was just elected may not know all that is committed.
        let groups = held.iter().filter(|replica| replica.shard == shard).filter_map(|replica| replica.group.as_ref());
        let commit = groups.map(|group| group.commit.0).max().unwrap_or_default();
        let lags = |voter: &&flotilla_types::ReplicaId| {
            let replica = held.iter().find(|replica| replica.replica == **voter);
            replica.is_none_or(|replica| replica.group.is_none() || replica.applied.0 + lag_max < commit)
                || !self.nodes.values().any(|node| node.has_loaded(**voter))
        };
        voters.iter().find(lags).map(|voter| format!("{voter} of {shard} lags"))
    }

    /// Which active node another one does not consider alive.
    fn unheard(&self) -> Option<String> {
        let running =
            || self.nodes.values().filter_map(|node| Some((node.id, &node.running.as_ref()?.control.cluster)));
        for (id, cluster) in running() {
            let is_active = |id| cluster.meta().node(id).is_some_and(|record| record.state == NodeState::Active);
            for (other, _) in running() {
                let (state, _) = cluster.members().liveness(other);
                if is_active(id) && is_active(other) && state != membership::NodeState::Alive {
                    return Some(format!("{other} is {state} to {id}"));
                }
            }
        }
        None
    }

    /// What is not at the last cluster version yet: the cluster, or the state machine of a replica.
    fn unswitched(&self) -> Option<String> {
        let last = VersionRange::supported().max;
        let (node, _) = self.leader(ShardId::META)?;
        let meta = self.nodes.get(&node)?.running.as_ref()?.control.cluster.meta();
        if meta.cluster_version() != last {
            return Some(format!("the cluster is at version {}", meta.cluster_version()));
        }
        let held = self.nodes.values().flat_map(crate::node::Node::status);
        let mut behind = held.filter(|replica| replica.shard != ShardId::META && replica.version != Some(last));
        behind.next().map(|replica| format!("{} of {} is at {:?}", replica.replica, replica.shard, replica.version))
    }

    /// Heals all faults and checks that the cluster recovers. Panics when it does not.
    pub(crate) fn check_convergence(&mut self) {
        self.heal();
        self.stop_values();
        self.drain_clients();
        self.resume_clients();
        if !self.await_no_flaws() {
            self.drain_clients();
            return;
        }
        let lacking =
            |world: &Self| world.unconverged(LAG_MAX).or_else(|| world.unheard()).or_else(|| world.unswitched());
        let converged = self.run_until(CONVERGE_MS_MAX, |world| world.operator.is_idle() && lacking(world).is_none());
        assert!(
            converged,
            "not converged within {CONVERGE_MS_MAX} ms: {}\n{}",
            lacking(self).unwrap_or_else(|| "orders are pending".to_owned()),
            self.describe()
        );
        let before = self.workload.acknowledged();
        let writes = self.run_until(WRITES_MS_MAX, |world| world.workload.acknowledged() >= before + WRITES_MIN);
        assert!(writes, "too few writes within {WRITES_MS_MAX} ms after convergence\n{}", self.describe());
        self.drain_clients();
        // A leader that is elected now knows less than its predecessor of what is committed.
        let pick = self.rng.random();
        self.transfer_leader(pick);
        if self.plan.expiring_percent > 0 {
            let removed = (0..EXPIRE_MS_MAX).step_by(500).any(|_| {
                self.run_ms(500);
                self.verify_expiries().is_ok_and(|due| due.is_none())
            });
            assert!(removed, "due records stay: {:?}\n{}", self.verify_expiries(), self.describe());
        }
        let caught_up = self.run_until(CATCH_UP_MS_MAX, |world| world.unconverged(0).is_none());
        assert!(caught_up, "replicas do not catch up: {:?}\n{}", self.unconverged(0), self.describe());
        self.compare_replicas();
        self.check_values();
        let let_go = self.run_until(LET_GO_MS_MAX, |world| world.held_in_vain().is_none());
        assert!(let_go, "objects are kept for ever: {:?}\n{}", self.held_in_vain(), self.describe());
        if self.plan.drains_at_rest {
            self.check_draining();
        }
    }

    /// A hold on objects that nothing needs once all replicas have caught up: whoever should have ended it
    /// keeps the objects for ever.
    fn held_in_vain(&self) -> Option<String> {
        for node in self.nodes.values().filter(|node| node.running.is_some() && !node.retired) {
            let replicas = node.disk.replicas().expect("a log in memory");
            let is_here = |id| replicas.iter().any(|(replica, _)| *replica == id);
            let in_vain = |holder: &Holder| match holder {
                Holder::Checkpoint(id) => !is_here(*id),
                Holder::Log { replica, index, .. } => {
                    let log = replicas.iter().find(|(id, _)| id == replica);
                    !log.is_some_and(|(_, log)| log.truncated.0 < *index && *index <= log.last)
                }
                Holder::Merge(_)
                | Holder::Receiver(_)
                | Holder::Offer { .. }
                | Holder::Parked(_)
                | Holder::Request { .. }
                | Holder::Upload(_)
                | Holder::Fetch(_) => true,
            };
            if let Some(holder) = node.disk.holders().into_iter().find(in_vain) {
                return Some(format!("{holder:?} on {}", node.id));
            }
        }
        None
    }

    /// Drains a node of the converged cluster, brings elections about, and takes it back. Panics when it
    /// leads shards that others can lead, or when a replica is placed on it.
    fn check_draining(&mut self) {
        let active = |meta: &MetaState| {
            let nodes = meta.nodes().filter(|node| node.state == NodeState::Active);
            nodes.map(|node| node.id).collect::<Vec<_>>()
        };
        let Some(meta) = self.newest_metadata() else { return };
        let nodes = active(&meta);
        if nodes.len() < 3 {
            return;
        }
        let (drained, other) = (nodes[0], nodes[1]);
        // By shard: a damaged replica is replaced where it is if no other node has room for it.
        let held: BTreeSet<_> = meta.desired_on(drained).map(|(shard, _)| shard.id).collect();
        self.set_node_state(drained, NodeState::Draining);
        self.resume_clients();
        // A copy of an earlier order may arrive after this one, and take the node back.
        let is_draining = |world: &Self| {
            let meta = world.newest_metadata();
            let record = meta.as_ref().and_then(|meta| meta.node(drained));
            record.is_none_or(|record| record.state == NodeState::Draining)
        };
        // Without a leader of the metadata group nothing says who leads in vain.
        let emptied = |world: &Self| {
            let is_known = world.operator.is_idle() && world.newest_metadata().is_some();
            is_known && (world.leads_in_vain(drained).is_none() || !is_draining(world))
        };
        let drains = self.run_until(DRAINED_MS_MAX, |world| emptied(world));
        assert!(drains, "{drained} is not drained: {:?}\n{}", self.leads_in_vain(drained), self.describe());
        self.crash(other);
        self.run_ms(ELECTION_MS);
        self.start(other);
        let drains = self.run_until(DRAINED_MS_MAX, |world| world.unheard().is_none() && emptied(world));
        assert!(drains, "{drained} leads after elections: {:?}\n{}", self.leads_in_vain(drained), self.describe());
        let others_are_active = |world: &Self| {
            let meta = world.newest_metadata();
            meta.is_none_or(|meta| meta.nodes().all(|node| node.id == drained || node.state != NodeState::Draining))
        };
        // Nothing brings a leadership back while nothing fails.
        for _ in 0..REST_MS / 100 {
            self.run_ms(100);
            // The copy of an earlier order may drain another node, so that none of a shard's may lead.
            if !is_draining(self) || !others_are_active(self) {
                break;
            }
            let back = self.leads_in_vain(drained);
            assert_eq!(back, None, "{drained} is given a leadership\n{}", self.describe());
        }
        let placed = self.newest_metadata().is_none_or(|meta| {
            // What is split off a shard begins beside its replicas.
            let is_new = |(shard, _): (&flotilla_meta::ShardRecord, _)| {
                !held.contains(&shard.id) && shard.parent.is_none_or(|parent| !held.contains(&parent))
            };
            !meta.desired_on(drained).any(is_new) || !is_draining(self)
        });
        assert!(placed, "a replica was placed on {drained}");
        self.set_node_state(drained, NodeState::Active);
        let back = self.run_until(CONVERGE_MS_MAX, |world| {
            world.operator.is_idle()
                && world.newest_metadata().is_some_and(|meta| active(&meta).contains(&drained))
                && world.unconverged(LAG_MAX).is_none()
        });
        assert!(back, "{drained} is not taken back: {:?}\n{}", self.unconverged(LAG_MAX), self.describe());
        self.drain_clients();
    }

    /// The metadata of the metadata group's leader.
    pub(crate) fn newest_metadata(&self) -> Option<std::sync::Arc<MetaState>> {
        let (node, _) = self.leader(ShardId::META)?;
        Some(self.nodes.get(&node)?.running.as_ref()?.control.cluster.meta().clone())
    }

    /// A shard that the node leads while an active node holds another voter of it, which stays.
    fn leads_in_vain(&self, node: NodeId) -> Option<ShardId> {
        let meta = self.newest_metadata()?;
        let is_active = |id| meta.node(id).is_some_and(|record| record.state == NodeState::Active);
        let can_hand_over = |shard: &&flotilla_meta::ShardRecord| {
            let Some((leader, replica)) = self.leader(shard.id) else { return false };
            // One that is about to be removed takes no leadership.
            let stays = |held: &&ReplicaDescriptor| shard.desired_on(held.node) == Some(held.replica);
            let mut others = replica.descriptor.replicas.iter().filter(|held| held.node != node).filter(stays);
            leader == node && others.any(|held| held.role == ReplicaRole::Voter && is_active(held.node))
        };
        meta.shards().find(can_hand_over).map(|shard| shard.id)
    }

    /// Pauses all clients and waits until no operation is in flight.
    fn drain_clients(&mut self) {
        self.workload.set_paused(true);
        let idle = self.run_until(DRAIN_MS_MAX, |world| world.workload.is_idle());
        assert!(idle, "clients wait for answers beyond their deadlines\n{}", self.describe());
    }

    /// A replica that holds due records. Fails with one that does not serve, and panics when the state of one
    /// disagrees with its records.
    fn verify_expiries(&self) -> Result<Option<ReplicaId>, ReplicaId> {
        let now_ms = WALL_START_MS + self.now_ms();
        let mut due = None;
        for node in self.nodes.values() {
            for replica in node.status().iter().filter(|replica| replica.shard != ShardId::META) {
                let id = replica.replica;
                let held = node.running.as_ref().map(|running| running.applier.contents(id));
                let Some(Contents::AtRest(held)) = held else { return Err(id) };
                let verified = verify(&held.system, &*held.records);
                let found =
                    verified.unwrap_or_else(|error| panic!("{id} of {}: {error}\n{}", node.id, self.describe()));
                if found.first_expiry_ms.is_some_and(|at_ms| at_ms <= now_ms) {
                    due = Some(id);
                }
            }
        }
        Ok(due)
    }

    /// Asserts that all replicas of a shard hold the same records and system state.
    fn compare_replicas(&self) {
        let mut first = BTreeMap::new();
        for node in self.nodes.values().filter(|node| node.running.is_some()) {
            for replica in node.status() {
                let held = node.running.as_ref().map(|running| running.applier.contents(replica.replica));
                let Some(Contents::AtRest(held)) = held else {
                    panic!("{} of {} cannot be read", replica.replica, node.id)
                };
                let Ok(records) = held.records.scan(&KeyRange::all(), usize::MAX, usize::MAX) else {
                    panic!("{} of {} cannot be scanned", replica.replica, node.id)
                };
                // A replica may not have checkpointed since a split, and have what the other shard has got.
                let is_own = |key: &Bytes| held.range.contains(key) || KeyRange::internal().contains(key);
                let records: Vec<_> = records.into_iter().filter(|(key, _)| is_own(key)).collect();
                let found = (held.system, records);
                let (other, others) = first.entry(replica.shard).or_insert_with(|| (replica.replica, found.clone()));
                let (other, shard) = (*other, replica.shard);
                assert_eq!(
                    others.0, found.0,
                    "{other} and {} of {shard} differ in their system state",
                    replica.replica
                );
                assert_eq!(others.1, found.1, "{other} and {} of {shard} differ in their records", replica.replica);
            }
        }
    }

    /// The replicas of every node as text, for failure messages.
    pub(crate) fn describe(&self) -> String {
        let mut lines = format!("at {} ms\n", self.now_ms());
        if let Some(meta) = self.newest_metadata() {
            meta.merges().for_each(|(left, merge)| lines += &format!("into {left}: {merge:?}\n"));
        }
        for node in self.nodes.values() {
            let state = match &node.running {
                Some(running) => format!("up, metadata version {}", running.control.cluster.meta().version()),
                None if node.retired => "retired".to_owned(),
                None => "down".to_owned(),
            };
            lines += &format!("{} {state} {}\n", node.id, node.incarnation);
            for replica in node.status() {
                let group = replica.group.map(|group| {
                    let followers = group.followers.iter().map(|follower| {
                        format!(
                            "{}@{}{}",
                            follower.replica,
                            follower.matched,
                            if follower.in_snapshot { "s" } else { "" }
                        )
                    });
                    let followers: Vec<_> = followers.collect();
                    format!(
                        "{:?} {} of {} commit {} last {} truncated {} voters {:?}/{:?} learners {:?} {followers:?}",
                        group.role,
                        group.term,
                        group.leader,
                        group.commit,
                        group.last,
                        group.truncated,
                        group.conf.voters,
                        group.conf.voters_outgoing,
                        group.conf.learners,
                    )
                });
                lines += &format!(
                    "  {} {} {:?}{}applied {} checkpoint {} {}\n",
                    replica.shard,
                    replica.replica,
                    replica.descriptor.epoch,
                    if replica.descriptor.is_frozen() { " frozen " } else { " " },
                    replica.applied,
                    replica.checkpoint,
                    group.as_deref().unwrap_or("no group")
                );
            }
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Plan;

    /// A cluster of three that has formed.
    fn formed(plan: Plan) -> World {
        let mut world = World::new(Plan { nodes: 3, load_while_forming: false, faults: Vec::new(), ..plan }, false);
        world.found_cluster();
        for _ in 1..3 {
            let port = world.next_port();
            world.join(port, NodeRole::default());
        }
        let is_formed = |world: &mut World| world.nodes.len() == 3 && world.unconverged(LAG_MAX).is_none();
        assert!(world.run_until(60_000, is_formed), "{}", world.describe());
        world
    }

    /// Damage that a restart is about to find must not look like a replica that can be spared.
    #[test]
    fn a_cluster_has_not_converged_while_a_replica_loads_its_records() {
        let mut world = formed(Plan { work_slow_per_mille: 1_000, ..Plan::draw(1) });
        let id = NodeId(2);
        world.crash(id);
        world.start(id);
        for _ in 0..300 {
            world.run_ms(5);
            let node = &world.nodes[&id];
            let loads = node.status().iter().any(|replica| !node.has_loaded(replica.replica));
            assert!(!loads || world.unconverged(LAG_MAX).is_some(), "{}", world.describe());
        }
    }

    #[test]
    fn replicas_that_count_as_equal_are_equal_during_a_leader_transfer() {
        for seed in 0..8 {
            let mut world = formed(Plan::draw(seed));
            world.start_clients();
            world.run_ms(500);
            world.drain_clients();
            for pick in 0..8 {
                world.transfer_leader(pick << 16 | pick);
            }
            for _ in 0..200 {
                world.run_ms(1);
                if world.unconverged(0).is_none() {
                    world.compare_replicas();
                }
            }
        }
    }
}
