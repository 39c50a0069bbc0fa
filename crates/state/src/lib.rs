//! The state engine: memtable, runs, checkpoints, and sled as a view that can be rebuilt.
