//! The state machine of the metadata group (group 0).
//!
//! Invariants: the state is stored in records; memory holds the same state as a value, rebuilt by `restore`.
//! Changes are published once per entry, after the whole entry. The feed ring is only in memory: it is an
//! optimization for followers.

use std::sync::Arc;

use bytes::Bytes;
use flotilla_storage::{ApplyContext, DeferredRead, MachineError, ReadContext, StateMachine, StateReader, WriteSet};
use flotilla_types::{ClusterVersion, Timestamp};

use crate::{
    CodecError, Feed, Increment, MetaQuery, MetaReply, MetaState,
    apply::apply_entry,
    codec::{decode_versioned, encode_versioned},
    feed::FeedRing,
    store,
};

/// Receives the metadata after each entry that changed it and after a restore. Runs on the apply thread: must
/// not block.
pub type Publish = Box<dyn Fn(Arc<MetaState>) + Send>;

/// The metadata group's state machine.
pub struct MetaMachine {
    state: Arc<MetaState>,
    /// The timestamp of the last command applied.
    clock: Timestamp,
    ring: FeedRing,
    publish: Publish,
}

/// The part of a checkpoint that is not in the records.
#[derive(Clone, Copy, PartialEq, prost::Message)]
struct SystemPb {
    #[prost(uint64, tag = "1")]
    version: u64,
    #[prost(uint64, tag = "2")]
    clock: u64,
}

impl MetaMachine {
    /// An empty machine; the host calls [`StateMachine::restore`] before anything else.
    #[must_use]
    pub fn new(publish: Publish) -> Self {
        Self { state: Arc::default(), clock: Timestamp::ZERO, ring: FeedRing::default(), publish }
    }

    /// The metadata as of the last applied entry.
    #[must_use]
    pub fn state(&self) -> &Arc<MetaState> {
        &self.state
    }

    /// The answer to a follower at this version.
    #[must_use]
    pub fn feed_since(&self, version: u64) -> Feed {
        self.ring.since(version, &self.state)
    }
}

impl StateMachine for MetaMachine {
    fn apply(
        &mut self,
        context: &ApplyContext<'_>,
        commands: &[Bytes],
        _records: &dyn StateReader,
        writes: &mut WriteSet,
    ) -> Result<Vec<Bytes>, MachineError> {
        let mut next = MetaState::clone(&self.state);
        let replies = apply_entry(&mut next, context.index, context.timestamp, commands).map_err(store::corrupt)?;
        self.clock = self.clock.max(context.timestamp.plus(commands.len().saturating_sub(1) as u64));
        if next.version() != self.state.version() {
            store::write_changes(&self.state, &next, writes);
            self.ring.push(Increment {
                previous: self.state.version(),
                index: context.index,
                timestamp: context.timestamp,
                commands: commands.to_vec(),
            });
            self.state = Arc::new(next);
            (self.publish)(Arc::clone(&self.state));
        }
        Ok(replies.iter().map(MetaReply::encode).collect())
    }

    fn read(
        &self,
        _context: &ReadContext<'_>,
        query: &[u8],
        _records: &dyn StateReader,
    ) -> Result<Bytes, MachineError> {
        let feed = match MetaQuery::decode(query) {
            Ok(MetaQuery::State) => Feed::Snapshot(self.state.encode()),
            Ok(MetaQuery::FeedSince(version)) => self.feed_since(version),
            Err(CodecError::Malformed | CodecError::Version { .. }) => Feed::Refused,
        };
        Ok(feed.encode())
    }

    /// Commands change the value in memory; records are only written.
    fn keys_read(&self, _commands: &[Bytes], _keys: &mut Vec<Bytes>) {}

    fn deferred(&self) -> Option<Arc<dyn DeferredRead>> {
        None
    }

    /// The version in force is part of the metadata itself: it rises with the entry that says so.
    fn version(&self) -> Option<ClusterVersion> {
        None
    }

    fn meaning(&self) -> ClusterVersion {
        self.state.cluster_version()
    }

    fn system(&self) -> Bytes {
        encode_versioned(&SystemPb { version: self.state.version(), clock: self.clock.0 })
    }

    fn restore(&mut self, system: &[u8], records: &dyn StateReader) -> Result<(), MachineError> {
        let system: SystemPb =
            if system.is_empty() { SystemPb::default() } else { decode_versioned(system).map_err(store::corrupt)? };
        let state = store::load(records)?;
        // Records from another position would silently skip or repeat entries.
        if state.version() != system.version {
            return Err(MachineError::Corrupt("metadata records and checkpoint have different versions"));
        }
        self.state = Arc::new(state);
        self.clock = Timestamp(system.clock);
        self.ring.clear();
        (self.publish)(Arc::clone(&self.state));
        Ok(())
    }
}

#[cfg(test)]
mod tests;
