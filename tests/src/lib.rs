//! What the tests over real processes share: [`support`] (clusters, waiting, a simple load), [`load`] (a load whose whole history is
//! recorded), and the scenarios that hurt clusters, which `cargo xtask test` runs in a short set and `cargo xtask torture` in a long one.
//!
//! Deliberately absent: anything that looks into a node other than over its public interfaces, its log and its files.

pub mod crashes;
pub mod linearizable;
pub mod load;
pub mod scenario;
mod scenarios;
pub mod support;
mod verdict;
mod whole;

pub use scenarios::{ALL, named};
