//! What should be done next, as pure functions of what is: the loops in `control` only carry it out.

mod lifecycle;
mod members;
mod shard;

pub use lifecycle::{Lifecycle, lifecycle};
pub use members::liveness;
pub use shard::{Next, next_step};
