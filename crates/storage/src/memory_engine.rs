//! A state engine in memory.
/// A state engine in memory.
#[derive(Debug, Default)]
pub struct MemoryEngine;
