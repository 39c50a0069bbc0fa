//! A pure multi-raft core over raft-rs: inputs in, effects out.
