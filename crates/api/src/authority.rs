//! The cluster's authority and its rotation.

use flotilla_types::NodeId;
use serde::{Deserialize, Serialize};

/// Answer to `GET /v1/cluster/authority` and `POST /v1/cluster/authority/rotate`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthorityStatus {
    /// How often the authority was replaced.
    pub serial: u64,
    /// BLAKE3 hash of the certificate of the authority in force, 64 hexadecimal digits.
    pub fingerprint: String,
    /// Whether certificates of the authority before are still accepted: until every node has one of the new
    /// authority.
    pub rotating: bool,
    /// The nodes that are part of the cluster, in the order of their ids.
    pub nodes: Vec<NodeCertification>,
    /// The answering node's own certificate.
    pub certificate: CertificateLife,
    /// Whether the answering node holds the authority's key, as the nodes of the metadata group do.
    pub holds_key: bool,
}

/// One node's part in a rotation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeCertification {
    /// The node.
    pub node: NodeId,
    /// Its name.
    pub name: String,
    /// Whether it has a certificate of the authority in force.
    pub certified: bool,
}

/// When a certificate was issued and ends, in Unix milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateLife {
    /// When it was issued.
    pub issued_at_ms: u64,
    /// When it ends; it is renewed long before.
    pub expires_at_ms: u64,
}
