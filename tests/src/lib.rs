//! The code shared by the tests over real processes: [`support`] (clusters, polling, a simple load), [`load`]
//! (a load whose complete history is recorded), and the fault scenarios. `cargo xtask test` runs the short
//! set of scenarios, `cargo xtask torture` all of them.
//!
//! Deliberately absent: any access to a node other than its public interfaces, its log and its files.

mod checks;
pub mod crashes;
pub mod linearizable;
pub mod load;
mod recovery;
pub mod scenario;
mod scenarios;
pub mod support;

pub use scenarios::{ALL, named};
