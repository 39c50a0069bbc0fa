//! The shard host.
mod batch;
mod config;
mod core;
pub use batch::{Batch, BatchError};
pub use config::{HostConfig, HostConfigError};
pub use core::*;
