//! TLS configurations for QUIC between nodes.
//!
//! One server configuration serves both protocols, because the protocol is known only after the handshake has begun: a
//! client certificate is asked for and checked when given. Whoever accepts a connection must refuse [`ALPN_PEER`] without
//! a certificate; a certificate that the cluster's authority did not sign never completes the handshake.

use std::sync::Arc;

use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    client::Resumption,
    crypto::{CryptoProvider, ring},
    server::{NoServerSessionStorage, WebPkiClientVerifier},
    version::TLS13,
};
use rustls_pki_types::CertificateDer;

use crate::{CaFingerprint, IdentityError, NodeIdentity, Part, pin::PinnedAuthority};

/// The protocol between nodes of a cluster. Both sides present a certificate.
pub const ALPN_PEER: &[u8] = b"flotilla-peer/1";
/// The protocol of a node that is not yet in the cluster. Only the server presents a certificate.
pub const ALPN_JOIN: &[u8] = b"flotilla-join/1";
/// The server name that a joiner sends. It does not know which node it reaches, and no certificate has this name.
pub const JOIN_SERVER_NAME: &str = "join.flotilla";

/// The configuration with which a node accepts connections, of both protocols (see the module's comment).
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

/// The configuration with which a node dials another. Dial with [`peer_name`](crate::peer_name) of the expected node as
/// the server name.
///
/// # Errors
/// [`IdentityError::Malformed`], [`IdentityError::Tls`].
pub fn peer_client_config(identity: &NodeIdentity) -> Result<ClientConfig, IdentityError> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_root_certificates(roots(identity)?)
        .with_client_auth_cert(chain(identity), identity.key().private_key_der())?;
    config.alpn_protocols = vec![ALPN_PEER.to_vec()];
    forget_sessions(&mut config);
    Ok(config)
}

/// The configuration with which a joiner dials any node of the cluster whose authority it has pinned. Dial with
/// [`JOIN_SERVER_NAME`].
///
/// # Errors
/// [`IdentityError::Tls`].
pub fn join_client_config(pinned: CaFingerprint) -> Result<ClientConfig, IdentityError> {
    let provider = provider();
    let verifier = PinnedAuthority::new(pinned, provider.signature_verification_algorithms);
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN_JOIN.to_vec()];
    forget_sessions(&mut config);
    Ok(config)
}

/// The one crypto provider.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// A resumed session would skip the verifiers.
fn forget_sessions(config: &mut ClientConfig) {
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
}

/// The authority's certificate travels along: a joiner has only its hash.
fn chain(identity: &NodeIdentity) -> Vec<CertificateDer<'static>> {
    vec![identity.cert().clone(), identity.ca_cert().clone()]
}

fn roots(identity: &NodeIdentity) -> Result<Arc<RootCertStore>, IdentityError> {
    let mut roots = RootCertStore::empty();
    roots.add(identity.ca_cert().clone())?;
    Ok(Arc::new(roots))
}
