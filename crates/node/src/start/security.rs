//! Client security of this node: whether clients need keys, and where keys are looked up.

use std::sync::Arc;

use flotilla_control::Topology;
use flotilla_gateway::{Access, KeyFacts, Keys, Tls};
use flotilla_meta::KeyId;

use super::{
    client_tls::{self, CertificateSource},
    config::{ClientMode, Config},
};

/// Who may do what on this node.
pub(crate) fn access(mode: ClientMode, topology: Arc<Topology>) -> Arc<Access> {
    Arc::new(match mode {
        ClientMode::Open => Access::open(),
        ClientMode::Secure => Access::by_keys(Arc::new(MetadataKeys(topology))),
    })
}

/// What an operator must know of the client ports.
pub(crate) fn notes(config: &Config) -> Vec<String> {
    let is_open = config.clients == ClientMode::Open;
    let beyond = [config.http, config.redis].iter().any(|address| !address.ip().is_loopback());
    if is_open && beyond {
        tracing::warn!("--insecure: anybody who reaches the client ports may read, write and administer everything");
        vec!["clients are served without TLS and keys (--insecure)".to_owned()]
    } else {
        Vec::new()
    }
}

/// Whether the cluster's authority certifies the client ports.
pub(crate) fn certifies_ports(config: &Config) -> bool {
    config.clients != ClientMode::Open && config.tls_files.is_none()
}

/// TLS of the client ports, unless they are open.
///
/// # Errors
/// A file with certificates cannot be used.
pub(crate) fn tls(config: &Config, source: impl FnOnce() -> CertificateSource) -> anyhow::Result<Option<Tls>> {
    if config.clients == ClientMode::Open {
        return Ok(None);
    }
    let authorities =
        config.tls_client_ca.as_deref().map(client_tls::read_certificates).transpose()?.unwrap_or_default();
    Ok(Some(match config.tls_files.clone() {
        Some(files) => client_tls::from_files(files, authorities)?,
        None => client_tls::from_authority(CertificateSource { client_authorities: authorities, ..source() }),
    }))
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
