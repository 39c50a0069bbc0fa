//! A node's key pair, and the identity that it gets with a certificate.
//!
//! A [`NodeIdentity`] is always consistent: its parts are checked against each other when it is built.

use std::{fmt, sync::Arc, time::Duration};

use flotilla_types::{ClusterId, NodeId};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PublicKeyData};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};
use serde::{Deserialize, Serialize};

use crate::{
    CaFingerprint, IdentityError, Part,
    authority::{cert_from_pem, cert_to_pem, public_key_of},
    name::{authority_of, peer_of},
    tls::provider,
};

/// A time within every certificate's validity (2026-01-01). [`NodeIdentity::validate`] checks signatures and
/// reads no clock; TLS checks the dates at each handshake.
const VALIDATION_TIME_UNIX_SECONDS: u64 = 1_767_225_600;

/// A node's key pair (ECDSA P-256). The private key never leaves the node.
#[derive(Clone)]
pub struct NodeKey(Arc<KeyPair>);

impl NodeKey {
    /// A new key pair.
    ///
    /// # Errors
    /// [`IdentityError::Crypto`] when the system gives no random bytes.
    pub fn generate() -> Result<Self, IdentityError> {
        KeyPair::generate().map(|pair| Self(Arc::new(pair))).map_err(IdentityError::Crypto)
    }

    /// A signing request for this key. It proves possession of the key and contains nothing else.
    ///
    /// # Errors
    /// [`IdentityError::Crypto`] when signing fails.
    pub fn csr_der(&self) -> Result<Vec<u8>, IdentityError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let request = params.serialize_request(&*self.0).map_err(IdentityError::Crypto)?;
        Ok(request.der().to_vec())
    }

    /// The private key as text (PKCS#8).
    #[must_use]
    pub fn to_pem(&self) -> String {
        self.0.serialize_pem()
    }

    /// Parses what [`to_pem`](Self::to_pem) returned.
    ///
    /// # Errors
    /// [`IdentityError::Malformed`].
    pub fn from_pem(pem: &str) -> Result<Self, IdentityError> {
        KeyPair::from_pem(pem).map(|pair| Self(Arc::new(pair))).map_err(|_| IdentityError::Malformed(Part::Key))
    }

    /// The BLAKE3 hash of the public key. It identifies the key and is not secret.
    #[must_use]
    pub fn public_key_digest(&self) -> [u8; 32] {
        *blake3::hash(&self.0.subject_public_key_info()).as_bytes()
    }

    /// A secret for one purpose, the same at each start of the node. Secrets of different contexts reveal
    /// nothing about each other or about the key. `context` must be a hard-coded, unique string (see BLAKE3's
    /// key derivation mode).
    #[must_use]
    pub fn derive_secret(&self, context: &'static str) -> [u8; 32] {
        blake3::derive_key(context, self.0.serialized_der())
    }

    /// The private key for TLS.
    #[must_use]
    pub fn private_key_der(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.0.serialize_der()))
    }
}

impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeKey({}…)", &blake3::Hash::from_bytes(self.public_key_digest()).to_hex()[..12])
    }
}

/// The identity of a certified node: what it needs to authenticate itself and to verify its peers.
#[derive(Debug, Clone)]
pub struct NodeIdentity {
    cluster: ClusterId,
    node: NodeId,
    ca_cert: CertificateDer<'static>,
    cert: CertificateDer<'static>,
    key: NodeKey,
}

impl NodeIdentity {
    /// Builds an identity and [validates](Self::validate) it. Certificates are DER.
    ///
    /// # Errors
    /// Those of [`validate`](Self::validate).
    pub fn new(
        cluster: ClusterId,
        node: NodeId,
        ca_cert: CertificateDer<'static>,
        cert: CertificateDer<'static>,
        key: NodeKey,
    ) -> Result<Self, IdentityError> {
        let identity = Self { cluster, node, ca_cert, cert, key };
        identity.validate()?;
        Ok(identity)
    }

    /// Checks that the authority is the cluster's, that it signed the certificate for use on both sides of a
    /// connection, that the certificate names the node, and that the key matches the certificate.
    ///
    /// # Errors
    /// One of [`IdentityError::Malformed`], [`IdentityError::ForeignCluster`], [`IdentityError::WrongNode`],
    /// [`IdentityError::KeyMismatch`], [`IdentityError::NotIssuedHere`].
    pub fn validate(&self) -> Result<(), IdentityError> {
        if authority_of(&self.ca_cert)? != self.cluster {
            return Err(IdentityError::ForeignCluster);
        }
        let found = peer_of(&self.cert, self.cluster)?;
        if found != self.node {
            return Err(IdentityError::WrongNode { found, expected: self.node });
        }
        if self.key.0.subject_public_key_info() != public_key_of(&self.cert, Part::Certificate)? {
            return Err(IdentityError::KeyMismatch(Part::Certificate));
        }
        let anchor = webpki::anchor_from_trusted_cert(&self.ca_cert)
            .map_err(|_| IdentityError::Malformed(Part::CaCertificate))?;
        let anchors = [anchor];
        let cert =
            webpki::EndEntityCert::try_from(&self.cert).map_err(|_| IdentityError::Malformed(Part::Certificate))?;
        let time = UnixTime::since_unix_epoch(Duration::from_secs(VALIDATION_TIME_UNIX_SECONDS));
        let algorithms = provider().signature_verification_algorithms;
        for usage in [webpki::KeyUsage::server_auth(), webpki::KeyUsage::client_auth()] {
            cert.verify_for_usage(algorithms.all, &anchors, &[], time, usage, None, None)
                .map_err(|_| IdentityError::NotIssuedHere)?;
        }
        Ok(())
    }

    /// The node's cluster.
    #[must_use]
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// The node's id.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// The authority's certificate.
    #[must_use]
    pub fn ca_cert(&self) -> &CertificateDer<'static> {
        &self.ca_cert
    }

    /// The node's certificate.
    #[must_use]
    pub fn cert(&self) -> &CertificateDer<'static> {
        &self.cert
    }

    /// The node's key.
    #[must_use]
    pub fn key(&self) -> &NodeKey {
        &self.key
    }

    /// The fingerprint that join tokens of this cluster pin.
    #[must_use]
    pub fn ca_fingerprint(&self) -> CaFingerprint {
        CaFingerprint::of(&self.ca_cert)
    }

    /// The authority's certificate as PEM text.
    #[must_use]
    pub fn ca_pem(&self) -> String {
        cert_to_pem(self.ca_cert())
    }

    /// The identity as strings for storage. They contain the private key.
    #[must_use]
    pub fn to_pem(&self) -> IdentityPem {
        IdentityPem {
            cluster: self.cluster.to_string(),
            node: self.node.to_string(),
            ca_cert: cert_to_pem(&self.ca_cert),
            cert: cert_to_pem(&self.cert),
            key: self.key.to_pem(),
        }
    }

    /// Parses what [`to_pem`](Self::to_pem) returned, and validates it.
    ///
    /// # Errors
    /// Those of [`validate`](Self::validate).
    pub fn from_pem(pem: &IdentityPem) -> Result<Self, IdentityError> {
        Self::new(
            pem.cluster.parse().map_err(|_| IdentityError::Malformed(Part::ClusterId))?,
            pem.node.parse().map_err(|_| IdentityError::Malformed(Part::NodeId))?,
            cert_from_pem(&pem.ca_cert, Part::CaCertificate)?,
            cert_from_pem(&pem.cert, Part::Certificate)?,
            NodeKey::from_pem(&pem.key)?,
        )
    }
}

/// A [`NodeIdentity`] as strings. Store it where only the node can read it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdentityPem {
    /// The cluster id, 32 hexadecimal digits.
    pub cluster: String,
    /// The node id, `n7`.
    pub node: String,
    /// The authority's certificate (PEM).
    pub ca_cert: String,
    /// The node's certificate (PEM).
    pub cert: String,
    /// The node's private key (PEM, PKCS#8).
    pub key: String,
}

impl fmt::Debug for IdentityPem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdentityPem").field("cluster", &self.cluster).field("node", &self.node).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ClusterAuthority;

    const CLUSTER: ClusterId = ClusterId([7; 16]);

    fn identity(authority: &ClusterAuthority, node: u64) -> NodeIdentity {
        let key = NodeKey::generate().unwrap();
        let cert = authority.issue(NodeId(node), &key.csr_der().unwrap()).unwrap();
        NodeIdentity::new(authority.cluster(), NodeId(node), authority.cert_der().clone(), cert, key).unwrap()
    }

    #[test]
    fn identity_round_trips_through_pem() {
        let authority = ClusterAuthority::mint(CLUSTER).unwrap();
        let identity = identity(&authority, 5);
        let read = NodeIdentity::from_pem(&identity.to_pem()).unwrap();
        assert_eq!(read.to_pem(), identity.to_pem());
        assert_eq!(read.ca_fingerprint(), authority.fingerprint());
        assert_eq!(read.key().derive_secret("a"), identity.key().derive_secret("a"));
        assert_ne!(read.key().derive_secret("a"), identity.key().derive_secret("b"));
    }

    #[test]
    fn mismatched_parts_are_refused() {
        let authority = ClusterAuthority::mint(CLUSTER).unwrap();
        let (one, two) = (identity(&authority, 1).to_pem(), identity(&authority, 2).to_pem());
        // The same cluster id with another key, as from a second bootstrap with a copied id.
        let impostor = identity(&ClusterAuthority::mint(CLUSTER).unwrap(), 1).to_pem();
        let foreign = identity(&ClusterAuthority::mint(ClusterId([8; 16])).unwrap(), 1).to_pem();

        let read = |pem: IdentityPem| NodeIdentity::from_pem(&pem).map(|_| ());
        let with = |change: &dyn Fn(&mut IdentityPem)| {
            let mut pem = one.clone();
            change(&mut pem);
            read(pem)
        };
        assert!(matches!(with(&|p| p.key = two.key.clone()), Err(IdentityError::KeyMismatch(Part::Certificate))));
        assert!(matches!(with(&|p| p.node = two.node.clone()), Err(IdentityError::WrongNode { .. })));
        assert!(matches!(with(&|p| p.ca_cert = impostor.ca_cert.clone()), Err(IdentityError::NotIssuedHere)));
        assert!(matches!(with(&|p| p.ca_cert = foreign.ca_cert.clone()), Err(IdentityError::ForeignCluster)));
        assert!(matches!(with(&|p| p.cert = foreign.cert.clone()), Err(IdentityError::ForeignCluster)));
        assert!(matches!(with(&|p| p.cert = "garbage".into()), Err(IdentityError::Malformed(Part::Certificate))));
    }

    #[test]
    fn secrets_are_not_printed() {
        let authority = ClusterAuthority::mint(CLUSTER).unwrap();
        let identity = identity(&authority, 5);
        let body: String = identity.key().to_pem().lines().skip(1).take(1).collect();
        assert!(!format!("{identity:?} {:?} {authority:?}", identity.to_pem()).contains(&body));
    }
}
