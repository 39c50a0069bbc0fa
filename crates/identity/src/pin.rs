//! The certificate check of a node without a certificate: one that joins and knows only the hash of the
//! cluster's authority, or one that returns and knows the authority itself.
//!
//! It accepts the certificate of any node of the cluster.

use rustls::{
    CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature},
    server::ParsedCertificate,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::{
    CaFingerprint,
    name::{authority_of, node_and_cluster_of},
};

/// Whom a node without a certificate trusts.
#[derive(Debug, Clone)]
pub enum JoinTrust {
    /// The authority of this fingerprint, which must be in the server's chain.
    Pinned(CaFingerprint),
    /// These authorities.
    Known(Vec<CertificateDer<'static>>),
}

impl From<CaFingerprint> for JoinTrust {
    fn from(pin: CaFingerprint) -> Self {
        Self::Pinned(pin)
    }
}

/// Verifies a server by its authority.
#[derive(Debug)]
pub(crate) struct JoinVerifier {
    trust: JoinTrust,
    algorithms: WebPkiSupportedAlgorithms,
}

impl JoinVerifier {
    pub(crate) fn new(trust: JoinTrust, algorithms: WebPkiSupportedAlgorithms) -> Self {
        Self { trust, algorithms }
    }
}

impl ServerCertVerifier for JoinVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let authorities: Vec<_> = match &self.trust {
            JoinTrust::Pinned(pin) => intermediates.iter().filter(|cert| CaFingerprint::of(cert) == *pin).collect(),
            JoinTrust::Known(authorities) => authorities.iter().collect(),
        };
        let first = *authorities.first().ok_or(Error::InvalidCertificate(CertificateError::UnknownIssuer))?;
        let mut roots = RootCertStore::empty();
        for authority in &authorities {
            roots.add((*authority).clone().into_owned())?;
        }
        let cert = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(&cert, &roots, intermediates, now, self.algorithms.all)?;
        match (node_and_cluster_of(end_entity), authority_of(first)) {
            (Ok((_, of_node)), Ok(of_authority)) if of_node == of_authority => Ok(ServerCertVerified::assertion()),
            _ => Err(Error::InvalidCertificate(CertificateError::NotValidForName)),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use flotilla_types::{ClusterId, NodeId};

    use super::*;
    use crate::{ClusterAuthority, NodeKey, tls::provider};

    fn check(trust: impl Into<JoinTrust>, cert: &CertificateDer<'_>, chain: &[CertificateDer<'_>]) -> bool {
        let verifier = JoinVerifier::new(trust.into(), provider().signature_verification_algorithms);
        let name = ServerName::try_from(crate::JOIN_SERVER_NAME).unwrap();
        let now = UnixTime::since_unix_epoch(Duration::from_secs(1_800_000_000));
        verifier.verify_server_cert(cert, chain, &name, &[], now).is_ok()
    }

    #[test]
    fn only_a_node_certificate_under_the_pinned_authority_passes() {
        let ours = ClusterAuthority::mint(ClusterId([7; 16])).unwrap();
        let other = ClusterAuthority::mint(ClusterId([7; 16])).unwrap();
        let csr = NodeKey::generate().unwrap().csr_der().unwrap();
        let (cert, forged) =
            (ours.issue(NodeId(1), &csr, u64::MAX).unwrap(), other.issue(NodeId(1), &csr, u64::MAX).unwrap());
        let (ca, other_ca) = (ours.cert_der().clone(), other.cert_der().clone());

        assert!(check(ours.fingerprint(), &cert, std::slice::from_ref(&ca)));
        assert!(!check(ours.fingerprint(), &cert, &[]), "the chain must contain the authority's certificate");
        assert!(!check(ours.fingerprint(), &forged, std::slice::from_ref(&other_ca)), "another authority");
        assert!(!check(ours.fingerprint(), &forged, &[other_ca, ca.clone()]), "the pinned one did not sign it");
        assert!(!check(ours.fingerprint(), &ca, std::slice::from_ref(&ca)), "the authority is not a node");
        assert!(!check(ours.fingerprint(), &CertificateDer::from(vec![0x30, 0x03, 1]), &[ca]), "garbage");
    }

    #[test]
    fn a_node_that_knows_the_last_authority_accepts_the_next_one_by_its_signature() {
        let mint = || ClusterAuthority::mint(ClusterId([7; 16])).unwrap();
        let (old, next, stranger) = (mint(), mint(), mint());
        let csr = NodeKey::generate().unwrap().csr_der().unwrap();
        let cert = next.issue(NodeId(1), &csr, u64::MAX).unwrap();
        let knows = |authority: &ClusterAuthority| JoinTrust::Known(vec![authority.cert_der().clone()]);
        let chain = [next.cert_der().clone(), old.cross_sign(&next).unwrap()];
        assert!(check(knows(&old), &cert, &chain));
        assert!(!check(knows(&old), &cert, &chain[..1]), "nothing shows that the old authority agreed");
        assert!(!check(knows(&stranger), &cert, &chain));
    }
}
