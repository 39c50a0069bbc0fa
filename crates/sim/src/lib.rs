//! A deterministic simulator: whole clusters in one thread, every choice derived from one seed.
//!
//! Real code: the shard host's core and applier with the work of its threads (order of log writes and
//! messages, frames, pulls), raft-rs groups, both state machines, the reconcilers, the failure detector,
//! routing and sessions, and all encodings. Simulated: network, disks, clocks, threads, clients and the
//! operator. Each module's docs say what it leaves out.
//!
//! Invariant: a seed decides the whole run. The order of random draws, of iteration and of events is part of
//! that.
//!
//! ```
//! let report = flotilla_sim::run(1, &flotilla_sim::Options::default())?;
//! assert!(report.counts.commits > 100);
//! # Ok::<_, Box<flotilla_sim::Failure>>(())
//! ```

mod checks;
mod clock;
mod convergence;
mod disk;
mod faults;
mod flaws;
mod linearizability;
mod network;
mod node;
mod operator;
mod plan;
mod run;
mod sources;
mod trace;
mod values;
mod workload;
mod world;

pub use checks::Counts;
pub use plan::{Fault, Planned};
pub use run::{Failure, Options, Report, run, shrink};

#[doc = include_str!("../README.md")]
#[cfg(doctest)]
struct Readme;
