//! A log in memory that can lose what was not synced.
/// A log in memory.
#[derive(Debug, Default)]
pub struct MemoryLog;
