//! Client security of this node: whether clients need keys, and where keys are looked up.

use std::sync::Arc;

use flotilla_control::Topology;
use flotilla_gateway::{Access, KeyFacts, Keys};
use flotilla_meta::KeyId;

use super::config::ClientMode;

/// Who may do what on this node.
pub(crate) fn access(mode: ClientMode, topology: Arc<Topology>) -> Arc<Access> {
    Arc::new(match mode {
        ClientMode::Open => Access::open(),
        ClientMode::Secure => Access::by_keys(Arc::new(MetadataKeys(topology))),
    })
}

/// The client keys in the metadata as this node knows it.
struct MetadataKeys(Arc<Topology>);

impl Keys for MetadataKeys {
    fn key(&self, id: u64) -> Option<KeyFacts> {
        self.0.meta().key(KeyId(id)).map(|record| KeyFacts {
            hash: record.hash,
            role: record.role,
            collections: record.collections.clone(),
            expires_at_ms: record.expires_at_ms,
        })
    }
}
