//! The certificate of this node's client ports: from files of the operator, or from the cluster's authority.
//! Either is replaced while the node runs.
//!
//! A certificate of the authority is requested again at two thirds of its life, when the hosts at which
//! clients reach this node change, and when another authority is in force. It then comes with the signature
//! of the authority before, for clients that know only that one. Until the first one is there, connections
//! wait for it.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use flotilla_control::{PeerRequest, Topology, decode_answer};
use flotilla_gateway::Tls;
use flotilla_identity::{CaFingerprint, NodeKey, client_port_config, serves_client_ports};
use flotilla_meta::MetaState;
use flotilla_transport::{Class, Transport};
use flotilla_types::NodeId;
use rustls::ServerConfig;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::{
    authority::{Custody, IdentityWatch, holders, now_s},
    config::TlsFiles,
    folder::Folder,
};

/// Pause between two tries to get a certificate.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// How often files are checked for changes, and hosts.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// Hosts that a certificate names.
pub(crate) const HOSTS_MAX: usize = 8;

type Sender = watch::Sender<Option<Arc<ServerConfig>>>;

/// What the renewal of a certificate needs.
pub(crate) struct CertificateSource {
    pub(crate) identity: IdentityWatch,
    pub(crate) folder: Arc<Folder>,
    pub(crate) custody: Arc<Custody>,
    pub(crate) topology: Arc<Topology>,
    pub(crate) network: Arc<Transport>,
    /// The hosts at which clients reach this node.
    pub(crate) hosts: Vec<String>,
    pub(crate) valid: Duration,
    pub(crate) client_authorities: Vec<CertificateDer<'static>>,
    /// Told which authority issued the certificate in use.
    pub(crate) issued_by: watch::Sender<Option<CaFingerprint>>,
}

/// Serves the operator's files, and reads them again when they change.
///
/// # Errors
/// The files are missing or not a certificate and its key.
pub(crate) fn from_files(files: TlsFiles, authorities: Vec<CertificateDer<'static>>) -> anyhow::Result<Tls> {
    let first = read_files(&files, &authorities)?;
    let (sender, receiver) = watch::channel(Some(Arc::new(first)));
    tokio::spawn(async move {
        let mut seen = stamps(&files);
        loop {
            tokio::time::sleep(CHECK_INTERVAL).await;
            let found = stamps(&files);
            if found == seen {
                continue;
            }
            seen = found;
            match read_files(&files, &authorities) {
                Ok(config) => {
                    tracing::info!(certificate = %files.cert.display(), "read the changed certificate of client ports");
                    sender.send_replace(Some(Arc::new(config)));
                }
                // A file may be replaced before the other.
                Err(error) => {
                    tracing::warn!(error = format!("{error:#}"), "keeping the last certificate of client ports")
                }
            }
        }
    });
    Ok(Tls::new(receiver))
}

/// When both files were changed; `None` for one that cannot be read.
fn stamps(files: &TlsFiles) -> [Option<SystemTime>; 2] {
    [&files.cert, &files.key].map(|path| fs::metadata(path).and_then(|facts| facts.modified()).ok())
}

fn read_files(files: &TlsFiles, authorities: &[CertificateDer<'static>]) -> anyhow::Result<ServerConfig> {
    let chain = read_certificates(&files.cert)?;
    let key = PrivateKeyDer::from_pem_file(&files.key)
        .with_context(|| format!("{} is not a private key in PEM", files.key.display()))?;
    client_port_config(chain, key, authorities)
        .with_context(|| format!("{} and {} do not fit together", files.cert.display(), files.key.display()))
}

/// The certificates in a PEM file.
///
/// # Errors
/// There is none, or one does not parse.
pub(crate) fn read_certificates(path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let found = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let found = found.with_context(|| format!("{} is not a certificate in PEM", path.display()))?;
    if found.is_empty() {
        bail!("{} holds no certificate", path.display());
    }
    Ok(found)
}

/// Serves a certificate of the cluster's authority, and renews it.
pub(crate) fn from_authority(source: CertificateSource) -> Tls {
    let (sender, receiver) = watch::channel(None);
    tokio::spawn(keep_certified(source, sender));
    Tls::new(receiver)
}

/// A certificate with its key, as the data folder keeps it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ClientCertificate {
    hosts: Vec<String>,
    issued_s: u64,
    valid_s: u64,
    /// In DER.
    cert: Vec<u8>,
    key: String,
}

impl ClientCertificate {
    /// When it is to be replaced, in Unix seconds: at two thirds of its life.
    fn renew_at_s(&self) -> u64 {
        self.issued_s.saturating_add(self.valid_s / 3 * 2)
    }

    fn serves(&self, hosts: &[String], now_s: u64) -> bool {
        self.hosts == hosts && now_s < self.issued_s.saturating_add(self.valid_s)
    }
}

async fn keep_certified(mut source: CertificateSource, sender: Sender) {
    let mut held = source.folder.client_certificate().filter(|held| held.serves(&source.hosts, now_s()));
    if let Some(held) = &held {
        source.publish(held, &sender);
    }
    loop {
        let identity = source.identity.borrow_and_update().clone();
        let is_of = |held: &ClientCertificate| {
            serves_client_ports(&CertificateDer::from(&held.cert[..]), identity.ca_cert(), now_s())
        };
        let due = held.as_ref().is_none_or(|held| now_s() >= held.renew_at_s() || !is_of(held));
        if !due {
            let renewed = source.identity.changed();
            let _ = tokio::time::timeout(CHECK_INTERVAL.min(source.valid / 8), renewed).await;
            continue;
        }
        match source.request().await {
            Ok(issued) => {
                if let Err(error) = source.folder.set_client_certificate(&issued) {
                    tracing::warn!(%error, "the certificate of client ports could not be stored");
                }
                source.publish(&issued, &sender);
                tracing::info!(hosts = source.hosts.join(","), "renewed the certificate of client ports");
                held = Some(issued);
            }
            Err(error) => {
                tracing::debug!(error = format!("{error:#}"), "no certificate for client ports yet; trying again");
                tokio::time::sleep(RETRY_INTERVAL).await;
            }
        }
    }
}

impl CertificateSource {
    fn publish(&self, held: &ClientCertificate, sender: &Sender) {
        let identity = self.identity.borrow().clone();
        let cert = CertificateDer::from(held.cert.clone());
        let mut trusted = identity.trusted().into_iter();
        let Some(issuer) = trusted.find(|authority| serves_client_ports(&cert, authority, now_s())) else {
            return tracing::warn!("the certificate of client ports is not of an authority that this node trusts");
        };
        let fingerprint = CaFingerprint::of(&issuer);
        // Clients that know the authority before verify by what it signed. The others know the issuer.
        let cross = identity.authorities().cross.clone().filter(|_| issuer == *identity.ca_cert());
        let chain = vec![cert, cross.unwrap_or(issuer)];
        let config = NodeKey::from_pem(&held.key)
            .and_then(|key| client_port_config(chain, key.private_key_der(), &self.client_authorities));
        match config {
            Ok(config) => {
                sender.send_replace(Some(Arc::new(config)));
                self.issued_by.send_replace(Some(fingerprint));
            }
            Err(error) => tracing::error!(%error, "the certificate of client ports is not valid"),
        }
    }

    /// Asks the nodes that hold the authority in turn, this one first.
    async fn request(&self) -> anyhow::Result<ClientCertificate> {
        let key = NodeKey::generate()?;
        let (csr, valid_s, issued_s) = (key.csr_der()?, self.valid.as_secs(), now_s());
        let cert = match self.custody.certify_own_ports(&csr, &self.hosts, valid_s) {
            Some(cert) => cert,
            None => self.request_from_peers(&csr, valid_s).await?,
        };
        Ok(ClientCertificate { hosts: self.hosts.clone(), issued_s, valid_s, cert: cert.to_vec(), key: key.to_pem() })
    }

    async fn request_from_peers(&self, csr: &[u8], valid_s: u64) -> anyhow::Result<Bytes> {
        for node in holders(&self.topology) {
            let request =
                PeerRequest::CertifyClientPorts { csr: csr.to_vec().into(), hosts: self.hosts.clone(), valid_s };
            let answer = self.network.call(node, Class::Rpc, request.encode(), CALL_TIMEOUT).await;
            if let Ok(Ok(answered)) = answer.map(decode_answer) {
                return Ok(answered.payload);
            }
        }
        bail!("no node that holds the authority has certified the client ports")
    }
}

/// The hosts at which clients reach a node, as the metadata has them.
pub(crate) fn client_hosts_of(meta: &MetaState, node: NodeId) -> BTreeSet<String> {
    let record = meta.node(node).filter(|record| !record.state.is_gone());
    record.map(|record| client_hosts([&record.addresses.http, &record.addresses.redis])).unwrap_or_default()
}

/// The hosts of `host:port` addresses.
pub(crate) fn client_hosts(addresses: [&str; 2]) -> BTreeSet<String> {
    let host = |address: &&str| {
        let (host, _) = address.rsplit_once(':')?;
        Some(host.trim_start_matches('[').trim_end_matches(']').to_owned())
    };
    addresses.iter().filter_map(host).filter(|host| !host.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_those_of_the_client_addresses() {
        let hosts = client_hosts(["127.0.0.1:7111", "[::1]:7112"]);
        assert_eq!(hosts.into_iter().collect::<Vec<_>>(), ["127.0.0.1", "::1"]);
        assert_eq!(client_hosts(["db.example:7111", ""]).into_iter().collect::<Vec<_>>(), ["db.example"]);
    }

    #[test]
    fn a_certificate_serves_its_hosts_and_is_renewed_at_two_thirds_of_its_life() {
        let hosts = vec!["h".to_owned()];
        let held =
            ClientCertificate { hosts: hosts.clone(), issued_s: 100, valid_s: 90, cert: vec![], key: String::new() };
        assert_eq!(held.renew_at_s(), 160);
        assert!(held.serves(&hosts, 189) && !held.serves(&hosts, 190));
        assert!(!held.serves(&["other".to_owned()], 100));
    }
}
