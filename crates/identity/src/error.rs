//! Errors of keys, certificates and signing requests.

use std::fmt;

use flotilla_types::NodeId;

/// The part of an identity that an [`IdentityError`] concerns.
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
    /// The text of a node id, or the reserved node id 0.
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

/// An identity, or a part of one, is not valid. No state has changed; a retry with the same input fails
/// again.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The bytes or text do not parse, or are larger than allowed.
    #[error("the {0} does not parse")]
    Malformed(Part),
    /// The private key does not match the certificate.
    #[error("the private key does not match the {0}")]
    KeyMismatch(Part),
    /// The certificate was not signed by the cluster's authority, or not for both TLS client and server use.
    #[error("the node certificate was not issued by the cluster's authority")]
    NotIssuedHere,
    /// The certificate does not carry exactly one node name.
    #[error("the certificate does not name a node")]
    NoNodeName,
    /// The certificate belongs to another cluster.
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
    /// The request is for an unsupported key type (only ECDSA P-256 and Ed25519 are signed).
    #[error("the request is for an unsupported key type")]
    UnsupportedKey,
    /// Key generation or signing failed, for example because the system has no random bytes.
    #[error("key generation or signing failed")]
    Crypto(#[source] rcgen::Error),
    /// TLS does not accept the key or the certificate.
    #[error("TLS does not accept the identity")]
    Tls(#[from] rustls::Error),
}
