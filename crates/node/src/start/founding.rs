//! The first commands of a cluster, proposed by the node that founds it until they are committed.

use std::{sync::Arc, time::Duration};

use flotilla_control::{Shards, next_version};
use flotilla_failpoints::{Place, reached};
use flotilla_identity::{ClientKey, NodeIdentity};
use flotilla_meta::{Addresses, CollectionSettings, KeyId, Liveness, MetaCommand, MetaReply, MetaState, NewNode};
use flotilla_placement::Sharding;
use flotilla_replication::Handle;
use flotilla_types::{
    Bucket, ClusterId, ClusterVersion, CollectionId, Epoch, KeyRange, NodeId, ReplicaDescriptor, ReplicaId,
    ReplicaRole, Role, ShardDescriptor, ShardId, VersionRange,
};

use super::{
    config::{BUCKETS_DEFAULT, Config, REPLICAS_DEFAULT},
    folder::Folder,
};

const PROPOSE_TIMEOUT: Duration = Duration::from_secs(5);
const RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// What the founder proposes.
pub(crate) struct Founding {
    cluster: ClusterId,
    node: NewNode,
    /// Shards of the collection `default`.
    shards: u16,
    admin_key: ClientKey,
}

impl Founding {
    pub(crate) fn new(
        config: &Config,
        identity: &NodeIdentity,
        addresses: Addresses,
        folder: &Folder,
    ) -> anyhow::Result<Self> {
        let node = NewNode {
            name: config.name.clone(),
            addresses,
            locality: config.locality.clone(),
            key_digest: identity.key().public_key_digest(),
        };
        let admin_key = folder.admin_key()?;
        Ok(Self { cluster: identity.cluster(), node, shards: config.shards, admin_key })
    }

    /// Proposes the commands until they are committed. Every step is idempotent.
    pub(crate) async fn run(self, folder: Arc<Folder>, host: Handle, shards: Shards) {
        loop {
            let founded = self.step(&host, &shards).await;
            if founded {
                reached(Place::FoundBeforeDone);
            }
            if founded && folder.clear_founding().is_ok() {
                tracing::info!(cluster = %self.cluster, "the cluster is founded");
                self.show_admin_key(&folder);
                return;
            }
            tokio::time::sleep(RETRY_INTERVAL).await;
        }
    }

    async fn step(&self, host: &Handle, shards: &Shards) -> bool {
        host.create(ReplicaId(1), metadata_group(), true);
        let bootstrap = MetaCommand::Bootstrap { cluster: self.cluster, node: self.node.clone() };
        if !matches!(shards.propose_meta(&bootstrap, PROPOSE_TIMEOUT).await, Ok(MetaReply::Node(_))) {
            return false;
        }
        // A new cluster starts at the highest version of its founder. Only a node that joined in between,
        // after a crash of the founder, can be in the way: then an operator finishes the upgrade.
        let topology = shards.topology();
        while let Ok(raise) = next_version(&topology.meta(), VersionRange::supported(), topology.seen()) {
            if !matches!(shards.propose_meta(&raise, PROPOSE_TIMEOUT).await, Ok(MetaReply::Done)) {
                return false;
            }
        }
        let meta = topology.meta();
        if !self.create_admin_key(&meta, shards).await {
            return false;
        }
        if meta.collection("default").is_some() {
            return true;
        }
        let create = MetaCommand::CreateCollection {
            name: "default".to_owned(),
            sharding: Sharding::Hash,
            buckets: BUCKETS_DEFAULT,
            replicas: REPLICAS_DEFAULT,
            initial_nodes: meta.initial_nodes(self.shards, REPLICAS_DEFAULT, |_| Liveness::Live),
            settings: CollectionSettings::NONE,
        };
        matches!(shards.propose_meta(&create, PROPOSE_TIMEOUT).await, Ok(MetaReply::Collection { .. }))
    }
}

impl Founding {
    /// Proposes the first admin key. A cluster that stays at an earlier version has none: its clients need
    /// none either.
    async fn create_admin_key(&self, meta: &MetaState, shards: &Shards) -> bool {
        if meta.cluster_version() < ClusterVersion::CLIENT_KEYS {
            return true;
        }
        let create = MetaCommand::CreateKey {
            id: KeyId(self.admin_key.id()),
            hash: self.admin_key.hash().0,
            role: Role::Admin,
            collections: Vec::new(),
            expires_at_ms: 0,
        };
        matches!(shards.propose_meta(&create, PROPOSE_TIMEOUT).await, Ok(MetaReply::Done))
    }

    /// Shows the first admin key once, to a person: a secret does not belong into a log file.
    fn show_admin_key(&self, folder: &Folder) {
        let path = folder.admin_key_path();
        if std::io::IsTerminal::is_terminal(&std::io::stdout()) {
            println!("admin key (kept in {}): {}", path.display(), self.admin_key);
        } else {
            tracing::info!(file = %path.display(), "the first admin key is in this file");
        }
    }
}

/// The descriptor of the metadata group at its creation. It must equal the group's own record of itself.
fn metadata_group() -> ShardDescriptor {
    ShardDescriptor {
        shard: ShardId::META,
        range: KeyRange::of_buckets(CollectionId::SYSTEM, Bucket(0), Bucket(u16::MAX)),
        epoch: Epoch { range: 1, config: 1 },
        replicas: vec![ReplicaDescriptor { replica: ReplicaId(1), node: NodeId(1), role: ReplicaRole::Voter }],
    }
}
