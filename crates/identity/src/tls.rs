//! TLS configurations for QUIC between nodes.
//!
//! One server configuration serves both protocols, because the protocol is known only once the handshake has
//! begun: a client certificate is requested, and verified if present. The accepting side must refuse
//! [`ALPN_PEER`] without a certificate; a certificate that the cluster's authority did not sign fails the
//! handshake.

use std::sync::Arc;

use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    client::Resumption,
    crypto::{CryptoProvider, ring},
    server::{NoServerSessionStorage, WebPkiClientVerifier},
    version::{TLS12, TLS13},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::{
    IdentityError, NodeIdentity, Part,
    pin::{JoinTrust, JoinVerifier},
};

/// The protocol between nodes of a cluster. Both sides present a certificate.
pub const ALPN_PEER: &[u8] = b"flotilla-peer/1";
/// The protocol of a node that is not yet a member of the cluster, or whose certificate is no longer
/// accepted. Only the server presents a certificate.
pub const ALPN_JOIN: &[u8] = b"flotilla-join/1";
/// The server name that a joiner sends, because it does not know which node it reaches. No certificate has
/// this name.
pub const JOIN_SERVER_NAME: &str = "join.flotilla";

/// The configuration with which a node accepts connections of both protocols. The caller must refuse
/// [`ALPN_PEER`] connections without a client certificate.
///
/// # Errors
/// [`IdentityError::Malformed`], [`IdentityError::Tls`].
pub fn server_config(identity: &NodeIdentity) -> Result<ServerConfig, IdentityError> {
    let provider = provider();
    let verifier = WebPkiClientVerifier::builder_with_provider(roots(identity)?, provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(|_| IdentityError::Malformed(Part::CaCertificate))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain(identity), identity.key().private_key_der())?;
    config.alpn_protocols = vec![ALPN_PEER.to_vec(), ALPN_JOIN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(config)
}

/// The configuration with which a node dials another. Dial with [`peer_name`](crate::peer_name) of the
/// expected node as the server name.
///
/// # Errors
/// [`IdentityError::Malformed`], [`IdentityError::Tls`].
pub fn peer_client_config(identity: &NodeIdentity) -> Result<ClientConfig, IdentityError> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_root_certificates(roots(identity)?)
        .with_client_auth_cert(chain(identity), identity.key().private_key_der())?;
    config.alpn_protocols = vec![ALPN_PEER.to_vec()];
    disable_resumption(&mut config);
    Ok(config)
}

/// The configuration with which any node of the cluster is dialled without a certificate. Dial with
/// [`JOIN_SERVER_NAME`].
///
/// # Errors
/// [`IdentityError::Tls`].
pub fn join_client_config(trust: JoinTrust) -> Result<ClientConfig, IdentityError> {
    let provider = provider();
    let verifier = JoinVerifier::new(trust, provider.signature_verification_algorithms);
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN_JOIN.to_vec()];
    disable_resumption(&mut config);
    Ok(config)
}

/// The configuration with which client ports accept connections: TLS 1.2 or 1.3, because many Redis clients
/// speak no 1.3. With `client_authorities` only clients with a certificate of one of them are served.
///
/// # Errors
/// [`IdentityError::Malformed`], [`IdentityError::Tls`].
pub fn client_port_config(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    client_authorities: &[CertificateDer<'static>],
) -> Result<ServerConfig, IdentityError> {
    let provider = provider();
    let builder = ServerConfig::builder_with_provider(provider.clone()).with_protocol_versions(&[&TLS13, &TLS12])?;
    let builder = if client_authorities.is_empty() {
        builder.with_no_client_auth()
    } else {
        let mut roots = RootCertStore::empty();
        for authority in client_authorities {
            roots.add(authority.clone())?;
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
        builder.with_client_cert_verifier(verifier.map_err(|_| IdentityError::Malformed(Part::CaCertificate))?)
    };
    let mut config = builder.with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// The crypto provider of every configuration.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// Disables session resumption, because a resumed session would skip the verifiers.
fn disable_resumption(config: &mut ClientConfig) {
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
}

/// The node's certificate; the authority's, of which a joiner knows only the hash; and what convinces those
/// who know only the authority before.
fn chain(identity: &NodeIdentity) -> Vec<CertificateDer<'static>> {
    let cross = identity.authorities().cross.iter();
    [identity.cert(), identity.ca_cert()].into_iter().chain(cross).cloned().collect()
}

fn roots(identity: &NodeIdentity) -> Result<Arc<RootCertStore>, IdentityError> {
    let mut roots = RootCertStore::empty();
    for authority in identity.trusted() {
        roots.add(authority)?;
    }
    Ok(Arc::new(roots))
}
