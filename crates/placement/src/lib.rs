//! Pure placement: shard map, key to bucket to shard, rendezvous, assignment and plans.
