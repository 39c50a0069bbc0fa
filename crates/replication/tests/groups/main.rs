//! Tests of replica groups on simulated nodes, under faults of network and disks and under operator actions.

mod applier;
mod broken_disk;
mod causality;
mod compactions;
mod consistency;
mod damage;
mod epochs;
mod folds;
mod harness;
mod hostile;
mod hosts;
mod leases;
mod losses;
mod many;
mod membership;
mod release;
mod rest;
mod serving;
mod shard_changes;
mod slow_disk;
mod tails;
mod ticks;
mod upkeep;
mod values;
mod versions;
