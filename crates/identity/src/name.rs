//! The DNS name in a node's certificate: how it is built and parsed.

use flotilla_types::{ClusterId, NodeId};
use rustls_pki_types::CertificateDer;

use crate::{IdentityError, Part};

/// The last label of every name. It is no public top-level domain and is never resolved.
const SUFFIX: &str = "flotilla";
/// The first label of an authority's name; a node has its id there.
const AUTHORITY_LABEL: &str = "ca";

/// The name in the certificate of `node`: `n<id>.<cluster id in hex>.flotilla`. The dialling side requires
/// this name in TLS, so that the certificate of any other node of the same cluster is refused.
#[must_use]
pub fn peer_name(node: NodeId, cluster: ClusterId) -> String {
    format!("{node}.{cluster}.{SUFFIX}")
}

/// The name in an authority's own certificate.
pub(crate) fn authority_name(cluster: ClusterId) -> String {
    format!("{AUTHORITY_LABEL}.{cluster}.{SUFFIX}")
}

/// The node that a certificate of `cluster` names. The certificate's signature is *not* checked here; a TLS
/// handshake or [`NodeIdentity::validate`](crate::NodeIdentity::validate) does that.
///
/// # Errors
/// [`IdentityError::Malformed`], [`IdentityError::NoNodeName`], [`IdentityError::ForeignCluster`].
pub fn peer_of(cert_der: &[u8], cluster: ClusterId) -> Result<NodeId, IdentityError> {
    let (node, found) = node_and_cluster_of(cert_der)?;
    if found == cluster { Ok(node) } else { Err(IdentityError::ForeignCluster) }
}

/// The node and the cluster that a certificate names.
pub(crate) fn node_and_cluster_of(cert_der: &[u8]) -> Result<(NodeId, ClusterId), IdentityError> {
    let (label, cluster) = name_of(cert_der, Part::Certificate)?;
    let node: NodeId = label.parse().map_err(|_| IdentityError::NoNodeName)?;
    // Only the canonical spelling is valid, so that two different names never mean the same node.
    if node == NodeId::NONE || node.to_string() != label {
        return Err(IdentityError::NoNodeName);
    }
    Ok((node, cluster))
}

/// The cluster that an authority's certificate names.
pub(crate) fn authority_of(cert_der: &[u8]) -> Result<ClusterId, IdentityError> {
    let (label, cluster) = name_of(cert_der, Part::CaCertificate)?;
    if label == AUTHORITY_LABEL { Ok(cluster) } else { Err(IdentityError::Malformed(Part::CaCertificate)) }
}

/// Splits the only DNS name of a certificate into its first label and the cluster.
fn name_of(cert_der: &[u8], part: Part) -> Result<(String, ClusterId), IdentityError> {
    let der = CertificateDer::from(cert_der);
    let cert = webpki::EndEntityCert::try_from(&der).map_err(|_| IdentityError::Malformed(part))?;
    let mut names = cert.valid_dns_names();
    let (Some(name), None) = (names.next(), names.next()) else { return Err(IdentityError::NoNodeName) };
    let mut labels = name.split('.');
    match (labels.next(), labels.next(), labels.next(), labels.next()) {
        (Some(first), Some(cluster), Some(SUFFIX), None) => {
            let id: ClusterId = cluster.parse().map_err(|_| IdentityError::NoNodeName)?;
            if id.to_string() != cluster {
                return Err(IdentityError::NoNodeName);
            }
            Ok((first.to_owned(), id))
        }
        _ => Err(IdentityError::NoNodeName),
    }
}
