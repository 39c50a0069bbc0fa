//! What a replica at rest costs in memory. It is a test of its own, because its allocator counts for the whole
//! process.

#[path = "../groups/many.rs"]
mod many;

use std::alloc::System;

use many::Many;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Bytes of a replica of three voters: its group, the core's state of it, its published status, and its log in
/// memory. A node has tens of thousands of them.
const BYTES_MAX: usize = 5_500;

/// Bytes that are in use for a node that leads so many groups, all at rest.
fn bytes_of(groups: u64) -> usize {
    let region = Region::new(ALLOCATOR);
    let many = Many::resting(groups);
    let change = region.change();
    drop(many);
    change.bytes_allocated - change.bytes_deallocated
}

#[test]
fn a_resting_replica_takes_little_memory() {
    let (fewer, more) = (1_000, 2_000);
    let bytes = (bytes_of(more) - bytes_of(fewer)) / (more - fewer) as usize;
    assert!(bytes <= BYTES_MAX, "{bytes} bytes a replica");
}
