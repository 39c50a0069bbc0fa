//! What can be wrong with keys, certificates and requests for them.

use std::fmt;

use flotilla_types::NodeId;

/// Which piece of an identity an [`IdentityError`] is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The certificate of the cluster's authority.
    CaCertificate,
    /// The private key of the cluster's authority.
    CaKey,
    /// A node's certificate.
    Certificate,
    /// A node's private key.
    Key,
    /// A certificate signing request.
    Request,
    /// The text of a cluster id.
    ClusterId,
    /// The text of a node id, or a node id that names no node.
    NodeId,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::CaCertificate => "CA certificate",
            Self::CaKey => "CA key",
            Self::Certificate => "node certificate",
            Self::Key => "node key",
            Self::Request => "certificate signing request",
            Self::ClusterId => "cluster id",
            Self::NodeId => "node id",
        })
    }
}

/// An identity is not what it should be. Nothing has changed; trying again with the same input fails again.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The bytes or text do not parse, or are larger than allowed.
    #[error("the {0} does not parse")]
    Malformed(Part),
    /// The private key is not the one that the certificate was issued for.
    #[error("the private key does not belong to the {0}")]
    KeyMismatch(Part),
    /// The certificate was not signed by the cluster's authority, or not for use between nodes.
    #[error("the node certificate was not issued by the cluster's authority")]
    NotIssuedHere,
    /// The certificate does not carry exactly one node name.
    #[error("the certificate does not name a node")]
    NoNodeName,
    /// The certificate is of another cluster.
    #[error("the certificate belongs to another cluster")]
    ForeignCluster,
    /// The certificate names another node.
    #[error("the certificate names node {found}, not {expected}")]
    WrongNode {
        /// The node in the certificate.
        found: NodeId,
        /// The node it should name.
        expected: NodeId,
    },
    /// The request is for a kind of key that nodes do not use (only ECDSA P-256 and Ed25519 are signed).
    #[error("the request is for an unsupported kind of key")]
    UnsupportedKey,
    /// Key generation or signing failed, for want of random bytes for example.
    #[error("key generation or signing failed")]
    Crypto(#[source] rcgen::Error),
    /// TLS does not accept the key or the certificate.
    #[error("TLS does not accept the identity")]
    Tls(#[from] rustls::Error),
}
