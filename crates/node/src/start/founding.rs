//! The first commands of a cluster, proposed by the node that founds it until they are committed.

use std::{sync::Arc, time::Duration};

use flotilla_control::Shards;
use flotilla_failpoints::{Place, reached};
use flotilla_meta::{Addresses, Liveness, MetaCommand, MetaReply, NewNode};
use flotilla_placement::Sharding;
use flotilla_replication::Handle;
use flotilla_types::{
    Bucket, ClusterId, CollectionId, Epoch, KeyRange, Locality, NodeId, ReplicaDescriptor, ReplicaId, ReplicaRole,
    ShardDescriptor, ShardId,
};

use super::folder::Folder;

const TIMEOUT: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(100);
/// Buckets of the collection `default`: what its shards may be cut into.
pub(crate) const BUCKETS: u16 = 16;
const REPLICAS: u8 = 3;

pub(crate) struct Founding {
    pub(crate) cluster: ClusterId,
    pub(crate) node: NewNode,
    /// Shards of the collection `default`.
    pub(crate) shards: u16,
}

impl Founding {
    pub(crate) fn new(
        cluster: ClusterId,
        name: String,
        addresses: Addresses,
        locality: Locality,
        key: [u8; 32],
        shards: u16,
    ) -> Self {
        Self { cluster, node: NewNode { name, addresses, locality, key_digest: key }, shards }
    }

    /// Founds, until it is done. Every step may be repeated.
    pub(crate) async fn run(self, folder: Arc<Folder>, host: Handle, shards: Shards) {
        loop {
            let founded = self.step(&host, &shards).await;
            if founded {
                reached(Place::FoundBeforeDone);
            }
            if founded && folder.founded().is_ok() {
                tracing::info!(cluster = %self.cluster, "the cluster is founded");
                return;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn step(&self, host: &Handle, shards: &Shards) -> bool {
        host.create(ReplicaId(1), metadata_group(), true);
        let bootstrap = MetaCommand::Bootstrap { cluster: self.cluster, node: self.node.clone() };
        if !matches!(shards.propose_meta(&bootstrap, TIMEOUT).await, Ok(MetaReply::Node(_))) {
            return false;
        }
        let meta = shards.topology().meta();
        if meta.collection("default").is_some() {
            return true;
        }
        let create = MetaCommand::CreateCollection {
            name: "default".to_owned(),
            sharding: Sharding::Hash,
            buckets: BUCKETS,
            replicas: REPLICAS,
            initial_nodes: meta.initial_nodes(self.shards, REPLICAS, |_| Liveness::Live),
        };
        matches!(shards.propose_meta(&create, TIMEOUT).await, Ok(MetaReply::Collection { .. }))
    }
}

/// The metadata group as the first node creates it; the same as its own record of itself.
fn metadata_group() -> ShardDescriptor {
    ShardDescriptor {
        shard: ShardId::META,
        range: KeyRange::of_buckets(CollectionId::SYSTEM, Bucket(0), Bucket(u16::MAX)),
        epoch: Epoch { range: 1, config: 1 },
        replicas: vec![ReplicaDescriptor { replica: ReplicaId(1), node: NodeId(1), role: ReplicaRole::Voter }],
    }
}
