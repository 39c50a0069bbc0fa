//! The cluster's status as this node sees it, from local state only: it is available without a quorum.

use flotilla_api::{
    ClusterStatus, Collection, Health, Liveness, LocalReplica, LocalRole, MetadataRole, NodeInfo, NodeState,
    NodeUpgrade, PeerInfo, PeerState, ReplicaInfo, Setting as ApiSetting, ShardInfo, Sharding, TokenId, TokenInfo,
    UpgradeStatus, Versions,
};
use flotilla_control::{MemberState, Topology};
use flotilla_meta::{MetaState, NodeRecord, NodeState as RecordState, SeenNode, Setting, ShardRecord, TokenRecord};
use flotilla_replication::{Handle, ReplicaStatus, Role};
use flotilla_transport::{Breaker, PeerStatus, Transport};
use flotilla_types::{ClusterId, CollectionId, NodeId, ReplicaRole, ShardId, VersionRange};

/// The local state from which a status is built.
pub(crate) struct Sources<'a> {
    pub(crate) cluster: ClusterId,
    pub(crate) topology: &'a Topology,
    pub(crate) host: &'a Handle,
    pub(crate) network: &'a Transport,
    pub(crate) started_ms: u64,
    pub(crate) draining: bool,
    pub(crate) notes: Vec<String>,
}

impl Sources<'_> {
    pub(crate) fn status(&self) -> ClusterStatus {
        let meta = self.topology.meta();
        let here = self.host.status();
        let shards: Vec<_> = meta.shards().map(|record| self.shard(&meta, record, &here)).collect();
        let metadata_leader = self.leader(ShardId::META, &here);
        let seen = self.topology.seen();
        let nodes: Vec<_> = meta
            .nodes()
            .filter(|node| node.state != RecordState::Removed)
            .map(|node| self.node(node, &shards, metadata_leader, &seen))
            .collect();
        let quorum = metadata_leader.is_some();
        ClusterStatus {
            cluster_id: self.cluster,
            node: self.topology.node(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            cluster_version: meta.cluster_version().0,
            started_ms: self.started_ms,
            draining: self.draining,
            metadata_leader,
            quorum,
            health: health(quorum, &nodes, &shards),
            collections: collections(&meta),
            peers: self.network.peers().iter().map(peer).collect(),
            nodes,
            shards,
            notes: self.notes.clone(),
        }
    }

    /// The leader of a shard: from the local replica if it is a member of its group, else from leader hints.
    pub(crate) fn leader(&self, shard: ShardId, here: &[ReplicaStatus]) -> Option<NodeId> {
        let local = here.iter().find_map(|replica| {
            let group = replica.group.as_ref().filter(|_| replica.shard == shard)?;
            let is_member = group.conf.contains(replica.replica);
            is_member.then(|| replica.descriptor.node_of(group.leader))
        });
        local.unwrap_or_else(|| self.topology.leader(shard))
    }

    fn shard(&self, meta: &MetaState, record: &ShardRecord, here: &[ReplicaStatus]) -> ShardInfo {
        let leader = self.leader(record.id, here);
        let local = here.iter().rev().find(|replica| replica.shard == record.id);
        // The local replica's descriptor can be newer than the one that its leader reported to the metadata
        // group.
        let newest = local.map(|replica| &replica.descriptor).filter(|own| own.epoch > record.descriptor.epoch);
        let descriptor = newest.unwrap_or(&record.descriptor);
        let alive = descriptor.replicas.iter().filter(|replica| {
            replica.role == ReplicaRole::Voter && self.topology.liveness(replica.node).0 == MemberState::Alive
        });
        let collection = meta.collection_with_id(record.collection);
        // The desired number of replicas, or what a smaller cluster can hold, rounded down to an odd number.
        let active = meta.nodes().filter(|node| node.state == RecordState::Active).count();
        let possible = usize::from(record.replicas_desired).min(active.max(1));
        let required = if possible.is_multiple_of(2) { possible - 1 } else { possible };
        ShardInfo {
            id: record.id,
            collection: collection.map(|collection| collection.name.clone()),
            range: range_of(record),
            leader,
            replicas: descriptor
                .replicas
                .iter()
                .map(|held| ReplicaInfo { replica: held.replica, node: held.node, role: held.role })
                .collect(),
            epoch: descriptor.epoch,
            desired_replicas: record.replicas_desired,
            healthy: leader.is_some() && alive.count() >= required,
            local: local.map(local_replica),
        }
    }

    fn node(
        &self,
        record: &NodeRecord,
        shards: &[ShardInfo],
        metadata_leader: Option<NodeId>,
        seen: &[SeenNode],
    ) -> NodeInfo {
        let holds = |shard: &&ShardInfo| shard.replicas.iter().any(|replica| replica.node == record.id);
        let metadata = shards.iter().find(|shard| shard.id == ShardId::META);
        let metadata = metadata.and_then(|shard| shard.replicas.iter().find(|replica| replica.node == record.id));
        NodeInfo {
            id: record.id,
            name: record.name.clone(),
            quic: record.addresses.quic.clone(),
            http: record.addresses.http.clone(),
            redis: record.addresses.redis.clone(),
            locality: record.locality.clone(),
            state: match record.state {
                RecordState::Active => NodeState::Active,
                RecordState::Draining => NodeState::Draining,
                RecordState::Lost => NodeState::Lost,
                RecordState::Removed => NodeState::Removed,
            },
            liveness: match self.topology.liveness(record.id).0 {
                MemberState::Alive => Liveness::Alive,
                MemberState::Suspect => Liveness::Suspect,
                MemberState::Down => Liveness::Down,
                MemberState::Left => Liveness::Left,
                MemberState::Unknown => Liveness::Unknown,
            },
            is_self: record.id == self.topology.node(),
            metadata_role: match metadata {
                Some(_) if metadata_leader == Some(record.id) => MetadataRole::Leader,
                Some(replica) if replica.role == ReplicaRole::Voter => MetadataRole::Voter,
                Some(_) => MetadataRole::Learner,
                None => MetadataRole::None,
            },
            replicas: shards.iter().filter(holds).count() as u32,
            leaders: shards.iter().filter(|shard| shard.leader == Some(record.id)).count() as u32,
            versions: versions_of(record.id, seen),
        }
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
    let next = Some(in_force.next()).filter(|next| VersionRange::SUPPORTED.supports(*next));
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

fn health(quorum: bool, nodes: &[NodeInfo], shards: &[ShardInfo]) -> Health {
    let mut reasons = Vec::new();
    if !quorum {
        reasons.push("the metadata group has no leader: nodes and collections cannot change".to_owned());
    }
    let leaderless = shards.iter().filter(|shard| shard.id != ShardId::META && shard.leader.is_none()).count();
    if leaderless > 0 {
        reasons.push(format!("{leaderless} of {} shards have no leader and are unavailable", shards.len() - 1));
    }
    let short = shards.iter().filter(|shard| shard.leader.is_some() && !shard.healthy).count();
    if short > 0 {
        reasons.push(format!("{short} shards have too few live replicas"));
    }
    for node in nodes.iter().filter(|node| node.state != NodeState::Lost) {
        if matches!(node.liveness, Liveness::Down | Liveness::Suspect | Liveness::Left) {
            reasons.push(format!("node {} ({}) does not answer", node.id, node.name));
        }
    }
    Health { ok: reasons.is_empty(), reasons }
}

pub(crate) fn collections(meta: &MetaState) -> Vec<Collection> {
    let mut collections: Vec<_> = meta
        .collections()
        .map(|collection| Collection {
            id: collection.id,
            name: collection.name.clone(),
            sharding: match collection.sharding {
                flotilla_placement::Sharding::Hash => Sharding::Hash,
                flotilla_placement::Sharding::Range => Sharding::Range,
            },
            buckets: collection.buckets,
            replicas: collection.replicas,
        })
        .collect();
    collections.sort_by(|a, b| a.name.cmp(&b.name));
    collections
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

fn range_of(record: &ShardRecord) -> String {
    if record.collection == CollectionId::SYSTEM {
        return "metadata".to_owned();
    }
    let bucket = |key: &bytes::Bytes| flotilla_types::RecordKey::from_bytes(key.clone()).map(|key| key.bucket().0);
    match (bucket(&record.initial.range.start), bucket(&record.initial.range.end)) {
        (Some(first), Some(end)) if end > first + 1 => format!("buckets {first}–{}", end - 1),
        (Some(first), Some(_)) => format!("bucket {first}"),
        _ => "all keys".to_owned(),
    }
}

fn local_replica(replica: &ReplicaStatus) -> LocalReplica {
    let group = replica.group.as_ref();
    LocalReplica {
        replica: replica.replica,
        role: match group {
            None => LocalRole::Quarantined,
            Some(group) if group.role == Role::Leader => LocalRole::Leader,
            Some(group) if group.role == Role::Candidate => LocalRole::Candidate,
            Some(group) if group.conf.is_voter(replica.replica) => LocalRole::Follower,
            Some(_) => LocalRole::Learner,
        },
        term: group.map_or(0, |group| group.term.0),
        commit: group.map_or(0, |group| group.commit.0),
        applied: replica.applied.0,
        checkpoint: replica.checkpoint.0,
        log_bytes: None,
        memtable_bytes: (replica.usage.active_bytes + replica.usage.frozen_bytes) as u64,
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
