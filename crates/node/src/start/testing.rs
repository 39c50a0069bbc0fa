//! Test fixtures: metadata built by commands, replicas as a host reports them.

use std::sync::Arc;

use flotilla_meta::{
    Addresses, CollectionSettings, Feed, Increment, JoinRequest, MetaCommand, MetaFollower, MetaState, NewNode,
    NodeRole, TokenId as JoinTokenId,
};
use flotilla_placement::Sharding;
use flotilla_replication::{GroupStatus, ReplicaStatus, Role};
use flotilla_types::{
    ClusterId, ConfState, Locality, LogIndex, NodeId, ReplicaId, ShardId, Term, Timestamp, VersionRange,
};

/// Shards of one collection.
const SHARDS_EACH: usize = 256;

/// Metadata of nodes 1 to n.
pub(super) struct Metadata(MetaFollower);

impl Metadata {
    pub(super) fn of_nodes(nodes: u64) -> Self {
        let mut metadata = Self(MetaFollower::default());
        metadata.apply(&MetaCommand::Bootstrap { cluster: ClusterId([1; 16]), node: new_node(1) });
        let (token, secret_hash) = (JoinTokenId(1), [1; 32]);
        metadata.apply(&MetaCommand::CreateToken { id: token, hash: secret_hash, expires_at_ms: 1 << 40, uses: 100 });
        for id in 2..=nodes {
            metadata.apply(&MetaCommand::Join(JoinRequest {
                token,
                secret_hash,
                node: new_node(id),
                versions: None,
                displaced: Vec::new(),
                role: NodeRole::default(),
            }));
        }
        metadata
    }

    pub(super) fn apply(&mut self, command: &MetaCommand) {
        let previous = self.0.state().version();
        let increment = Increment {
            previous,
            index: LogIndex(previous + 1),
            timestamp: Timestamp::from_millis(1_000),
            commands: vec![command.encode()],
        };
        assert_eq!(self.0.apply(&Feed::Increments(vec![increment])), Ok(true), "{command:?}");
    }

    /// A shard on each of these sets of nodes, in as many collections as needed.
    pub(super) fn collections(&mut self, shards: &[Vec<u64>]) -> Vec<ShardId> {
        for (i, shards) in shards.chunks(SHARDS_EACH).enumerate() {
            self.apply(&MetaCommand::CreateCollection {
                name: format!("c{i}"),
                sharding: Sharding::Hash,
                buckets: u16::try_from(shards.len()).expect("few shards"),
                replicas: 3,
                initial_nodes: shards.iter().map(|nodes| nodes.iter().copied().map(NodeId).collect()).collect(),
                settings: CollectionSettings::NONE,
            });
        }
        self.state().shards().map(|shard| shard.id).filter(|shard| *shard != ShardId::META).collect()
    }

    /// Another start of a node, with these labels.
    pub(super) fn label(&mut self, node: u64, labels: &str) {
        let state = self.state();
        let record = state.node(NodeId(node)).expect("a node").clone();
        self.apply(&MetaCommand::UpdateNode {
            node: record.id,
            incarnation: record.incarnation.next(),
            addresses: record.addresses,
            locality: labels.parse().expect("labels"),
            versions: state.announced(VersionRange::supported()),
        });
    }

    pub(super) fn state(&self) -> Arc<MetaState> {
        self.0.state().clone()
    }
}

pub(super) fn new_node(id: u64) -> NewNode {
    let addresses = Addresses { quic: format!("10.0.0.{id}:1"), ..Addresses::default() };
    NewNode { name: format!("n{id}"), addresses, locality: Locality::default(), key_digest: [id as u8; 32] }
}

/// The replica of a shard on `node`, with this leader, in the configuration that the metadata names.
pub(super) fn replica(meta: &MetaState, shard: ShardId, node: u64, leader: Option<u64>) -> ReplicaStatus {
    let descriptor = meta.shard(shard).expect("a shard").descriptor.clone();
    let own = descriptor.replica_on(NodeId(node)).expect("a replica").replica;
    let replica_of = |node| descriptor.replica_on(NodeId(node)).expect("a replica").replica;
    let group = GroupStatus {
        role: if leader == Some(node) { Role::Leader } else { Role::Follower },
        term: Term(2),
        leader: leader.map_or(ReplicaId::NONE, replica_of),
        commit: LogIndex(9),
        last: LogIndex(9),
        truncated: LogIndex(0),
        conf: ConfState::of_voters(descriptor.replicas.iter().map(|replica| replica.replica)),
        followers: Vec::new(),
        transfers_to: None,
        rests: false,
    };
    ReplicaStatus {
        shard,
        replica: own,
        descriptor,
        group: Some(group),
        applied: LogIndex(9),
        version: None,
        checkpoint: LogIndex(1),
        frozen: None,
        usage: flotilla_storage::Usage::default(),
        damaged: false,
    }
}
