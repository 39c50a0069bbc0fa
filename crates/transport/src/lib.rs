//! QUIC between nodes: streams by class, datagrams, mutual TLS, reconnect with visible state.
