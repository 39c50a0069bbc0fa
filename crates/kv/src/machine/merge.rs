//! A merge of two shards: this machine takes over the state of its right neighbour's.
//!
//! Both machines were frozen where the logs say so, and their records are disjoint. The clock is the later one, so that
//! no record gets an earlier version than it had. Sessions are united: a number of a session means one command,
//! wherever it was sent. They may then be more than the limits allow, which only keeps new ones out until some have
//! expired.

use flotilla_storage::MachineError;
use flotilla_types::{ClusterVersion, KeyRange};

use super::KvMachine;
use crate::system::System;

impl KvMachine {
    /// See [`StateMachine::merge`](flotilla_storage::StateMachine::merge).
    pub(super) fn take_over(&mut self, whole: &KeyRange, right: &[u8]) -> Result<(), MachineError> {
        let (right, sessions) = System::decode(right)?;
        if self.version.min(right.version) < ClusterVersion::MERGES {
            return Err(MachineError::Corrupt("a shard was merged before its version allows that"));
        }
        let keys = KeyRange::of_users().intersection(whole);
        if keys.is_empty() {
            return Err(MachineError::Corrupt("shards were merged that have no keys"));
        }
        self.stats.merge(keys, right.records, right.bytes, &right.expiries)?;
        self.version = self.version.max(right.version);
        self.clock = self.clock.max(right.clock);
        self.stats.expiries.advance(self.clock.millis());
        self.sessions.unite(sessions);
        Ok(())
    }
}
