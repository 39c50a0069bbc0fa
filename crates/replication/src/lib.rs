//! The shard host: drives consensus, log, state and transport for every replica of a node.
