//! The cluster's status as this node sees it, from local state only: it is available without a quorum.

use flotilla_api::{
    AuthorityStatus, CertificateLife, ClusterStatus, Collection, Health, KeyId, KeyInfo, LinkTraffic, Liveness,
    MetadataRole, NodeCertification, NodeInfo, NodeRole, NodeState, NodeUpgrade, OperationList, PeerInfo, PeerState,
    Setting as ApiSetting, ShardInfo, Sharding, TokenId, TokenInfo, UpgradeStatus, ValueTraffic, Versions,
};
use flotilla_control::{MemberState, Topology};
use flotilla_identity::Life;
use flotilla_meta::{
    AuthorityRecord, KeyRecord, MetaState, NodeRecord, NodeRole as RecordRole, NodeState as RecordState, SeenNode,
    Setting, TokenRecord,
};
use flotilla_replication::Handle;
use flotilla_transport::{Breaker, PeerStatus, Transport};
use flotilla_types::{ClusterId, NodeId, ReplicaRole, ShardId, VersionRange};

use super::{
    consistency,
    health::{self, Totals},
    scrub,
    shard_view::ShardView,
};

/// The local state from which a status is built.
pub(crate) struct Sources<'a> {
    pub(crate) cluster: ClusterId,
    pub(crate) topology: &'a Topology,
    pub(crate) host: &'a Handle,
    pub(crate) network: &'a Transport,
    pub(crate) started_ms: u64,
    pub(crate) draining: bool,
    pub(crate) notes: Vec<String>,
    /// What this node reports.
    pub(crate) operations: OperationList,
}

impl Sources<'_> {
    pub(crate) fn status(&self) -> ClusterStatus {
        let meta = self.topology.meta();
        let here = self.host.status();
        let liveness = |node| self.topology.liveness(node).0;
        let view = ShardView::new(self.topology.node(), &meta, &here, liveness);
        let mut shards = view.shards(|shard| self.topology.leader(shard));
        ShardInfo::attach_operations(&mut shards, self.operations.operations.clone());
        let metadata = health::metadata(&shards);
        let metadata_leader = metadata.map_or_else(|| self.topology.leader(ShardId::META), |shard| shard.leader);
        let loads = health::loads(&shards);
        let seen = self.topology.seen();
        let nodes: Vec<_> = meta
            .nodes()
            .filter(|node| node.state != RecordState::Removed)
            .map(|node| self.node(node, metadata, loads.get(&node.id).copied().unwrap_or_default(), &seen))
            .collect();
        let quorum = metadata.map_or(metadata_leader.is_some(), |shard| shard.available);
        let mut problems = health::problems(quorum, &nodes, &shards);
        problems.extend(scrub::problems(here.iter()));
        problems.extend(consistency::problems(&self.topology.comparisons(), flotilla_replication::clock::wall_ms()));
        let totals = Totals::of(&shards);
        ClusterStatus {
            cluster_id: self.cluster,
            node: self.topology.node(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            cluster_version: meta.cluster_version().0,
            started_ms: self.started_ms,
            draining: self.draining,
            metadata_leader,
            quorum,
            health: Health { ok: problems.is_empty(), reasons: problems },
            available_shards: totals.available,
            replicated_shards: totals.replicated,
            shards_total: totals.shards,
            failures_survivable: totals.failures_survivable,
            collections: collections(&meta),
            peers: self.network.peers().iter().map(peer).collect(),
            nodes,
            shards,
            notes: self.notes.clone(),
            values: Some(values(self.host.value_traffic())),
        }
    }

    /// A node with these numbers of replicas and leaderships.
    fn node(
        &self,
        record: &NodeRecord,
        metadata: Option<&ShardInfo>,
        (replicas, leaders): (u32, u32),
        seen: &[SeenNode],
    ) -> NodeInfo {
        let leads_metadata = metadata.is_some_and(|shard| shard.leader == Some(record.id));
        let metadata = metadata.and_then(|shard| shard.replicas.iter().find(|replica| replica.node == record.id));
        NodeInfo {
            id: record.id,
            name: record.name.clone(),
            quic: record.addresses.quic.clone(),
            http: record.addresses.http.clone(),
            redis: record.addresses.redis.clone(),
            locality: record.locality.clone(),
            role: node_role(record.role),
            weight: record.role.weight(),
            state: node_state(record.state, leaders as usize),
            liveness: match self.topology.liveness(record.id).0 {
                MemberState::Alive => Liveness::Alive,
                MemberState::Suspect => Liveness::Suspect,
                MemberState::Down => Liveness::Down,
                MemberState::Left => Liveness::Left,
                MemberState::Unknown => Liveness::Unknown,
            },
            is_self: record.id == self.topology.node(),
            metadata_role: match metadata {
                Some(_) if leads_metadata => MetadataRole::Leader,
                Some(replica) if replica.role == ReplicaRole::Voter => MetadataRole::Voter,
                Some(_) => MetadataRole::Learner,
                None => MetadataRole::None,
            },
            replicas,
            leaders,
            versions: versions_of(record.id, seen),
            version: record.start.as_ref().map(|start| start.build.clone()),
            started_ms: record.start.as_ref().map(|start| start.at_ms),
        }
    }
}

/// What a node does, in words.
fn node_role(role: RecordRole) -> NodeRole {
    match role {
        RecordRole::Storage { .. } => NodeRole::Storage,
        RecordRole::Gateway => NodeRole::Gateway,
    }
}

/// A node's state in words, given how many shards it leads.
pub(crate) fn node_state(state: RecordState, leaders: usize) -> NodeState {
    match state {
        RecordState::Active => NodeState::Active,
        RecordState::Draining if leaders == 0 => NodeState::Drained,
        RecordState::Draining => NodeState::Draining,
        RecordState::Decommissioning => NodeState::Decommissioning,
        RecordState::Leaving => NodeState::Leaving,
        RecordState::Lost => NodeState::Lost,
        RecordState::Removed => NodeState::Removed,
    }
}

/// The versions that a node's binary supports, if the node was seen.
fn versions_of(node: NodeId, seen: &[SeenNode]) -> Option<Versions> {
    let versions = seen.iter().find(|seen| seen.node == node)?.versions;
    Some(Versions { min: versions.min.0, max: versions.max.0 })
}

/// The cluster version, and which nodes are ready for the next one.
pub(crate) fn upgrade(meta: &MetaState, seen: &[SeenNode]) -> UpgradeStatus {
    let in_force = meta.cluster_version();
    let next = Some(in_force.next()).filter(|next| VersionRange::supported().supports(*next));
    let missing = next.map(|next| meta.nodes_without(next, seen)).unwrap_or_default();
    let nodes = meta.nodes().filter(|node| !node.state.is_gone()).map(|node| NodeUpgrade {
        node: node.id,
        name: node.name.clone(),
        versions: versions_of(node.id, seen),
        ready: next.is_some() && !missing.contains(&node.id),
    });
    UpgradeStatus {
        cluster_version: in_force.0,
        next: next.map(|next| next.0),
        ready: next.is_some() && missing.is_empty(),
        nodes: nodes.collect(),
    }
}

/// The authority, and which nodes it has certified.
pub(crate) fn authority(meta: &MetaState, fingerprint: String, holds_key: bool, life: Life) -> AuthorityStatus {
    let uncertified = meta.uncertified();
    let nodes = meta.nodes().filter(|node| !node.state.is_gone()).map(|node| NodeCertification {
        node: node.id,
        name: node.name.clone(),
        certified: !uncertified.contains(&node.id),
    });
    AuthorityStatus {
        serial: meta.authority().map_or(0, |record| record.serial),
        fingerprint,
        rotating: meta.authority().is_some_and(AuthorityRecord::is_rotating),
        nodes: nodes.collect(),
        certificate: CertificateLife {
            issued_at_ms: life.issued_s.saturating_mul(1_000),
            expires_at_ms: life.expires_s().saturating_mul(1_000),
        },
        holds_key,
    }
}

/// What large values have cost the network of a node.
pub(crate) fn values(traffic: flotilla_replication::ValueTraffic) -> ValueTraffic {
    let flotilla_replication::ValueTraffic { reference_bytes, needed_here, needed_fetched, saved_bytes, links } =
        traffic;
    let link = |(node, link)| {
        let flotilla_replication::LinkTraffic { received_objects, received_bytes, sent_objects, sent_bytes } = link;
        LinkTraffic { node, received_objects, received_bytes, sent_objects, sent_bytes }
    };
    let links = links.into_iter().map(link).collect();
    ValueTraffic { reference_bytes, needed_here, needed_fetched, saved_bytes, links }
}

pub(crate) fn collections(meta: &MetaState) -> Vec<Collection> {
    let mut collections: Vec<_> = meta.collections().map(collection).collect();
    collections.sort_by(|a, b| a.name.cmp(&b.name));
    collections
}

pub(crate) fn collection(collection: &flotilla_placement::Collection) -> Collection {
    Collection {
        id: collection.id,
        name: collection.name.clone(),
        sharding: match collection.sharding {
            flotilla_placement::Sharding::Hash => Sharding::Hash,
            flotilla_placement::Sharding::Range => Sharding::Range,
        },
        buckets: collection.buckets,
        replicas: collection.replicas,
        objects_from: Some(collection.objects_from),
        chunk: Some(collection.chunking.to_string()),
        split_bytes: Some(collection.split_bytes),
    }
}

pub(crate) fn setting(setting: Setting, value: u64) -> ApiSetting {
    ApiSetting {
        key: setting.key().to_owned(),
        value,
        default: setting.default_value(),
        description: setting.description().to_owned(),
    }
}

pub(crate) fn token(record: &TokenRecord) -> TokenInfo {
    TokenInfo {
        id: TokenId(record.id.0),
        created_at_ms: record.created_at_ms,
        expires_at_ms: record.expires_at_ms,
        uses_left: record.uses_left,
        uses: record.uses_max,
    }
}

pub(crate) fn key(record: &KeyRecord) -> KeyInfo {
    KeyInfo {
        id: KeyId(record.id.0),
        role: record.role,
        collections: record.collections.clone(),
        created_at_ms: record.created_at_ms,
        expires_at_ms: Some(record.expires_at_ms).filter(|at| *at != 0),
    }
}

fn peer(status: &PeerStatus) -> PeerInfo {
    PeerInfo {
        node: status.node,
        addr: status.address.to_string(),
        state: match status.breaker {
            Breaker::Closed => PeerState::Connected,
            Breaker::HalfOpen => PeerState::Connecting,
            Breaker::Open => PeerState::Backoff,
        },
        rtt_us: status.rtt.map(|rtt| u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX)),
        last_error: status.last_error.map(|error| error.to_string()),
    }
}
