//! The vocabulary of the tests: operator actions, faults, and the final checks.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use flotilla_replication::{ConfChange, Input, ReplicaStatus, Role, refs_of};
use flotilla_storage::{Log as _, StateEngine as _};
use flotilla_types::{ConfState, Epoch, KeyRange, NodeId, ReplicaDescriptor, ReplicaId, ReplicaRole, ShardDescriptor};
use rand::RngExt as _;

use super::{Node, SHARD, World, clients::get, node::Backup};

/// Deadline for anything that a healthy cluster does, milliseconds.
const DEADLINE_MS: u64 = 20_000;

/// A descriptor with one voter on each of these nodes; a replica's id is its node's number.
pub(crate) fn descriptor(nodes: &[u64]) -> ShardDescriptor {
    let voter = |id: &u64| ReplicaDescriptor { replica: ReplicaId(*id), node: NodeId(*id), role: ReplicaRole::Voter };
    ShardDescriptor {
        shard: SHARD,
        range: KeyRange::all(),
        epoch: Epoch { range: 1, config: 1 },
        replicas: nodes.iter().map(voter).collect(),
    }
}

impl World {
    /// A world whose first `founders` nodes have founded the shard and elected a leader.
    pub(crate) fn founded(seed: u64, nodes: u64, founders: u64) -> Self {
        let mut world = Self::new(seed, nodes);
        let founders: Vec<_> = (1..=founders).collect();
        for node in &founders {
            world.request_replica(ReplicaId(*node), NodeId(*node), descriptor(&founders), true);
        }
        world.run_until(DEADLINE_MS, "a leader", |world| world.leader().is_some());
        world
    }

    /// Requests a replica, repeatedly until the node has created it.
    pub(crate) fn request_replica(
        &mut self,
        replica: ReplicaId,
        node: NodeId,
        descriptor: ShardDescriptor,
        founding: bool,
    ) {
        self.desired.insert(replica, (node, descriptor, founding));
    }

    pub(super) fn reconcile(&mut self) {
        let here: BTreeSet<_> = self.nodes.values().flat_map(Node::status).map(|replica| replica.replica).collect();
        for (replica, (node, descriptor, founding)) in self.desired.clone() {
            if !here.contains(&replica) {
                self.input(node, Input::Create { replica, descriptor, founding });
            }
        }
        if self.rng.random_range(0..1_000) >= self.log_release_per_mille {
            return;
        }
        let node = NodeId(self.rng.random_range(1..=self.nodes.len() as u64));
        let replicas = self.nodes[&node].status();
        if !replicas.is_empty() {
            let replica = replicas[self.rng.random_range(0..replicas.len())].replica;
            self.input(node, Input::ReleaseLog { replica });
        }
    }

    /// The leader of the highest term among running nodes.
    pub(crate) fn leader(&self) -> Option<(NodeId, ReplicaStatus)> {
        let replicas = self.nodes.values().flat_map(|node| node.status().into_iter().map(|replica| (node.id, replica)));
        let groups = replicas.filter(|(_, replica)| replica.group.is_some());
        let (node, newest) = groups
            .max_by_key(|(_, replica)| replica.group.as_ref().map(|group| (group.term, group.role == Role::Leader)))?;
        newest.group.as_ref().is_some_and(|group| group.role == Role::Leader).then_some((node, newest))
    }

    /// The leader's configuration.
    pub(crate) fn conf(&self) -> ConfState {
        self.leader().and_then(|(_, replica)| replica.group).map(|group| group.conf).unwrap_or_default()
    }

    /// Proposes a change to the leader, repeatedly until it has been made.
    pub(crate) fn change(&mut self, change: &ConfChange, made: impl Fn(&ConfState) -> bool) {
        let until_ms = self.now_ms() + DEADLINE_MS;
        while !made(&self.conf()) {
            assert!(self.now_ms() < until_ms, "{change:?} was not made\n{}", self.describe());
            if let Some((node, _)) = self.leader() {
                self.input(node, Input::Change { shard: SHARD, change: change.clone() });
            }
            self.run_ms(60);
        }
    }

    /// Adds a learner on a node.
    pub(crate) fn add_learner(&mut self, replica: ReplicaId, node: NodeId) {
        self.request_replica(replica, node, descriptor(&[]), false);
        self.change(&ConfChange::AddLearner { replica, node }, |conf| conf.contains(replica));
    }

    /// Adds learners on these nodes and waits until they have caught up.
    pub(crate) fn add_learners(&mut self, learners: &[(ReplicaId, NodeId)]) {
        for (replica, node) in learners {
            self.add_learner(*replica, *node);
        }
        self.run_until(DEADLINE_MS, "learners catch up", |world| {
            let Some((_, leader)) = world.leader() else { return false };
            let Some(group) = leader.group else { return false };
            learners.iter().all(|(replica, _)| {
                let near = |matched: u64| matched + 32 >= group.commit.0;
                group.followers.iter().any(|follower| follower.replica == *replica && near(follower.matched.0))
            })
        });
    }

    /// Promotes learners to voters and demotes voters to learners, through a joint configuration.
    pub(crate) fn swap(&mut self, promote: &[ReplicaId], demote: &[ReplicaId]) {
        let swap = ConfChange::Swap { promote: promote.to_vec(), demote: demote.to_vec() };
        self.change(&swap, |conf| promote.iter().all(|replica| conf.voters.contains(replica)));
        let voters_left = |conf: &ConfState| demote.iter().all(|replica| !conf.is_voter(*replica));
        self.change(&ConfChange::LeaveJoint, |conf| !conf.voters.is_empty() && !conf.is_joint() && voters_left(conf));
    }

    /// Removes a learner from the group, and destroys its replica if its node is up.
    pub(crate) fn remove(&mut self, replica: ReplicaId, node: NodeId) {
        self.change(&ConfChange::RemoveLearner { replica }, |conf| !conf.voters.is_empty() && !conf.contains(replica));
        self.desired.remove(&replica);
        self.input(node, Input::Destroy { replica });
    }

    /// The voter on a node, according to the leader.
    pub(crate) fn voter_on(&self, node: NodeId) -> Option<ReplicaId> {
        let (_, leader) = self.leader()?;
        let voter = leader.descriptor.replica_on(node)?;
        (voter.role == ReplicaRole::Voter).then_some(voter.replica)
    }

    /// Crashes a random node after a random time, and restarts it after another.
    pub(crate) fn crash_and_start_one(&mut self) {
        let node = NodeId(self.rng.random_range(1..=self.nodes.len() as u64));
        self.run_some_ms(300);
        self.crash(node);
        self.run_some_ms(1_000);
        self.start(node);
    }

    /// Crashes a node and wipes its disk.
    pub(crate) fn wipe(&mut self, node: NodeId) {
        self.crash(node);
        self.restore(node, &Backup::default());
    }

    /// Ends the faults and checks convergence: all nodes start, all links are restored, a write succeeds,
    /// clients finish, and all replicas hold the same records, which match the clients' operations.
    pub(crate) fn finish(&mut self) {
        self.heal();
        let stopped: Vec<_> = self.nodes.values().filter(|node| node.running.is_none()).map(|node| node.id).collect();
        for node in stopped {
            self.start(node);
        }
        let writes = self.checks.writes;
        if !self.clients.is_empty() {
            self.run_until(DEADLINE_MS, "a write", |world| world.checks.writes > writes);
        }
        for client in &mut self.clients {
            client.stopping = true;
        }
        self.run_until(DEADLINE_MS, "answers for all clients", |world| {
            world.clients.iter().all(super::Client::is_idle)
        });
        self.run_until(DEADLINE_MS, "all replicas apply the same", |world| {
            let Some((_, leader)) = world.leader() else { return false };
            let Some(group) = leader.group else { return false };
            let applied = world.applied_by();
            group.conf.all().iter().all(|replica| applied.get(replica) == Some(&group.commit))
                && leader.applied == group.last
        });
        self.check_logs();
        let conf = self.conf();
        let mut records: BTreeMap<ReplicaId, Vec<(Bytes, Bytes)>> = BTreeMap::new();
        for node in self.nodes.values() {
            for replica in node.status().iter().filter(|replica| conf.contains(replica.replica)) {
                let reader = node.engine.reader(replica.replica).unwrap();
                records.insert(replica.replica, reader.scan(&KeyRange::all(), usize::MAX, usize::MAX).unwrap());
            }
        }
        let first = records.values().next().cloned().unwrap_or_default();
        for (replica, records) in &records {
            assert_eq!(*records, first, "{replica} holds different records");
        }
        self.check_totals();
    }

    /// Checks that everything that a log refers to is here, also what is committed and replaced long ago.
    fn check_logs(&self) {
        for node in self.nodes.values() {
            for (replica, log) in node.log.replicas().unwrap() {
                let (from, to) = (log.truncated.0.next(), log.last.next());
                for entry in node.log.entries(replica, from, to, usize::MAX).unwrap() {
                    let objects: Vec<_> = refs_of(&entry).ids().collect();
                    assert_eq!(node.engine.not_durable(&objects), [], "{} of {replica} on {}", entry.index, node.id);
                }
            }
        }
    }

    /// Checks that each key holds what clients wrote, with no addition lost or applied twice.
    fn check_totals(&mut self) {
        let Some((node, _)) = self.leader() else { panic!("no leader\n{}", self.describe()) };
        for (key, total) in self.checks.totals() {
            let asked =
                self.request(node, get(key.clone()), DEADLINE_MS, Some(flotilla_replication::Freshness::Strong));
            self.run_until(DEADLINE_MS, "an answer", |world| world.answers.contains_key(&asked));
            let answer = self.answers.remove(&asked).unwrap().unwrap().payload;
            let Ok(flotilla_kv::Answer::Records(records)) = flotilla_kv::decode_answer(answer) else {
                panic!("{key:?}")
            };
            let text = records[0]
                .as_ref()
                .map_or("0".to_owned(), |record| String::from_utf8(record.value.inline().unwrap().to_vec()).unwrap());
            assert_eq!(text.trim_end_matches('.'), total.to_string(), "{key:?}");
        }
    }
}
