//! A cluster's certificate authority: one key and one self-signed certificate, minted when the cluster is
//! founded and whenever the authority is rotated.
//!
//! The authority alone decides a certificate's content: node id, cluster, usage and dates. A signing request
//! contributes only its public key and the proof that the requester holds the private key.

use std::{fmt, net::IpAddr, ops::Range, time::Duration};

use flotilla_types::{ClusterId, NodeId};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType, date_time_ymd,
};
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer, pem::PemObject};

use crate::{
    IdentityError, Part,
    name::{authority_name, authority_of, peer_name},
};

/// Largest signing request, in bytes; a larger one is refused without parsing. A node's request has about 250
/// bytes.
pub const CSR_BYTES_MAX: usize = 4096;

/// Certificates of nodes are valid from this past year, so that a node with a slow clock can still connect.
const VALID_FROM_YEAR: i32 = 2020;
/// The same in Unix seconds.
const VALID_FROM_S: u64 = 1_577_836_800;
/// The last time that a certificate can name, in Unix seconds (end of the year 9999).
const TIME_MAX_S: u64 = 253_402_300_799;
/// An authority's own certificate is valid until this year: it ends by rotation.
const VALID_UNTIL_YEAR: i32 = 2120;

/// The cluster's certificate authority, with its private key.
pub struct ClusterAuthority {
    cluster: ClusterId,
    cert: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl ClusterAuthority {
    /// Creates the authority of a new cluster.
    ///
    /// # Errors
    /// [`IdentityError::Crypto`] when the system has no random bytes.
    pub fn mint(cluster: ClusterId) -> Result<Self, IdentityError> {
        let key = KeyPair::generate().map_err(IdentityError::Crypto)?;
        let params = authority_params(cluster)?;
        let cert = params.self_signed(&key).map_err(IdentityError::Crypto)?;
        Ok(Self { cluster, cert: cert.into(), issuer: Issuer::new(params, key) })
    }

    /// Parses what [`cert_pem`](Self::cert_pem) and [`key_pem`](Self::key_pem) returned.
    ///
    /// # Errors
    /// [`IdentityError::Malformed`], [`IdentityError::NoNodeName`] or [`IdentityError::KeyMismatch`].
    pub fn from_pem(cert: &str, key: &str) -> Result<Self, IdentityError> {
        let cert = cert_from_pem(cert, Part::CaCertificate)?;
        let cluster = authority_of(&cert)?;
        let key = KeyPair::from_pem(key).map_err(|_| IdentityError::Malformed(Part::CaKey))?;
        if key.subject_public_key_info() != public_key_of(&cert, Part::CaCertificate)? {
            return Err(IdentityError::KeyMismatch(Part::CaCertificate));
        }
        let issuer = Issuer::from_ca_cert_der(&cert, key).map_err(|_| IdentityError::Malformed(Part::CaCertificate))?;
        Ok(Self { cluster, cert, issuer })
    }

    /// The authority's cluster.
    #[must_use]
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// The authority's certificate.
    #[must_use]
    pub fn cert_der(&self) -> &CertificateDer<'static> {
        &self.cert
    }

    /// The authority's certificate as PEM text.
    #[must_use]
    pub fn cert_pem(&self) -> String {
        cert_to_pem(&self.cert)
    }

    /// The private key as PEM text. Its holder can certify any node.
    #[must_use]
    pub fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// The hash of the authority's certificate, which join tokens pin.
    #[must_use]
    pub fn fingerprint(&self) -> CaFingerprint {
        CaFingerprint::of(&self.cert)
    }

    /// The certificate of the next authority, signed by this one: whoever trusts only this authority accepts
    /// the certificates that the next one issues, if they come with it.
    ///
    /// # Errors
    /// [`IdentityError::ForeignCluster`], [`IdentityError::Crypto`].
    pub fn cross_sign(&self, next: &Self) -> Result<CertificateDer<'static>, IdentityError> {
        if next.cluster != self.cluster {
            return Err(IdentityError::ForeignCluster);
        }
        let mut params = authority_params(self.cluster)?;
        params.use_authority_key_identifier_extension = true;
        Ok(params.signed_by(next.issuer.key(), &self.issuer).map_err(IdentityError::Crypto)?.into())
    }

    /// Certifies until `expires_s` (Unix seconds) that the holder of the request's key is `node`.
    ///
    /// # Errors
    /// [`IdentityError::Malformed`] (a request that does not parse, is too large or is not signed by its own
    /// key; node 0), [`IdentityError::UnsupportedKey`], [`IdentityError::Crypto`].
    pub fn issue(
        &self,
        node: NodeId,
        csr_der: &[u8],
        expires_s: u64,
    ) -> Result<CertificateDer<'static>, IdentityError> {
        if node == NodeId::NONE {
            return Err(IdentityError::Malformed(Part::NodeId));
        }
        let request = parse_request(csr_der)?;
        let mut params = params(&peer_name(node, self.cluster), format!("flotilla node {node}"))?;
        set_validity(&mut params, VALID_FROM_S..expires_s);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let cert = params.signed_by(&request.public_key, &self.issuer).map_err(IdentityError::Crypto)?;
        Ok(cert.into())
    }
}

impl ClusterAuthority {
    /// Certifies the client ports of a node, for clients that reach it at these hosts (addresses or names).
    /// `valid` is in Unix seconds.
    ///
    /// # Errors
    /// As [`issue`](Self::issue); [`IdentityError::Crypto`] also when a host is no DNS name.
    pub fn issue_client_ports(
        &self,
        node: NodeId,
        hosts: &[String],
        csr_der: &[u8],
        valid: Range<u64>,
    ) -> Result<CertificateDer<'static>, IdentityError> {
        if node == NodeId::NONE {
            return Err(IdentityError::Malformed(Part::NodeId));
        }
        let request = parse_request(csr_der)?;
        let mut params = params(&peer_name(node, self.cluster), format!("flotilla node {node}, client ports"))?;
        for host in hosts {
            params.subject_alt_names.push(match host.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(host.as_str().try_into().map_err(IdentityError::Crypto)?),
            });
        }
        set_validity(&mut params, valid);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        // Not for clients: a certificate of client ports must not pass for a node's.
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        Ok(params.signed_by(&request.public_key, &self.issuer).map_err(IdentityError::Crypto)?.into())
    }
}

impl fmt::Debug for ClusterAuthority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClusterAuthority").field("cluster", &self.cluster).finish_non_exhaustive()
    }
}

/// The BLAKE3 hash of an authority's certificate, written as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct CaFingerprint(pub [u8; 32]);

impl CaFingerprint {
    /// The fingerprint of a certificate in DER.
    #[must_use]
    pub fn of(cert_der: &[u8]) -> Self {
        Self(*blake3::hash(cert_der).as_bytes())
    }
}

impl fmt::Display for CaFingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&blake3::Hash::from_bytes(self.0).to_hex())
    }
}

impl fmt::Debug for CaFingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The BLAKE3 hash of the public key in a signing request. It equals the requester's
/// [`NodeKey::public_key_digest`](crate::NodeKey::public_key_digest), and distinguishes a retry from another
/// request.
///
/// # Errors
/// [`IdentityError::Malformed`], [`IdentityError::UnsupportedKey`].
pub fn csr_public_key_digest(csr_der: &[u8]) -> Result<[u8; 32], IdentityError> {
    let request = parse_request(csr_der)?;
    Ok(*blake3::hash(&request.public_key.subject_public_key_info()).as_bytes())
}

/// Parses a request and checks that it is signed by the key it contains.
fn parse_request(csr_der: &[u8]) -> Result<CertificateSigningRequestParams, IdentityError> {
    if csr_der.len() > CSR_BYTES_MAX {
        return Err(IdentityError::Malformed(Part::Request));
    }
    let request = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(csr_der))
        .map_err(|_| IdentityError::Malformed(Part::Request))?;
    let algorithm = request.public_key.algorithm();
    if algorithm != &rcgen::PKCS_ECDSA_P256_SHA256 && algorithm != &rcgen::PKCS_ED25519 {
        return Err(IdentityError::UnsupportedKey);
    }
    Ok(request)
}

/// The parameters of an authority's certificate.
fn authority_params(cluster: ClusterId) -> Result<CertificateParams, IdentityError> {
    let mut params = params(&authority_name(cluster), format!("flotilla {cluster}"))?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    Ok(params)
}

/// A certificate's first second and the last, in Unix seconds, cut to what a certificate can name.
fn set_validity(params: &mut CertificateParams, valid: Range<u64>) {
    let at = |unix_s: u64| date_time_ymd(1970, 1, 1) + Duration::from_secs(unix_s.min(TIME_MAX_S));
    (params.not_before, params.not_after) = (at(valid.start), at(valid.end));
}

/// The parameters that all certificates share.
fn params(dns_name: &str, common_name: String) -> Result<CertificateParams, IdentityError> {
    let mut params = CertificateParams::default();
    params.not_before = date_time_ymd(VALID_FROM_YEAR, 1, 1);
    params.not_after = date_time_ymd(VALID_UNTIL_YEAR, 1, 1);
    params.subject_alt_names = vec![SanType::DnsName(dns_name.try_into().map_err(IdentityError::Crypto)?)];
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    Ok(params)
}

/// The subject public key info of a certificate, in DER.
pub(crate) fn public_key_of(cert: &CertificateDer<'_>, part: Part) -> Result<Vec<u8>, IdentityError> {
    let cert = webpki::EndEntityCert::try_from(cert).map_err(|_| IdentityError::Malformed(part))?;
    Ok(cert.subject_public_key_info().to_vec())
}

/// The first certificate in a PEM text.
pub(crate) fn cert_from_pem(pem: &str, part: Part) -> Result<CertificateDer<'static>, IdentityError> {
    CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|_| IdentityError::Malformed(part))
}

/// A certificate as PEM text (RFC 7468).
pub(crate) fn cert_to_pem(cert: &CertificateDer<'_>) -> String {
    use base64::{Engine, engine::general_purpose::STANDARD};
    const LINE_CHARS: usize = 64;
    let body = STANDARD.encode(cert);
    let mut pem = String::with_capacity(body.len() + body.len() / LINE_CHARS + 64);
    pem.push_str("-----BEGIN CERTIFICATE-----\n");
    let mut rest = body.as_str();
    while !rest.is_empty() {
        // Base64 is ASCII: any position is a character boundary.
        let (line, tail) = rest.split_at(rest.len().min(LINE_CHARS));
        pem.push_str(line);
        pem.push('\n');
        rest = tail;
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    pem
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{NodeKey, peer_of};

    const CLUSTER: ClusterId = ClusterId([7; 16]);

    #[test]
    fn issued_certificate_ignores_names_in_the_request() {
        let authority = ClusterAuthority::mint(CLUSTER).unwrap();
        let key = NodeKey::generate().unwrap();
        let cert = authority.issue(NodeId(3), &key.csr_der().unwrap(), u64::MAX).unwrap();
        assert_eq!(peer_of(&cert, CLUSTER).unwrap(), NodeId(3));

        // A request for another node's name gets the name that the authority chose.
        let pair = KeyPair::generate().unwrap();
        let greedy = CertificateParams::new(vec![peer_name(NodeId(1), CLUSTER)]).unwrap();
        let csr = greedy.serialize_request(&pair).unwrap();
        let cert = authority.issue(NodeId(4), csr.der(), u64::MAX).unwrap();
        assert_eq!(peer_of(&cert, CLUSTER).unwrap(), NodeId(4));
    }

    #[test]
    fn certificate_of_another_cluster_is_refused() {
        let authority = ClusterAuthority::mint(CLUSTER).unwrap();
        let csr = NodeKey::generate().unwrap().csr_der().unwrap();
        let cert = authority.issue(NodeId(3), &csr, u64::MAX).unwrap();
        assert!(matches!(peer_of(&cert, ClusterId([8; 16])), Err(IdentityError::ForeignCluster)));
        assert!(matches!(peer_of(authority.cert_der(), CLUSTER), Err(IdentityError::NoNodeName)));
    }

    #[test]
    fn a_certificate_starts_early_and_expires_when_it_was_asked_to() {
        let authority = ClusterAuthority::mint(CLUSTER).unwrap();
        let key = NodeKey::generate().unwrap();
        let expires_s = 1_800_000_000;
        let cert = authority.issue(NodeId(3), &key.csr_der().unwrap(), expires_s).unwrap();
        let anchors = [authority.cert_der().clone()];
        let valid = |at_s| crate::node::verify(&cert, &anchors, &[], at_s).is_ok();
        assert!(valid(VALID_FROM_S) && valid(expires_s));
        assert!(!valid(VALID_FROM_S - 1) && !valid(expires_s + 1));
    }

    #[test]
    fn authority_round_trips_through_pem() {
        let minted = ClusterAuthority::mint(CLUSTER).unwrap();
        let read = ClusterAuthority::from_pem(&minted.cert_pem(), &minted.key_pem()).unwrap();
        assert_eq!(read.cluster(), CLUSTER);
        assert_eq!(read.fingerprint(), minted.fingerprint());
        assert_eq!(read.cert_pem(), minted.cert_pem());
        let other = ClusterAuthority::mint(CLUSTER).unwrap();
        let mixed = ClusterAuthority::from_pem(&minted.cert_pem(), &other.key_pem());
        assert!(matches!(mixed, Err(IdentityError::KeyMismatch(Part::CaCertificate))));
    }

    #[test]
    fn damaged_request_never_certifies_another_key() {
        let authority = ClusterAuthority::mint(CLUSTER).unwrap();
        let csr = NodeKey::generate().unwrap().csr_der().unwrap();
        assert!(matches!(authority.issue(NodeId(0), &csr, u64::MAX), Err(IdentityError::Malformed(Part::NodeId))));
        let genuine = csr_public_key_digest(&csr).unwrap();
        for position in 0..csr.len() {
            let mut damaged = csr.clone();
            damaged[position] ^= 0x55;
            // The parser tolerates a change of one tag outside the signed part. No other key may ever be
            // certified.
            let digest = csr_public_key_digest(&damaged);
            assert!(digest.is_err() || digest.is_ok_and(|digest| digest == genuine), "byte {position}");
            assert!(authority.issue(NodeId(1), &csr[..position], u64::MAX).is_err(), "cut at {position}");
        }
        assert!(authority.issue(NodeId(1), &vec![0x30; CSR_BYTES_MAX + 1], u64::MAX).is_err());
    }

    #[test]
    fn request_digest_equals_the_key_digest() {
        let key = NodeKey::generate().unwrap();
        assert_eq!(csr_public_key_digest(&key.csr_der().unwrap()).unwrap(), key.public_key_digest());
    }
}
