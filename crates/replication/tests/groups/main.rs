//! Groups of replicas on simulated nodes: what holds whatever the network, the disks and the operator do.

mod harness;
mod hostile;
mod leases;
mod losses;
mod membership;
mod serving;
