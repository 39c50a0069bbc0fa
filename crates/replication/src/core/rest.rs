//! Resting replicas: which nodes they depend on, and when they must wake.
//!
//! A group at rest sends nothing (see `consensus`); the heartbeats of its leader's node stand for the
//! leader's. So a resting follower wakes when that node falls silent, when the connection to it changes (it
//! may have restarted), or when it says that the leader is gone. A resting leader wakes when the connection
//! to a follower's node comes up: the follower may have restarted, and lack entries. It also wakes when that node says
//! that it has created the follower, empty: until it has a configuration, such a replica has no timer of its own.
//!
//! Replicas that were recovered from disk rest too, and depend on nothing: all of them wake after the start.
//!
//! Wake-ups after such an event are dealt out over ticks, as many in each as [`super::pace`] allows: a node may
//! hold thousands of resting replicas, and each that wakes sends messages and wakes others. A replica that a
//! client wants does not wait for its turn: a request, or any message, wakes it at once.
//!
//! Silence is counted in ticks of this node, not by its clock: a process that was paused has missed ticks,
//! not heartbeats.

use std::collections::{BTreeMap, BTreeSet};

use flotilla_consensus::{self as consensus, Role};
use flotilla_types::{Message, MessageKind, NodeId, ReplicaId, ShardId};

use super::Core;

/// Heartbeat intervals without a heartbeat after which a node is silent.
const SILENT_INTERVALS: u64 = 3;
/// Node heartbeats that name a shard which is not led any more: some may be lost.
const NOT_LED_ROUNDS: u32 = 8;
/// Shards that one node heartbeat names as not led any more, at most.
const NOT_LED_MAX: usize = 1_024;

/// Which resting replicas depend on which nodes.
#[derive(Debug, Default)]
pub(super) struct RestingReplicas {
    /// The nodes that each resting replica depends on.
    nodes: BTreeMap<ReplicaId, Vec<NodeId>>,
    dependents: BTreeMap<NodeId, BTreeSet<ReplicaId>>,
    /// Replicas to wake, and whether the node of their leader is silent.
    to_wake: BTreeMap<ReplicaId, bool>,
    /// The tick at which each node sent its last heartbeat.
    sent_at: BTreeMap<NodeId, u64>,
    /// Nodes that fell silent, and whose dependents have been queued.
    silent: BTreeSet<NodeId>,
    /// Shards whose groups rested under a leader here that is gone, or of which an empty replica was created here, with
    /// the number of heartbeats that still name them.
    not_led: BTreeMap<ShardId, u32>,
}

impl RestingReplicas {
    fn insert(&mut self, replica: ReplicaId, nodes: Vec<NodeId>) {
        self.remove(replica);
        for node in &nodes {
            self.dependents.entry(*node).or_default().insert(replica);
        }
        self.nodes.insert(replica, nodes);
    }

    /// The replica does not rest any more.
    pub(super) fn remove(&mut self, replica: ReplicaId) {
        self.to_wake.remove(&replica);
        for node in self.nodes.remove(&replica).unwrap_or_default() {
            if let Some(dependents) = self.dependents.get_mut(&node) {
                dependents.remove(&replica);
                if dependents.is_empty() {
                    self.dependents.remove(&node);
                }
            }
        }
    }

    /// A node sent a heartbeat.
    pub(super) fn node_sent(&mut self, node: NodeId, tick: u64) {
        self.sent_at.insert(node, tick);
        self.silent.remove(&node);
    }

    /// Forgets nodes that are no peers.
    pub(super) fn set_peers(&mut self, peers: &[NodeId]) {
        self.sent_at.retain(|node, _| peers.contains(node));
        self.silent.retain(|node| peers.contains(node));
    }

    fn is_silent(&self, node: NodeId, tick: u64, silent_ticks: u64) -> bool {
        self.sent_at.get(&node).is_none_or(|sent_at| tick - sent_at >= silent_ticks)
    }

    /// The shards that the next heartbeats name as not led any more.
    pub(super) fn next_not_led(&mut self) -> Vec<ShardId> {
        let mut named = Vec::new();
        self.not_led.retain(|shard, left| {
            if named.len() < NOT_LED_MAX {
                named.push(*shard);
                *left -= 1;
            }
            *left > 0
        });
        named
    }
}

impl<T> Core<T> {
    /// Replicas whose groups rest.
    #[must_use]
    pub fn resting(&self) -> usize {
        self.raft.resting()
    }

    /// A replica rests: notes the nodes that it depends on.
    pub(super) fn on_rests(&mut self, id: ReplicaId) {
        let Some(group) = self.raft.group(id) else { return };
        let (role, _, leader) = group.role();
        let nodes = if role == Role::Leader {
            let replicas = group.descriptor().replicas.iter();
            replicas.map(|replica| replica.node).filter(|node| *node != self.node).collect()
        } else {
            group.node_of(leader).into_iter().collect::<Vec<_>>()
        };
        // A follower must know whose silence to notice.
        let has_leader = !nodes.is_empty() && nodes.iter().all(|node| !self.rest.silent.contains(node));
        self.rest.insert(id, nodes);
        if role != Role::Leader && !has_leader {
            self.rest.to_wake.insert(id, true);
        }
    }

    /// The connection to a node came up or went down: it may have restarted. Leaders wait until it is there.
    pub(super) fn wake_for_node(&mut self, node: NodeId, connected: bool) {
        for id in self.rest.dependents.get(&node).into_iter().flatten() {
            if connected || self.replicas.get(id).is_some_and(|replica| !replica.leads()) {
                self.rest.to_wake.entry(*id).or_insert(false);
            }
        }
    }

    /// A client asks for a replica that does not lead. If it waits for its turn to wake, it wakes now.
    pub(super) fn wake_for_client(&mut self, id: ReplicaId) {
        if let Some(leader_is_silent) = self.rest.to_wake.remove(&id) {
            self.raft.step(consensus::Input::Wake { replica: id, leader_is_silent }, &mut self.raft_effects);
        }
    }

    /// A replica is not used any more. If it led a group that rests, the followers must hear of that.
    pub(super) fn end_rest(&mut self, id: ReplicaId) {
        let rested = self.rest.nodes.contains_key(&id);
        self.rest.remove(id);
        if let Some(replica) = self.replicas.get(&id).filter(|replica| rested && replica.leads()) {
            self.rest.not_led.insert(replica.shard, NOT_LED_ROUNDS);
        }
    }

    /// An empty replica was created, which its group may have rested without.
    pub(super) fn announce_created(&mut self, shard: ShardId) {
        self.rest.not_led.insert(shard, NOT_LED_ROUNDS);
    }

    /// A node names shards that it leads no more, or has empty replicas of.
    pub(super) fn wake_not_led(&mut self, from: NodeId, shards: &[ShardId]) {
        for shard in shards.iter().take(NOT_LED_MAX) {
            if let Some(id) = self.serving.get(shard)
                && self.rest.dependents.get(&from).is_some_and(|dependents| dependents.contains(id))
            {
                self.rest.to_wake.insert(*id, true);
            }
        }
    }

    /// A candidate asks for a vote. If the leader's node is silent, it need not wait until this node notices.
    pub(super) fn wake_if_silent(&mut self, message: &Message) {
        let asks = matches!(message.kind, MessageKind::RequestVote | MessageKind::RequestPreVote);
        let Some([leader]) = self.rest.nodes.get(&message.to).filter(|_| asks).map(Vec::as_slice) else { return };
        let silent_ticks = self.config.raft.election_ticks as u64;
        if self.rest.is_silent(*leader, self.ticks, silent_ticks.max(self.config.node_heartbeat_ticks + 1)) {
            let wake = consensus::Input::Wake { replica: message.to, leader_is_silent: true };
            self.raft.step(wake, &mut self.raft_effects);
        }
    }

    /// Queues the followers whose leaders are on nodes that have fallen silent.
    fn note_silent_nodes(&mut self) {
        let silent_ticks = SILENT_INTERVALS * self.config.node_heartbeat_ticks;
        for (node, dependents) in &self.rest.dependents {
            if !self.rest.is_silent(*node, self.ticks, silent_ticks) || !self.rest.silent.insert(*node) {
                continue;
            }
            for id in dependents {
                // A leader waits for the follower; whoever places replicas knows that its node is gone.
                if self.replicas.get(id).is_some_and(|replica| !replica.leads()) {
                    self.rest.to_wake.insert(*id, true);
                }
            }
        }
    }

    /// Wakes some of the replicas that must, after a look at the nodes that they depend on.
    pub(super) fn wake_dependents(&mut self, wakes_max: usize) {
        self.note_silent_nodes();
        for _ in 0..wakes_max {
            let Some((replica, leader_is_silent)) = self.rest.to_wake.pop_first() else { break };
            self.raft.step(consensus::Input::Wake { replica, leader_is_silent }, &mut self.raft_effects);
        }
    }
}
