//! Balances leaderships: each node transfers those that another node should hold.
//!
//! Who should lead each shard is a function of the metadata and of which nodes are up, so nodes that see the
//! same agree. A node that leads more shards than it should transfers the excess, each to the node that
//! should lead it, and first to those that lead too few: no leadership moves twice, and none moves between
//! nodes that lead as many as they should. While nodes do not agree, a shard that came back waits twice as
//! long each time.
//!
//! A node that drains or leaves should lead nothing. It hands over whatever another node can lead, also what
//! an election brought back to it, and waits for none of it: no other node hands anything to it.
//!
//! How many transfers are in flight follows from the excess, up to [`TRANSFERS_MAX`]: thousands move within
//! seconds, and a few cause no burst. A pass costs what has changed and what another node should lead. The
//! preferred leaders are computed again, for all shards, only when what they depend on has changed: at once
//! when a node may lead or may no longer, and after a pause that grows with the shards when their voters
//! have changed.

use std::collections::BTreeMap;

use flotilla_membership::NodeState;
use flotilla_meta::{MetaState, NodeRole, NodeState as AdminState, ShardRecord};
use flotilla_placement::preferred_leaders;
use flotilla_replication::{GroupStatus, ReplicaStatus};
use flotilla_types::{Incarnation, NodeId, ReplicaId, ShardId};

use super::{Action, Reconciler, View, last_look::LastLook};

/// Transfers that a node has in flight, at most. Divided among the nodes that leaderships may move to, so
/// that about as many are in flight to a node that all others transfer to. Each stops its shard for a vote.
pub const TRANSFERS_MAX: usize = 256;
/// Transfers that may be in flight however small the excess is.
const TRANSFERS_MIN: usize = 4;
/// The excess divided by this is how many leaderships are in flight together.
const SHARE: usize = 4;

/// Interval while leaderships move, in milliseconds.
const BUSY_MS: u64 = 100;
/// Interval at other times, in milliseconds; also between two computations because of changed voters.
const IDLE_MS: u64 = 1_000;
/// Or one millisecond for so many shards, if that is longer. Computing takes some microseconds for each.
const SHARDS_PER_MS: u64 = 2;
/// How long a transfer counts as in flight at most, in milliseconds: Raft gives it up after an election
/// timeout.
const IN_FLIGHT_MS: u64 = 1_000;
/// Minimum time between the first two transfers of one shard, in milliseconds; it doubles with each further
/// one.
const TRANSFER_AGAIN_MS: u64 = 10_000;
/// How often that time doubles at most.
const DOUBLINGS_MAX: u32 = 6;
/// How long a node must be up before it gets leaderships, in milliseconds: it may have to load its shards.
const PREFERRED_AFTER_MS: u64 = 3_000;
/// How many committed entries the new leader may lack.
const LAG_ENTRIES_MAX: u64 = 64;

/// Transfers leaderships that other nodes should hold.
#[derive(Debug, Default)]
pub struct Leaders {
    preferred: Preferred,
    last_look: LastLook,
    /// The shards that are led here and that another node should lead.
    misplaced: BTreeMap<ShardId, NodeId>,
    /// The last transfer of each shard from here, for twice as long as it delays the next one.
    moved: BTreeMap<ShardId, Transfer>,
    /// The last start of each node and when it was noticed: 0 if before this reconciler began.
    starts: BTreeMap<NodeId, (Incarnation, u64)>,
    busy: bool,
}

/// Who should lead, and what that was computed from.
#[derive(Debug, Default)]
struct Preferred {
    leaders: BTreeMap<ShardId, NodeId>,
    /// The nodes that may lead, with their weights.
    usable: BTreeMap<NodeId, u32>,
    /// The metadata that was looked at last.
    meta: MetaState,
    /// Whether voters have changed since.
    is_outdated: bool,
    computed_ms: u64,
    /// By how much each node leads more shards than it should, among those with a replica here. The metadata
    /// group does not count.
    excess: BTreeMap<NodeId, i64>,
}

#[derive(Debug, Clone, Copy)]
struct Transfer {
    to: NodeId,
    at_ms: u64,
    /// Transfers of the shard before, each soon after the last.
    repeated: u32,
}

impl Transfer {
    fn is_in_flight(&self, now_ms: u64) -> bool {
        self.at_ms + IN_FLIGHT_MS > now_ms
    }

    fn wait_ms(&self) -> u64 {
        TRANSFER_AGAIN_MS << self.repeated.min(DOUBLINGS_MAX)
    }
}

impl Leaders {
    /// Makes the next pass look at every shard.
    #[cfg(test)]
    pub(super) fn look_anew(&mut self) {
        self.last_look = LastLook::default();
        self.preferred.excess.clear();
        self.misplaced.clear();
    }

    /// The nodes that may lead, with their weights: in service, and up for a while since they started.
    fn usable(&mut self, view: &View<'_>) -> BTreeMap<NodeId, u32> {
        let me = view.me.node;
        let is_first_pass = self.starts.is_empty();
        let mut usable = BTreeMap::new();
        self.starts.retain(|node, _| view.meta.node(*node).is_some());
        for node in view.meta.nodes() {
            let noticed_ms = if is_first_pass { 0 } else { view.now_ms };
            let start = self.starts.entry(node.id).or_insert((node.incarnation, noticed_ms));
            if start.0 != node.incarnation {
                *start = (node.incarnation, view.now_ms);
            }
            let (state, since_ms) = view.members.liveness(node.id);
            let up_ms = view.now_ms.saturating_sub(since_ms.max(start.1));
            let up = state == NodeState::Alive && (node.id == me || up_ms >= PREFERRED_AFTER_MS);
            if up && node.state == AdminState::Active && node.role != NodeRole::Gateway {
                usable.insert(node.id, node.role.weight());
            }
        }
        usable
    }

    /// Looks at what has changed, or at all replicas here if the preferred leaders have.
    fn look(&mut self, view: &View<'_>) {
        let usable = self.usable(view);
        let computed = self.preferred.update(view, usable);
        let mut shards = self.last_look.changes(view, |before, after| {
            self.preferred.count(before, -1);
            self.preferred.count(after, 1);
            true
        });
        if computed {
            self.preferred.excess.clear();
            view.replicas.iter().for_each(|replica| self.preferred.count(Some(replica), 1));
            shards.extend(view.replicas.iter().map(|replica| replica.shard));
        }
        for shard in shards {
            let led = view.leader_of(shard).is_some();
            match self.preferred.other_leader(view, shard).filter(|_| led) {
                Some(to) => self.misplaced.insert(shard, to),
                None => self.misplaced.remove(&shard),
            };
        }
    }

    /// How many transfers are in flight to each node.
    fn in_flight(&self, view: &View<'_>) -> BTreeMap<NodeId, usize> {
        let mut in_flight = BTreeMap::new();
        for (shard, transfer) in &self.moved {
            if transfer.is_in_flight(view.now_ms) && self.misplaced.contains_key(shard) {
                *in_flight.entry(transfer.to).or_default() += 1;
            }
        }
        in_flight
    }

    /// The leaderships here that another node should hold and can take over. Without an excess only that of
    /// the metadata group, which is the first shard: a node may lead many for another that has as many.
    fn ready(&self, view: &View<'_>) -> Vec<(ShardId, NodeId)> {
        let has_excess = self.preferred.excess_of(view.me.node) > 0;
        let mut ready = Vec::new();
        let empties = empties(view);
        for (shard, to) in self.misplaced.iter().take_while(|(shard, _)| has_excess || **shard == ShardId::META) {
            let (to, Some((replica, group))) = (*to, view.leader_of(*shard)) else { continue };
            match self.moved.get(shard) {
                Some(last) if last.is_in_flight(view.now_ms) => {}
                Some(last) if !empties && last.at_ms + last.wait_ms() > view.now_ms => {}
                _ if replica.descriptor.replica_on(to).is_some_and(|held| is_ready(group, held.replica)) => {
                    ready.push((*shard, to));
                }
                _ => {}
            }
        }
        ready
    }
}

impl Preferred {
    /// Returns whether the preferred leaders were computed again.
    fn update(&mut self, view: &View<'_>, usable: BTreeMap<NodeId, u32>) -> bool {
        let voters_differ = |(_, before, after): (_, Option<&ShardRecord>, Option<&ShardRecord>)| {
            before.map(|shard| &shard.descriptor.replicas) != after.map(|shard| &shard.descriptor.replicas)
        };
        self.is_outdated |= view.meta.shard_changes(&self.meta).any(voters_differ);
        self.meta = view.meta.clone();
        let pause_ms = IDLE_MS.max(self.leaders.len() as u64 / SHARDS_PER_MS);
        let is_due = self.is_outdated && self.computed_ms + pause_ms <= view.now_ms;
        if !is_due && self.usable == usable {
            return false;
        }
        // Balanced separately, because leading the metadata group is almost no work: counted together, a node
        // would lose a shard to it.
        let (meta, shards): (Vec<_>, Vec<_>) =
            view.meta.shards().map(|shard| &shard.descriptor).partition(|shard| shard.shard == ShardId::META);
        let mut leaders = preferred_leaders(shards, &usable);
        leaders.extend(preferred_leaders(meta, &usable));
        (self.leaders, self.usable) = (leaders, usable);
        (self.is_outdated, self.computed_ms) = (false, view.now_ms);
        true
    }

    /// The node that should lead this shard, if it is another one. A voter that the shard is about to replace
    /// should not: it would have to pass the leadership on.
    fn other_leader(&self, view: &View<'_>, shard: ShardId) -> Option<NodeId> {
        let to = *self.leaders.get(&shard).filter(|to| **to != view.me.node)?;
        let intent = &view.meta.shard(shard)?.intent;
        (intent.is_empty() || intent.iter().any(|held| held.node == to)).then_some(to)
    }

    /// Counts a replica here for the excess, or no longer.
    fn count(&mut self, replica: Option<&ReplicaStatus>, change: i64) {
        let Some(replica) = replica.filter(|replica| replica.shard != ShardId::META) else { return };
        let leader = replica.group.as_ref().and_then(|group| replica.descriptor.node_of(group.leader));
        if let (Some(leader), Some(preferred)) = (leader, self.leaders.get(&replica.shard)) {
            *self.excess.entry(leader).or_default() += change;
            *self.excess.entry(*preferred).or_default() -= change;
        }
    }

    fn excess_of(&self, node: NodeId) -> i64 {
        self.excess.get(&node).copied().unwrap_or(0)
    }

    /// Which of the leaderships that are ready to move are transferred now.
    fn choose(
        &self,
        view: &View<'_>,
        ready: &[(ShardId, NodeId)],
        mut in_flight: BTreeMap<NodeId, usize>,
    ) -> Vec<(ShardId, NodeId)> {
        let (meta, ready): (Vec<_>, Vec<_>) = ready.iter().partition(|(shard, _)| *shard == ShardId::META);
        if ready.is_empty() {
            return meta;
        }
        let mine = usize::try_from(self.excess_of(view.me.node)).unwrap_or(0);
        let moving: usize = in_flight.values().sum();
        let together_max = (mine / SHARE).clamp(TRANSFERS_MIN, TRANSFERS_MAX).min(mine);
        let mut budget = together_max.saturating_sub(moving);
        let others = self.usable.keys().filter(|node| **node != view.me.node).count();
        let to_each_max = (TRANSFERS_MAX / others.max(1)).max(1);
        let mut chosen = Vec::new();
        // Those to nodes that lead too few come first. Where there are none, the excess goes through nodes
        // that lead enough and share shards with those that do not.
        for only_to_needy in [true, false] {
            for &(shard, to) in &ready {
                let to_this = in_flight.entry(to).or_default();
                let needs_more = self.excess_of(to) + (*to_this as i64) < 0;
                if budget > 0 && *to_this < to_each_max && (needs_more || !only_to_needy) {
                    (budget, *to_this) = (budget - 1, *to_this + 1);
                    chosen.push((shard, to));
                }
            }
            if moving > 0 || !chosen.is_empty() {
                break;
            }
        }
        chosen.extend(meta);
        chosen
    }
}

impl Reconciler for Leaders {
    fn interval_ms(&self) -> u64 {
        if self.busy { BUSY_MS } else { IDLE_MS }
    }

    fn reconcile(&mut self, view: &View<'_>) -> Vec<Action> {
        let now_ms = view.now_ms;
        self.look(view);
        self.moved.retain(|_, transfer| transfer.at_ms + 2 * transfer.wait_ms() > now_ms);
        let (ready, in_flight) = (self.ready(view), self.in_flight(view));
        let moving = !in_flight.is_empty() || (empties(view) && !self.misplaced.is_empty());
        let chosen = self.preferred.choose(view, &ready, in_flight);
        for (shard, to) in &chosen {
            let repeated = self.moved.get(shard).map_or(0, |last| last.repeated + 1);
            self.moved.insert(*shard, Transfer { to: *to, at_ms: now_ms, repeated });
        }
        self.busy = moving || !chosen.is_empty();
        chosen.into_iter().map(|(shard, to)| Action::Transfer { shard, to }).collect()
    }
}

/// Whether this node is to lead nothing.
fn empties(view: &View<'_>) -> bool {
    view.meta.node(view.me.node).is_some_and(|me| me.state != AdminState::Active)
}

/// Whether a voter can take over at once.
fn is_ready(group: &GroupStatus, successor: ReplicaId) -> bool {
    !group.conf.is_joint()
        && group.conf.voters.contains(&successor)
        && group.followers.iter().any(|follower| {
            follower.replica == successor
                && follower.recently_active
                && !follower.in_snapshot
                && follower.matched.0 > 0
                && follower.matched.0 + LAG_ENTRIES_MAX >= group.commit.0
        })
}

#[cfg(test)]
#[path = "leaders_tests.rs"]
mod tests;
