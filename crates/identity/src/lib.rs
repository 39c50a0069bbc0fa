//! Node identities: the cluster's certificate authority, node keys and certificates, TLS configurations, join
//! tokens, client keys.
//!
//! Invariants:
//! - A certificate names exactly one node of one cluster, as one DNS name (`n7.<cluster id>.flotilla`). The
//!   issuer writes that name; names in a signing request are ignored.
//! - TLS 1.3 only, one provider (ring), no session resumption and no early data: every connection runs its
//!   verifiers.
//!
//! Deliberately absent: files and directories (callers store the strings), clocks (TLS reads its own),
//! revocation lists (the transport's admission refuses a removed node).

mod authority;
mod client_key;
mod error;
#[cfg(test)]
mod hostile;
mod name;
mod node;
mod pin;
mod tls;
mod token;

pub use authority::{CSR_BYTES_MAX, CaFingerprint, ClusterAuthority, csr_public_key_digest};
pub use client_key::{ClientKey, KeyError, KeyHash};
pub use error::{IdentityError, Part};
pub use name::{peer_name, peer_of};
pub use node::{Authorities, IdentityPem, Life, NodeIdentity, NodeKey, serves_client_ports};
pub use pin::JoinTrust;
pub use tls::{
    ALPN_JOIN, ALPN_PEER, JOIN_SERVER_NAME, client_port_config, join_client_config, peer_client_config, server_config,
};
pub use token::{JoinToken, TokenError, TokenHash, TokenId};

#[doc = include_str!("../README.md")]
#[cfg(doctest)]
struct Readme;
