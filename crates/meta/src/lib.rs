//! The metadata state machine: nodes, shards, ids, collections, tokens, settings.
