//! A node's key pair, and the identity that it gets with a certificate.
//!
//! A [`NodeIdentity`] is always consistent: its parts are checked against each other when it is built.
//! Renewal replaces the certificate, never the key: the cluster knows a node by its key.

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

/// When a certificate was issued and how long it is valid, in Unix seconds and seconds. Zero where this is
/// not known: such a certificate is due for renewal.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Life {
    /// When it was issued.
    #[serde(default)]
    pub issued_s: u64,
    /// How long it is valid from then on.
    #[serde(default)]
    pub valid_s: u64,
}

impl Life {
    /// When the certificate is to be replaced: at two thirds of its life.
    #[must_use]
    pub fn renew_at_s(self) -> u64 {
        self.issued_s.saturating_add(self.valid_s / 3 * 2)
    }

    /// Whether it has ended, as far as this is known.
    #[must_use]
    pub fn is_over(self, now_s: u64) -> bool {
        self.valid_s != 0 && now_s >= self.expires_s()
    }

    /// When it ends.
    #[must_use]
    pub fn expires_s(self) -> u64 {
        self.issued_s.saturating_add(self.valid_s)
    }
}

/// The authorities of a cluster, as those see them that certify a node. Certificates are DER.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authorities {
    /// The one that issues certificates now.
    pub current: CertificateDer<'static>,
    /// The certificate of `current`, signed by the authority before it ([`cross_sign`]).
    ///
    /// [`cross_sign`]: crate::ClusterAuthority::cross_sign
    pub cross: Option<CertificateDer<'static>>,
    /// The one before, while certificates that it issued are still accepted.
    pub previous: Option<CertificateDer<'static>>,
}

impl Authorities {
    /// A cluster whose authority was never rotated.
    #[must_use]
    pub fn only(current: CertificateDer<'static>) -> Self {
        Self { current, cross: None, previous: None }
    }
}

/// The identity of a certified node: what it needs to authenticate itself and to verify its peers.
#[derive(Debug, Clone)]
pub struct NodeIdentity {
    cluster: ClusterId,
    node: NodeId,
    authorities: Authorities,
    cert: CertificateDer<'static>,
    key: NodeKey,
    life: Life,
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
        let authorities = Authorities::only(ca_cert);
        let identity = Self { cluster, node, authorities, cert, key, life: Life::default() };
        identity.validate()?;
        Ok(identity)
    }

    /// The same with what is known of the certificate's life.
    #[must_use]
    pub fn with_life(self, life: Life) -> Self {
        Self { life, ..self }
    }

    /// This node with a new certificate. A new authority is accepted only if an authority that this node
    /// trusts has signed it.
    ///
    /// # Errors
    /// Those of [`validate`](Self::validate); [`IdentityError::NotIssuedHere`] also when the certificate is
    /// not valid in the middle of its life, because the clock of the issuer or of this node is wrong.
    pub fn renewed(
        &self,
        authorities: Authorities,
        cert: CertificateDer<'static>,
        life: Life,
    ) -> Result<Self, IdentityError> {
        verify(&cert, &self.trusted(), authorities.cross.as_slice(), life.issued_s.saturating_add(life.valid_s / 2))?;
        let renewed = Self { authorities, cert, life, key: self.key.clone(), ..*self };
        renewed.validate()?;
        Ok(renewed)
    }

    /// The same without the authority before the current one: certificates that it issued are refused from
    /// now on.
    #[must_use]
    pub fn without_previous(&self) -> Self {
        let mut identity = self.clone();
        identity.authorities.previous = None;
        identity
    }

    /// Checks that the authority is the cluster's, that it signed the certificate for use on both sides of a
    /// connection, that the certificate names the node, and that the key matches the certificate.
    ///
    /// # Errors
    /// One of [`IdentityError::Malformed`], [`IdentityError::ForeignCluster`], [`IdentityError::WrongNode`],
    /// [`IdentityError::KeyMismatch`], [`IdentityError::NotIssuedHere`].
    pub fn validate(&self) -> Result<(), IdentityError> {
        let others = self.authorities.cross.iter().chain(&self.authorities.previous);
        for authority in std::iter::once(self.ca_cert()).chain(others) {
            if authority_of(authority)? != self.cluster {
                return Err(IdentityError::ForeignCluster);
            }
        }
        let found = peer_of(&self.cert, self.cluster)?;
        if found != self.node {
            return Err(IdentityError::WrongNode { found, expected: self.node });
        }
        if self.key.0.subject_public_key_info() != public_key_of(&self.cert, Part::Certificate)? {
            return Err(IdentityError::KeyMismatch(Part::Certificate));
        }
        verify(&self.cert, std::slice::from_ref(self.ca_cert()), &[], VALIDATION_TIME_UNIX_SECONDS)
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

    /// The certificate of the authority that issued the node's.
    #[must_use]
    pub fn ca_cert(&self) -> &CertificateDer<'static> {
        &self.authorities.current
    }

    /// The authorities as of the last renewal.
    #[must_use]
    pub fn authorities(&self) -> &Authorities {
        &self.authorities
    }

    /// The authorities whose certificates are accepted.
    #[must_use]
    pub fn trusted(&self) -> Vec<CertificateDer<'static>> {
        std::iter::once(self.ca_cert()).chain(&self.authorities.previous).cloned().collect()
    }

    /// What is known of the certificate's life.
    #[must_use]
    pub fn life(&self) -> Life {
        self.life
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
        CaFingerprint::of(self.ca_cert())
    }

    /// The certificates of the trusted authorities as PEM text, the current one first.
    #[must_use]
    pub fn ca_pem(&self) -> String {
        self.trusted().iter().map(cert_to_pem).collect()
    }

    /// The identity as strings for storage. They contain the private key.
    #[must_use]
    pub fn to_pem(&self) -> IdentityPem {
        IdentityPem {
            cluster: self.cluster.to_string(),
            node: self.node.to_string(),
            ca_cert: cert_to_pem(self.ca_cert()),
            cert: cert_to_pem(&self.cert),
            key: self.key.to_pem(),
            ca_cross: self.authorities.cross.as_ref().map(cert_to_pem),
            ca_previous: self.authorities.previous.as_ref().map(cert_to_pem),
            life: self.life,
        }
    }

    /// Parses what [`to_pem`](Self::to_pem) returned, and validates it.
    ///
    /// # Errors
    /// Those of [`validate`](Self::validate).
    pub fn from_pem(pem: &IdentityPem) -> Result<Self, IdentityError> {
        let authority = |pem: &String| cert_from_pem(pem, Part::CaCertificate);
        let identity = Self {
            cluster: pem.cluster.parse().map_err(|_| IdentityError::Malformed(Part::ClusterId))?,
            node: pem.node.parse().map_err(|_| IdentityError::Malformed(Part::NodeId))?,
            authorities: Authorities {
                current: authority(&pem.ca_cert)?,
                cross: pem.ca_cross.as_ref().map(authority).transpose()?,
                previous: pem.ca_previous.as_ref().map(authority).transpose()?,
            },
            cert: cert_from_pem(&pem.cert, Part::Certificate)?,
            key: NodeKey::from_pem(&pem.key)?,
            life: pem.life,
        };
        identity.validate()?;
        Ok(identity)
    }
}

/// Checks that one of the authorities, possibly by a certificate in between, signed a certificate for use on
/// both sides of a connection, and that all of them are valid at a time.
pub(crate) fn verify(
    cert: &CertificateDer<'_>,
    authorities: &[CertificateDer<'_>],
    between: &[CertificateDer<'_>],
    at_s: u64,
) -> Result<(), IdentityError> {
    let anchors = authorities.iter().map(webpki::anchor_from_trusted_cert).collect::<Result<Vec<_>, _>>();
    let anchors = anchors.map_err(|_| IdentityError::Malformed(Part::CaCertificate))?;
    let cert = webpki::EndEntityCert::try_from(cert).map_err(|_| IdentityError::Malformed(Part::Certificate))?;
    let time = UnixTime::since_unix_epoch(Duration::from_secs(at_s));
    let algorithms = provider().signature_verification_algorithms;
    for usage in [webpki::KeyUsage::server_auth(), webpki::KeyUsage::client_auth()] {
        cert.verify_for_usage(algorithms.all, &anchors, between, time, usage, None, None)
            .map_err(|_| IdentityError::NotIssuedHere)?;
    }
    Ok(())
}

/// Whether an authority signed a certificate of client ports that is valid at a time.
#[must_use]
pub fn serves_client_ports(cert: &CertificateDer<'_>, authority: &CertificateDer<'_>, at_s: u64) -> bool {
    let Ok(anchor) = webpki::anchor_from_trusted_cert(authority) else { return false };
    let Ok(cert) = webpki::EndEntityCert::try_from(cert) else { return false };
    let time = UnixTime::since_unix_epoch(Duration::from_secs(at_s));
    let (algorithms, usage) = (provider().signature_verification_algorithms, webpki::KeyUsage::server_auth());
    cert.verify_for_usage(algorithms.all, &[anchor], &[], time, usage, None, None).is_ok()
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
    /// The authority's certificate, signed by the authority before it (PEM).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_cross: Option<String>,
    /// The certificate of the authority before, while it is trusted (PEM).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_previous: Option<String>,
    /// When the node's certificate was issued, and for how long.
    #[serde(flatten)]
    pub life: Life,
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
        let cert = authority.issue(NodeId(node), &key.csr_der().unwrap(), u64::MAX).unwrap();
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

    /// The same node certified by `next` for an hour, with what proves that `signer` vouches for `next`.
    fn succeed(
        old: &NodeIdentity,
        signer: &ClusterAuthority,
        next: &ClusterAuthority,
    ) -> Result<NodeIdentity, IdentityError> {
        let life = Life { issued_s: 1_800_000_000, valid_s: 3_600 };
        let cert = next.issue(old.node(), &old.key().csr_der().unwrap(), life.expires_s()).unwrap();
        let authorities = Authorities {
            current: next.cert_der().clone(),
            cross: Some(signer.cross_sign(next).unwrap()),
            previous: Some(old.ca_cert().clone()),
        };
        old.renewed(authorities, cert, life)
    }

    #[test]
    fn only_an_authority_that_the_trusted_one_signed_replaces_it() {
        let mint = || ClusterAuthority::mint(CLUSTER).unwrap();
        let (old, next, stranger) = (mint(), mint(), mint());
        let node = identity(&old, 5);
        let renewed = succeed(&node, &old, &next).unwrap();
        assert_eq!(renewed.trusted(), [next.cert_der().clone(), old.cert_der().clone()]);
        assert_eq!(NodeIdentity::from_pem(&renewed.to_pem()).unwrap().to_pem(), renewed.to_pem());
        assert_eq!(renewed.without_previous().trusted(), [next.cert_der().clone()]);
        assert_eq!(renewed.key().public_key_digest(), node.key().public_key_digest());
        assert!(matches!(succeed(&node, &stranger, &next), Err(IdentityError::NotIssuedHere)));
        assert!(matches!(succeed(&renewed.without_previous(), &old, &stranger), Err(IdentityError::NotIssuedHere)));
    }

    #[test]
    fn a_certificate_of_an_issuer_with_a_wrong_clock_is_not_taken() {
        let authority = ClusterAuthority::mint(CLUSTER).unwrap();
        let node = identity(&authority, 5);
        let life = Life { issued_s: 1_800_000_000, valid_s: 3_600 };
        let renew = |expires_s| {
            let cert = authority.issue(node.node(), &node.key().csr_der().unwrap(), expires_s).unwrap();
            node.renewed(node.authorities().clone(), cert, life)
        };
        assert_eq!(renew(life.expires_s()).unwrap().life(), life);
        assert!(matches!(renew(life.issued_s), Err(IdentityError::NotIssuedHere)));
    }

    #[test]
    fn an_identity_without_a_recorded_life_is_due() {
        let old = identity(&ClusterAuthority::mint(CLUSTER).unwrap(), 5);
        let mut json = serde_json::to_value(old.to_pem()).unwrap();
        let fields = json.as_object_mut().unwrap();
        for name in ["issued_s", "valid_s"] {
            fields.remove(name);
        }
        let read = NodeIdentity::from_pem(&serde_json::from_value(json).unwrap()).unwrap();
        assert!(read.life().renew_at_s() == 0 && !read.life().is_over(u64::MAX), "due, but not known to be over");
        assert_eq!(Life { issued_s: 100, valid_s: 90 }.renew_at_s(), 160);
    }

    #[test]
    fn secrets_are_not_printed() {
        let authority = ClusterAuthority::mint(CLUSTER).unwrap();
        let identity = identity(&authority, 5);
        let body: String = identity.key().to_pem().lines().skip(1).take(1).collect();
        assert!(!format!("{identity:?} {:?} {authority:?}", identity.to_pem()).contains(&body));
    }
}
