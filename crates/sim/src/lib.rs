//! Whole clusters in one thread, decided by one seed.
//!
//! Real: everything that decides. The shard host's core and applier with the work of its threads (order of log and messages,
//! frames, pulls), raft-rs groups, both state machines, the reconcilers, the failure detector, routing and sessions, and the
//! encodings of all that travels. Simulated: network, disks, clocks, threads, and the people around the cluster. `docs` of each
//! module say what it leaves out; the crate's README says what that means.
//!
//! ```
//! let report = flotilla_sim::run(1, &flotilla_sim::Options::default())?;
//! assert!(report.counts.commits > 100);
//! # Ok::<_, Box<flotilla_sim::Failure>>(())
//! ```

mod checks;
mod clock;
mod disk;
mod ending;
mod faults;
mod network;
mod node;
mod operator;
mod plan;
mod run;
mod sources;
mod trace;
mod verdict;
mod workload;
mod world;

pub use checks::Counts;
pub use plan::{Fault, Planned};
pub use run::{Failure, Options, Report, run, shrink};

#[doc = include_str!("../README.md")]
#[cfg(doctest)]
struct Readme;
