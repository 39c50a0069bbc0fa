//! Starts and hurts real node processes, for tests and for xtask.
