//! The storage interfaces: [`Log`], [`StateEngine`] and [`StateMachine`].
//!
//! [`Log`] and [`StateEngine`] come with an in-memory implementation (for the simulator and for tests) and a
//! conformance suite that every implementation runs. [`remedy`] says what a node does about a failure.
//! [`replace_file`] replaces a small file durably.
//! Deliberately absent: any dependency on raft-rs, raft-engine or sled.

mod bounds;
pub mod conformance;
mod engine;
mod key_ranges;
mod log;
mod machine;
mod manifest;
mod memory_engine;
mod memory_log;
mod merged;
mod middle;
mod overlay;
mod page;
mod records;
mod remedy;
mod replace;
mod value;
mod value_objects;

pub use bounds::ReplicaBounds;
pub use engine::{
    CompactionDue, DAMAGED_NAMED_MAX, DamagedReplica, EngineError, Fold, FoldCounts, InMemory, ListRefs, ScanBounds,
    ScanPage, Scrubbed, SplitOff, StateEngine, StateReader, Usage, WriteSet, successor,
};
pub use key_ranges::KeyRanges;
pub use log::{Log, LogBatch, LogError, LogEvidence, PeerSequence, ReplicaLog, ReplicaWrite};
pub use machine::{
    ApplyContext, CountAhead, DeferredRead, MachineError, ReadContext, StateMachine, Upcoming, VersionNeed,
    switch_command, switched_version, version_byte, version_need,
};
pub use manifest::{Manifest, PieceRef};
pub use memory_engine::MemoryEngine;
pub use memory_log::MemoryLog;
pub use merged::merged_tables;
pub use middle::of_records as middle_of_records;
pub use overlay::Overlay;
pub use remedy::{Failure, Remedy, remedy};
pub use replace::{ReplaceStep, replace_file, sync_dir};
pub use value::Value;
pub use value_objects::{UploadError, ValueObjects};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
