//! A state machine whose records refer to objects, for tests of replication: no client can write such records yet.
//!
//! It wraps another machine, which sees neither its commands nor its records.

use std::sync::Arc;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use flotilla_types::{Bucket, ByteOrder, ClusterVersion, CollectionId, KeyRange, RecordKey, Refs};

use crate::{
    ApplyContext, DeferredRead, EngineError, MachineError, ReadContext, ScanBounds, ScanPage, StateMachine,
    StateReader, Upcoming, Value, WriteSet,
};

/// After the version byte: no command of another machine begins so.
const PUT: u8 = 0xee;
const DELETE: u8 = 0xed;
/// Where these records are: behind those of all users.
const COLLECTION: CollectionId = CollectionId(CollectionId::INTERNAL.0 - 1);

/// A machine that writes and deletes records which refer to objects, and leaves other commands to another one.
pub struct Referring(Box<dyn StateMachine>);

/// Records without those that refer to objects.
struct WithoutReferring<'a>(&'a dyn StateReader);

impl Referring {
    /// Adds such commands to a machine.
    #[must_use]
    pub fn over(machine: Box<dyn StateMachine>) -> Self {
        Self(machine)
    }

    /// A command that writes a record with this value and these references. The key has at most 255 bytes.
    #[must_use]
    pub fn put(key: &[u8], value: &[u8], refs: &Refs) -> Bytes {
        let mut command = BytesMut::new();
        command.put_slice(&[ClusterVersion::VALUE_REFS.0 as u8, PUT, key.len() as u8]);
        command.put_slice(key);
        command.put_u8(u8::from(!refs.is_empty()));
        if !refs.is_empty() {
            refs.encode(&mut command, ByteOrder::Big);
        }
        command.put_slice(value);
        command.freeze()
    }

    /// A command that deletes a record.
    #[must_use]
    pub fn delete(key: &[u8]) -> Bytes {
        [&[ClusterVersion::VALUE_REFS.0 as u8, DELETE, key.len() as u8], key].concat().into()
    }

    /// The key of the record that a command writes or deletes.
    #[must_use]
    pub fn record_key(key: &[u8]) -> Bytes {
        RecordKey::new(COLLECTION, Bucket(0), key).into_bytes()
    }

    /// The keys of all these records.
    #[must_use]
    pub fn range() -> KeyRange {
        KeyRange { start: Bytes::copy_from_slice(&COLLECTION.0.to_be_bytes()), end: KeyRange::internal().start }
    }
}

fn is_ours(command: &Bytes) -> bool {
    matches!(command.get(1), Some(&(PUT | DELETE)))
}

fn apply(mut command: Bytes, writes: &mut WriteSet) -> Result<(), MachineError> {
    const DAMAGED: MachineError = MachineError::Corrupt("a command of the tests");
    command.advance(1);
    let is_put = command.try_get_u8() == Ok(PUT);
    let length = usize::from(command.try_get_u8().map_err(|_| DAMAGED)?);
    if length > command.len() {
        return Err(DAMAGED);
    }
    let key = Referring::record_key(&command.split_to(length));
    if !is_put {
        writes.push((key, None));
        return Ok(());
    }
    let has_refs = command.try_get_u8().map_err(|_| DAMAGED)? == 1;
    let refs = if has_refs { Refs::decode(&mut command, ByteOrder::Big).map_err(|_| DAMAGED)? } else { Refs::NONE };
    writes.push((key, Some(Value::new(command, refs))));
    Ok(())
}

impl StateMachine for Referring {
    fn apply(
        &mut self,
        context: &ApplyContext<'_>,
        commands: &[Bytes],
        records: &dyn StateReader,
        writes: &mut WriteSet,
    ) -> Result<Vec<Bytes>, MachineError> {
        let (ours, others): (Vec<_>, Vec<_>) = commands.iter().cloned().partition(is_ours);
        let mut outcomes = self.0.apply(context, &others, &WithoutReferring(records), writes)?.into_iter();
        ours.into_iter().try_for_each(|command| apply(command, writes))?;
        let outcome = |command| if is_ours(command) { Some(Bytes::new()) } else { outcomes.next() };
        Ok(commands.iter().filter_map(outcome).collect())
    }

    fn read(&self, context: &ReadContext<'_>, query: &[u8], records: &dyn StateReader) -> Result<Bytes, MachineError> {
        self.0.read(context, query, &WithoutReferring(records))
    }

    fn keys_read(&self, commands: &[Bytes], keys: &mut Vec<Bytes>) {
        let others: Vec<_> = commands.iter().filter(|command| !is_ours(command)).cloned().collect();
        self.0.keys_read(&others, keys);
    }

    fn scans(&self, entries: &Upcoming) -> bool {
        self.0.scans(entries)
    }

    fn deferred(&self) -> Option<Arc<dyn DeferredRead>> {
        self.0.deferred()
    }

    fn version(&self) -> Option<ClusterVersion> {
        self.0.version()
    }

    fn meaning(&self) -> ClusterVersion {
        self.0.meaning()
    }

    fn record_bytes(&self) -> Option<u64> {
        self.0.record_bytes()
    }

    fn upkeep_due_ms(&self) -> Option<u64> {
        self.0.upkeep_due_ms()
    }

    fn system(&self) -> Bytes {
        self.0.system()
    }

    fn restore(&mut self, system: &[u8], records: &dyn StateReader) -> Result<(), MachineError> {
        self.0.restore(system, &WithoutReferring(records))
    }
}

/// The part of a range before these records, if it begins there.
fn before(range: &KeyRange) -> KeyRange {
    let ours = Referring::range();
    let reaches = range.start < ours.start && (range.end.is_empty() || range.end > ours.start);
    KeyRange { start: range.start.clone(), end: if reaches { ours.start } else { range.end.clone() } }
}

impl StateReader for WithoutReferring<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        self.0.get(key)
    }

    fn scan(&self, range: &KeyRange, items_max: usize, bytes_max: usize) -> Result<Vec<(Bytes, Bytes)>, EngineError> {
        self.0.scan(&before(range), items_max, bytes_max)
    }

    fn scan_page(&self, range: &KeyRange, bounds: ScanBounds) -> Result<ScanPage, EngineError> {
        self.0.scan_page(&before(range), bounds)
    }

    fn get_in_memory(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        self.0.get_in_memory(key)
    }

    fn scan_page_in_memory(&self, range: &KeyRange, bounds: ScanBounds) -> Result<ScanPage, EngineError> {
        self.0.scan_page_in_memory(&before(range), bounds)
    }
}
