//! The seams of the store: [`Log`], [`StateEngine`] and [`StateMachine`].
//!
//! Each seam has an in-memory version (for the simulator and for tests) and a conformance suite that every
//! implementation runs. Nothing here knows raft-rs, raft-engine or sled.

mod bounds;
pub mod conformance;
mod engine;
mod log;
mod machine;
mod memory_engine;
mod memory_log;
mod overlay;
mod page;
mod pins;
mod records;

pub use bounds::ReplicaBounds;
pub use engine::{EngineError, StateEngine, StateReader, Usage, WriteSet};
pub use log::{Log, LogBatch, LogError, NodeMark, ReplicaLog, ReplicaWrite};
pub use machine::{ApplyContext, MachineError, ReadContext, StateMachine};
pub use memory_engine::MemoryEngine;
pub use memory_log::MemoryLog;
pub use overlay::Overlay;
pub use pins::Pins;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
