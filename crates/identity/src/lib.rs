//! Cluster CA, node certificates and join tokens.
