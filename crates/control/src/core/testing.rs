//! Test fixtures: metadata built by commands, and replicas as a host would report them.

use std::{collections::BTreeSet, net::SocketAddr, sync::Arc};

use flotilla_membership::NodeState;
use flotilla_meta::{
    Addresses, CollectionSettings, Feed, Increment, JoinRequest, MetaCommand, MetaFollower, MetaState, NewNode,
    NodeRecord, NodeRole, NodeState as AdminState, OperationReason, SeenNode, Setting, TokenId,
};
use flotilla_placement::Sharding;
use flotilla_replication::{Follower, GroupStatus, ReplicaStatus, Role};
use flotilla_types::{
    ClusterId, ClusterVersion, ConfState, Epoch, Incarnation, KeyRange, Locality, LogIndex, NodeId, ReplicaDescriptor,
    ReplicaId, ReplicaRole, ShardDescriptor, ShardId, Term, Timestamp, VersionRange,
};

use super::{Action, ClusterView, LocalNode, Reconciler, View};

const TOKEN: TokenId = TokenId(1);
const SECRET: [u8; 32] = [1; 32];
/// The time of every metadata command, in Unix milliseconds.
pub(crate) const THEN_MS: u64 = 1_000;

pub(crate) fn node(id: u64) -> NodeId {
    NodeId(id)
}

pub(crate) fn addr(id: u64) -> SocketAddr {
    format!("10.0.0.{id}:1").parse().expect("an address")
}

fn addresses(id: u64) -> Addresses {
    Addresses { quic: addr(id).to_string(), ..Addresses::default() }
}

/// The metadata group, of one machine. Node 1 founded it and holds its first replica, replica 1.
pub(crate) struct Meta {
    follower: MetaFollower,
    collection: Option<flotilla_types::CollectionId>,
}

impl Meta {
    /// Of nodes 1 to `nodes`.
    pub(crate) fn of_nodes(nodes: u64) -> Self {
        let mut meta = Self { follower: MetaFollower::default(), collection: None };
        meta.apply(&MetaCommand::Bootstrap { cluster: ClusterId([1; 16]), node: Self::new_node(1) });
        meta.apply(&MetaCommand::CreateToken { id: TOKEN, hash: SECRET, expires_at_ms: 1 << 40, uses: 100 });
        (2..=nodes).for_each(|id| meta.join(id));
        meta
    }

    fn new_node(id: u64) -> NewNode {
        let key_digest = [u8::try_from(id).expect("a small id"); 32];
        NewNode { name: format!("n{id}"), addresses: addresses(id), locality: Locality::default(), key_digest }
    }

    pub(crate) fn state(&self) -> Arc<MetaState> {
        self.follower.state().clone()
    }

    /// Runs a command that must have an effect.
    #[track_caller]
    pub(crate) fn apply(&mut self, command: &MetaCommand) {
        assert!(self.try_apply(command), "{command:?}");
    }

    /// Runs a command. Returns whether it had an effect.
    pub(crate) fn try_apply(&mut self, command: &MetaCommand) -> bool {
        let previous = self.follower.state().version();
        let increment = Increment {
            previous,
            index: LogIndex(previous + 1),
            timestamp: Timestamp::from_millis(THEN_MS),
            commands: vec![command.encode()],
        };
        self.follower.apply(&Feed::Increments(vec![increment])) == Ok(true)
    }

    pub(crate) fn join(&mut self, id: u64) {
        let node = Self::new_node(id);
        self.apply(&MetaCommand::Join(JoinRequest {
            token: TOKEN,
            secret_hash: SECRET,
            node,
            versions: None,
            displaced: Vec::new(),
            role: NodeRole::default(),
        }));
        assert!(self.state().node(NodeId(id)).is_some(), "nodes are numbered in order");
    }

    pub(crate) fn remove(&mut self, id: u64) {
        self.apply(&MetaCommand::RemoveNode { node: NodeId(id) });
    }

    /// Puts the second version in force.
    pub(crate) fn raise(&mut self) {
        self.raise_to(ClusterVersion(2));
    }

    /// Puts the next version in force, which is this one.
    pub(crate) fn raise_to(&mut self, version: ClusterVersion) {
        let state = self.state();
        let versions = VersionRange::supported();
        let seen = |node: &NodeRecord| SeenNode { node: node.id, incarnation: node.incarnation, versions };
        let seen = state.nodes().map(seen).collect();
        self.apply(&MetaCommand::SetClusterVersion { version, seen });
    }

    pub(crate) fn set_state(&mut self, id: u64, state: AdminState) {
        self.apply(&MetaCommand::SetNodeState { node: NodeId(id), state });
    }

    pub(crate) fn setting(&mut self, setting: Setting, value: u64) {
        self.apply(&MetaCommand::PutSetting { key: setting.key().to_owned(), value: value.to_string() });
    }

    pub(crate) fn assign(&mut self, shard: ShardId, node: u64) {
        let intent_version = self.state().shard(shard).expect("a shard").intent_version;
        self.apply(&MetaCommand::AssignReplica { shard, node: NodeId(node), intent_version });
    }

    pub(crate) fn unassign(&mut self, shard: ShardId, node: u64) {
        let state = self.state();
        let record = state.shard(shard).expect("a shard");
        let replica = record.desired_on(NodeId(node)).expect("a replica");
        self.apply(&MetaCommand::UnassignReplica { shard, replica });
    }

    /// The node announces another start.
    pub(crate) fn restart(&mut self, id: u64) {
        let state = self.state();
        let record = state.node(NodeId(id)).expect("a node");
        self.apply(&MetaCommand::UpdateNode {
            node: record.id,
            incarnation: Incarnation(record.incarnation.0 + 1),
            addresses: record.addresses.clone(),
            locality: record.locality.clone(),
            versions: None,
        });
    }

    pub(crate) fn report(&mut self, descriptor: ShardDescriptor) {
        let config = descriptor.epoch.config + 1;
        let epoch = Epoch { config, ..descriptor.epoch };
        let range = self.state().shard(descriptor.shard).expect("a shard").descriptor.range.clone();
        self.apply(&MetaCommand::ReportShard { descriptor: ShardDescriptor { epoch, range, ..descriptor } });
    }

    /// A collection with a shard on each of these sets of nodes.
    pub(crate) fn collection(&mut self, nodes: &[&[u64]]) -> Vec<ShardId> {
        self.collection_named("c", nodes)
    }

    pub(crate) fn collection_named(&mut self, name: &str, nodes: &[&[u64]]) -> Vec<ShardId> {
        let before: BTreeSet<_> = self.state().shards().map(|shard| shard.id).collect();
        self.apply(&MetaCommand::CreateCollection {
            name: name.to_owned(),
            sharding: Sharding::Hash,
            buckets: u16::try_from(nodes.len()).expect("few shards"),
            replicas: u8::try_from(nodes[0].len()).expect("few replicas"),
            initial_nodes: nodes.iter().map(|shard| shard.iter().copied().map(NodeId).collect()).collect(),
            settings: CollectionSettings::NONE,
        });
        self.collection = self.state().collection(name).map(|collection| collection.id);
        self.state().shards().map(|shard| shard.id).filter(|shard| !before.contains(shard)).collect()
    }

    /// Plans the split of a shard, and puts what that needs in force. Returns the new shard.
    pub(crate) fn plan_split(&mut self, shard: ShardId) -> ShardId {
        (2..=ClusterVersion::SPLITS.0).for_each(|version| self.raise_to(ClusterVersion(version)));
        let descriptor = self.state().shard(shard).expect("a shard").descriptor.clone();
        let at = [&descriptor.range.start[..], b"m"].concat().into();
        self.apply(&MetaCommand::SplitShard { shard, at, epoch: descriptor.epoch, reason: OperationReason::Operator });
        self.state().shard(shard).and_then(|record| Some(record.split.as_ref()?.child)).expect("a planned split")
    }

    /// Plans the merge of two shards, and puts what that needs in force.
    pub(crate) fn plan_merge(&mut self, left: ShardId, right: ShardId) {
        (2..=ClusterVersion::MERGES.0).for_each(|version| self.raise_to(ClusterVersion(version)));
        let state = self.state();
        let of = |shard| (shard, state.shard(shard).expect("a shard").descriptor.epoch);
        self.apply(&MetaCommand::MergeShards { left: of(left), right: of(right), reason: OperationReason::Operator });
    }

    /// The shard has been split as planned. Returns its descriptor after that.
    pub(crate) fn report_split(&mut self, shard: ShardId) -> ShardDescriptor {
        let state = self.state();
        let record = state.shard(shard).expect("a shard");
        let mut descriptor = record.descriptor.clone();
        descriptor.epoch.range += 1;
        descriptor.range.end = record.split.as_ref().expect("a planned split").at.clone();
        self.apply(&MetaCommand::ReportShard { descriptor: descriptor.clone() });
        descriptor
    }

    pub(crate) fn drop_collection(&mut self) {
        let collection = self.collection.take().expect("a collection");
        self.apply(&MetaCommand::DropCollection { collection });
    }
}

pub(crate) fn local_node(id: u64) -> LocalNode {
    LocalNode {
        node: NodeId(id),
        incarnation: Incarnation(7),
        addresses: addresses(id),
        locality: Locality::default(),
        versions: VersionRange::supported(),
        role: NodeRole::default(),
    }
}

/// One node and what it sees.
pub(crate) struct World {
    pub(crate) me: LocalNode,
    pub(crate) meta: Meta,
    pub(crate) replicas: Vec<ReplicaStatus>,
    pub(crate) now_ms: u64,
    pub(crate) wall_ms: u64,
    cluster: ClusterView,
}

impl World {
    pub(crate) fn new(me: u64, meta: Meta) -> Self {
        let me = local_node(me);
        let cluster = ClusterView::new(me.node, MetaState::default());
        Self { me, meta, replicas: Vec::new(), now_ms: 1_000_000, wall_ms: THEN_MS, cluster }
    }

    /// Membership sees a node in a state, from now on.
    pub(crate) fn hears(&mut self, node: u64, state: NodeState) {
        self.cluster.offer(&self.meta.state());
        self.cluster.member_changed(NodeId(node), state, self.now_ms);
    }

    pub(crate) fn reconcile(&self, reconciler: &mut impl Reconciler) -> Vec<Action> {
        self.observe(|view| reconciler.reconcile(view))
    }

    pub(crate) fn observe<R>(&self, look: impl FnOnce(&View<'_>) -> R) -> R {
        look(&View {
            me: &self.me,
            meta: &self.meta.state(),
            members: self.cluster.members(),
            replicas: &self.replicas.iter().cloned().collect(),
            now_ms: self.now_ms,
            wall_ms: self.wall_ms,
        })
    }
}

/// A replica that waits for its group.
pub(crate) fn replica(shard: u64, id: u64) -> ReplicaStatus {
    let descriptor = ShardDescriptor {
        shard: ShardId(shard),
        range: KeyRange::all(),
        epoch: Epoch { range: 1, config: 1 },
        replicas: Vec::new(),
    };
    ReplicaStatus {
        shard: ShardId(shard),
        replica: ReplicaId(id),
        descriptor,
        group: None,
        applied: LogIndex(0),
        version: None,
        checkpoint: LogIndex(0),
        frozen: None,
        usage: flotilla_storage::Usage::default(),
        damaged: false,
    }
}

/// The leader of a shard with these voters and learners, each `(node, replica)`: the first voter. All have
/// caught up, the leader among them, as Raft reports it.
pub(crate) fn leads(shard: u64, voters: &[(u64, u64)], learners: &[(u64, u64)]) -> ReplicaStatus {
    let ids = |held: &[(u64, u64)]| held.iter().map(|(_, id)| ReplicaId(*id)).collect::<Vec<_>>();
    let describe = |held: &[(u64, u64)], role: ReplicaRole| {
        let descriptor =
            |(node, id): &(u64, u64)| ReplicaDescriptor { replica: ReplicaId(*id), node: NodeId(*node), role };
        held.iter().map(descriptor).collect::<Vec<_>>()
    };
    let leader = ReplicaId(voters[0].1);
    let commit = LogIndex(10_000);
    let followers = ids(&[voters, learners].concat()).into_iter().map(|replica| Follower {
        replica,
        matched: commit,
        recently_active: true,
        in_snapshot: false,
    });
    let group = GroupStatus {
        role: Role::Leader,
        term: Term(2),
        leader,
        commit,
        last: commit,
        truncated: LogIndex(0),
        conf: ConfState { voters: ids(voters), learners: ids(learners), ..ConfState::default() },
        followers: followers.collect(),
        transfers_to: None,
        rests: false,
    };
    let mut status = replica(shard, leader.0);
    status.descriptor.replicas =
        [describe(voters, ReplicaRole::Voter), describe(learners, ReplicaRole::Learner)].concat();
    status.group = Some(group);
    status
}
