//! The certificate check of a joiner, which knows only the hash of the cluster's authority.
//!
//! It accepts the certificate of any node that is signed by an authority in the chain whose hash equals the
//! pin.

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

/// Verifies a server by the fingerprint of its authority.
#[derive(Debug)]
pub(crate) struct PinnedAuthority {
    pin: CaFingerprint,
    algorithms: WebPkiSupportedAlgorithms,
}

impl PinnedAuthority {
    pub(crate) fn new(pin: CaFingerprint, algorithms: WebPkiSupportedAlgorithms) -> Self {
        Self { pin, algorithms }
    }
}

impl ServerCertVerifier for PinnedAuthority {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let authority = intermediates
            .iter()
            .find(|cert| CaFingerprint::of(cert) == self.pin)
            .ok_or(Error::InvalidCertificate(CertificateError::UnknownIssuer))?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        let cert = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(&cert, &roots, &[], now, self.algorithms.all)?;
        match (node_and_cluster_of(end_entity), authority_of(authority)) {
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

    fn check(pin: CaFingerprint, cert: &CertificateDer<'_>, chain: &[CertificateDer<'_>]) -> bool {
        let verifier = PinnedAuthority::new(pin, provider().signature_verification_algorithms);
        let name = ServerName::try_from(crate::JOIN_SERVER_NAME).unwrap();
        let now = UnixTime::since_unix_epoch(Duration::from_secs(1_800_000_000));
        verifier.verify_server_cert(cert, chain, &name, &[], now).is_ok()
    }

    #[test]
    fn only_a_node_certificate_under_the_pinned_authority_passes() {
        let ours = ClusterAuthority::mint(ClusterId([7; 16])).unwrap();
        let other = ClusterAuthority::mint(ClusterId([7; 16])).unwrap();
        let csr = NodeKey::generate().unwrap().csr_der().unwrap();
        let (cert, forged) = (ours.issue(NodeId(1), &csr).unwrap(), other.issue(NodeId(1), &csr).unwrap());
        let (ca, other_ca) = (ours.cert_der().clone(), other.cert_der().clone());

        assert!(check(ours.fingerprint(), &cert, std::slice::from_ref(&ca)));
        assert!(!check(ours.fingerprint(), &cert, &[]), "the chain must contain the authority's certificate");
        assert!(!check(ours.fingerprint(), &forged, std::slice::from_ref(&other_ca)), "another authority");
        assert!(!check(ours.fingerprint(), &forged, &[other_ca, ca.clone()]), "the pinned one did not sign it");
        assert!(!check(ours.fingerprint(), &ca, std::slice::from_ref(&ca)), "the authority is not a node");
        assert!(!check(ours.fingerprint(), &CertificateDer::from(vec![0x30, 0x03, 1]), &[ca]), "garbage");
    }
}
