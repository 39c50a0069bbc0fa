//! By which descriptor replicas judge each entry: what must be equal on all of them.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use flotilla_types::{ClusterVersion, Epoch, KeyRange, LogIndex, ShardDescriptor, ShardId};

use crate::{
    ApplyContext, CountAhead, DeferredRead, MachineError, ReadContext, StateMachine, StateReader, Upcoming, WriteSet,
};

/// The descriptors of shards after each of their entries, as their replicas report them.
#[derive(Debug, Default)]
pub struct DescriptorHistory(BTreeMap<ShardId, History>);

#[derive(Debug, Default)]
struct History {
    /// Committed entries that raise the range epoch, and by how much.
    changes: BTreeMap<LogIndex, u64>,
    /// The range epoch without any of them.
    first_range: Option<u64>,
    after: BTreeMap<LogIndex, Epoch>,
    descriptors: BTreeMap<Epoch, ShardDescriptor>,
}

impl DescriptorHistory {
    /// A committed entry raises the range epoch by one. Call it before any replica applies that entry. `false` if it
    /// was called already.
    pub fn changes_range(&mut self, shard: ShardId, index: LogIndex) -> bool {
        self.0.entry(shard).or_default().changes.insert(index, 1).is_none()
    }

    /// A committed entry raises the range epoch to this one, which may be more than one higher. Otherwise as
    /// [`changes_range`](Self::changes_range).
    pub fn moves_range(&mut self, shard: ShardId, index: LogIndex, to: u64) -> bool {
        let history = self.0.entry(shard).or_default();
        if history.changes.contains_key(&index) {
            return false;
        }
        let before = history.first_range.unwrap_or_default() + history.raised_up_to(index);
        history.changes.insert(index, to.saturating_sub(before));
        true
    }

    /// A replica has this descriptor after the entry at `index`, or judges the next entry by it.
    ///
    /// # Panics
    /// Another replica has another one there, or the range epoch is not the one of the changes up to there.
    pub fn holds_after(&mut self, index: LogIndex, descriptor: &ShardDescriptor) {
        let shard = descriptor.shard;
        let history = self.0.entry(shard).or_default();
        let changes = history.raised_up_to(index);
        let first = *history.first_range.get_or_insert(descriptor.epoch.range - changes);
        let expected = first + changes;
        assert_eq!(descriptor.epoch.range, expected, "{shard} has another range epoch after {index}");
        let epoch = *history.after.entry(index).or_insert(descriptor.epoch);
        assert_eq!(descriptor.epoch, epoch, "replicas of {shard} have different epochs after {index}");
        let known = history.descriptors.entry(epoch).or_insert_with(|| descriptor.clone());
        assert_eq!(known, descriptor, "two descriptors of {shard} have the same epoch");
    }
}

impl History {
    /// By how much entries up to this one have raised the range epoch.
    fn raised_up_to(&self, index: LogIndex) -> u64 {
        self.changes.range(..=index).map(|(_, by)| by).sum()
    }
}

/// Receives the context by which each entry is applied.
pub type Observer = Arc<dyn Fn(&ApplyContext<'_>) + Send + Sync>;

/// A state machine whose observer receives the context of each of its entries.
pub struct Observed {
    machine: Box<dyn StateMachine>,
    observer: Observer,
}

impl Observed {
    /// Observes a machine.
    #[must_use]
    pub fn new(machine: Box<dyn StateMachine>, observer: Observer) -> Self {
        Self { machine, observer }
    }
}

impl StateMachine for Observed {
    fn apply(
        &mut self,
        context: &ApplyContext<'_>,
        commands: &[Bytes],
        records: &dyn StateReader,
        writes: &mut WriteSet,
    ) -> Result<Vec<Bytes>, MachineError> {
        (self.observer)(context);
        self.machine.apply(context, commands, records, writes)
    }

    fn read(&self, context: &ReadContext<'_>, query: &[u8], records: &dyn StateReader) -> Result<Bytes, MachineError> {
        self.machine.read(context, query, records)
    }

    fn keys_read(&self, commands: &[Bytes], keys: &mut Vec<Bytes>) {
        self.machine.keys_read(commands, keys);
    }

    fn scans(&self, entries: &Upcoming) -> bool {
        self.machine.scans(entries)
    }

    fn deferred(&self) -> Option<Arc<dyn DeferredRead>> {
        self.machine.deferred()
    }

    fn version(&self) -> Option<ClusterVersion> {
        self.machine.version()
    }

    fn meaning(&self) -> ClusterVersion {
        self.machine.meaning()
    }

    fn record_bytes(&self) -> Option<u64> {
        self.machine.record_bytes()
    }

    fn upkeep_due_ms(&self) -> Option<u64> {
        self.machine.upkeep_due_ms()
    }

    fn count_ahead(&mut self, right: &KeyRange) -> Option<Arc<dyn CountAhead>> {
        self.machine.count_ahead(right)
    }

    fn split(&mut self, right: &KeyRange, records: &dyn StateReader) -> Result<Bytes, MachineError> {
        self.machine.split(right, records)
    }

    fn merge(&mut self, whole: &KeyRange, right: &[u8]) -> Result<(), MachineError> {
        self.machine.merge(whole, right)
    }

    fn system(&self) -> Bytes {
        self.machine.system()
    }

    fn restore(&mut self, system: &[u8], records: &dyn StateReader) -> Result<(), MachineError> {
        self.machine.restore(system, records)
    }
}
