//! The durable Raft log on raft-engine: one fsync for all groups.
