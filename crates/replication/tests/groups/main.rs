//! Tests of replica groups on simulated nodes, under faults of network and disks and under operator actions.

mod applier;
mod broken_disk;
mod harness;
mod hostile;
mod leases;
mod losses;
mod membership;
mod release;
mod serving;
mod slow_disk;
mod ticks;
mod versions;
