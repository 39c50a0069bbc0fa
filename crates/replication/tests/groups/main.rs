//! Tests of replica groups on simulated nodes, under faults of network and disks and under operator actions.

mod broken_disk;
mod causality;
mod epochs;
mod harness;
mod hostile;
mod leases;
mod losses;
mod membership;
mod release;
mod serving;
mod ticks;
mod versions;
