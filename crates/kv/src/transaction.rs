//! Executes one command atomically.
//!
//! Operations change a staging area, which is merged into the entry's overlay and the statistics only if the
//! command is not refused. A due record counts as absent, whether or not it is removed yet. Every written
//! record gets the command's timestamp as its version.

use std::collections::{BTreeMap, btree_map::Entry};

use bytes::{BufMut as _, Bytes, BytesMut};
use flotilla_storage::{EngineError, MachineError, Overlay};
use flotilla_types::{KeyRange, RecordKey, Refs, Timestamp};

use crate::{
    Action, Command, Condition, Content, Expiry, Limits, MEDIA_TYPE_BYTES_MAX, Operation, OperationResult, Otherwise,
    Refusal, Value,
    record::StoredRecord,
    stats::{Footprint, RecordStats},
};

/// The context in which a command is applied.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scope<'a> {
    pub(crate) limits: &'a Limits,
    pub(crate) range: &'a KeyRange,
    /// The shard's clock: records that expire at or before it are absent.
    pub(crate) now_ms: u64,
    /// The command's timestamp.
    pub(crate) version: Timestamp,
    /// The objects that the command's entry names.
    pub(crate) refs: &'a Refs,
}

/// Why a command has no effect.
#[derive(Debug)]
pub(crate) enum Abort {
    Refused(Refusal),
    Failed(MachineError),
}

impl From<Refusal> for Abort {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<MachineError> for Abort {
    fn from(error: MachineError) -> Self {
        Self::Failed(error)
    }
}

impl From<EngineError> for Abort {
    fn from(error: EngineError) -> Self {
        Self::Failed(error.into())
    }
}

/// Checks a command and applies it. A refusal leaves overlay and statistics unchanged.
pub(crate) fn execute(
    scope: Scope<'_>,
    command: Command,
    overlay: &mut Overlay<'_>,
    stats: &mut RecordStats,
) -> Result<Vec<OperationResult>, Abort> {
    check(scope, &command)?;
    let mut transaction = Transaction { scope, overlay, stage: BTreeMap::new(), old_values: OldValues::default() };
    let mut ordinal = 0;
    for (key, condition) in command.conditions {
        let found = transaction.open(key)?.current.as_ref();
        if !holds(condition, found) {
            return Err(Refusal::ConditionFailed { operation: ordinal, found: version_of(found) }.into());
        }
        ordinal += 1;
    }
    let mut results = Vec::with_capacity(command.operations.len());
    for operation in command.operations {
        results.push(transaction.operate(ordinal, operation)?);
        ordinal += 1;
    }
    transaction.commit(stats)?;
    Ok(results)
}

/// The checks that need no record.
fn check(scope: Scope<'_>, command: &Command) -> Result<(), Refusal> {
    let limit = scope.limits.operations_max;
    if command.conditions.len() > limit as usize || command.operations.len() > limit as usize {
        return Err(Refusal::TooManyOperations { limit });
    }
    let keys = command.conditions.iter().map(|(key, _)| key).chain(command.operations.iter().map(|one| &one.key));
    let (users, mut outside) = (KeyRange::of_users(), false);
    for key in keys {
        if key.len() < RecordKey::PREFIX_BYTES {
            return Err(Refusal::Malformed);
        }
        if key.len() > scope.limits.record_key_bytes_max() {
            return Err(Refusal::TooLarge { limit_bytes: scope.limits.key_bytes_max.into() });
        }
        outside |= !scope.range.contains(key) || !users.contains(key);
    }
    for operation in &command.operations {
        match &operation.action {
            Action::Put { value, .. } => check_put(scope, value)?,
            Action::Append { bytes } => check_value(scope, bytes.len())?,
            Action::Delete { .. } | Action::Add { .. } | Action::Expire { .. } => {}
        }
    }
    if outside { Err(Refusal::WrongShard) } else { Ok(()) }
}

fn check_value(scope: Scope<'_>, bytes: usize) -> Result<(), Refusal> {
    if bytes > scope.limits.value_bytes_max as usize {
        return Err(Refusal::TooLarge { limit_bytes: scope.limits.value_bytes_max.into() });
    }
    Ok(())
}

fn check_put(scope: Scope<'_>, value: &Value) -> Result<(), Refusal> {
    if value.media_type.len() > MEDIA_TYPE_BYTES_MAX {
        return Err(Refusal::TooLarge { limit_bytes: MEDIA_TYPE_BYTES_MAX as u64 });
    }
    match &value.content {
        Content::Inline(bytes) => check_value(scope, bytes.len()),
        Content::Large(_) => {
            let limit_bytes = u64::from(scope.limits.large_value_bytes_max);
            if value.bytes() > limit_bytes {
                return Err(Refusal::TooLarge { limit_bytes });
            }
            // Else replicas might not have them.
            let is_named = |reference| scope.refs.binary_search(reference).is_ok();
            if value.refs().iter().all(is_named) { Ok(()) } else { Err(Refusal::UnnamedObjects) }
        }
    }
}

fn version_of(record: Option<&StoredRecord>) -> Option<Timestamp> {
    record.map(|record| record.version)
}

fn holds(condition: Condition, found: Option<&StoredRecord>) -> bool {
    match condition {
        Condition::Version(version) => version_of(found) == Some(version),
        Condition::Absent => found.is_none(),
        Condition::Present => found.is_some(),
    }
}

/// A record that the command has read.
struct Staged {
    /// The stored record, due or not.
    stored: Option<Footprint>,
    /// The record as the command has left it; `None` if absent.
    current: Option<StoredRecord>,
    changed: bool,
}

impl Staged {
    /// Sets the record, or removes it if its expiry is already due.
    fn set(&mut self, scope: Scope<'_>, value: Value, expires_at_ms: Option<u64>) {
        let record = StoredRecord { version: scope.version, expires_at_ms, value };
        self.current = (!record.is_due(scope.now_ms)).then_some(record);
        self.changed = true;
    }

    fn remove(&mut self) {
        self.current = None;
        self.changed = true;
    }
}

struct Transaction<'a, 'r> {
    scope: Scope<'a>,
    overlay: &'a mut Overlay<'r>,
    stage: BTreeMap<Bytes, Staged>,
    old_values: OldValues,
}

/// Bytes of old values in the results so far.
#[derive(Default)]
struct OldValues(usize);

impl OldValues {
    /// The old value for a result, if `requested` and within the limit for all results together.
    fn take(
        &mut self,
        scope: Scope<'_>,
        requested: bool,
        found: Option<&StoredRecord>,
    ) -> Result<Option<Value>, Refusal> {
        let Some(record) = found.filter(|_| requested) else { return Ok(None) };
        let limit_bytes = scope.limits.answer_bytes_max;
        self.0 += record.value.stored_bytes();
        if self.0 > limit_bytes as usize {
            return Err(Refusal::TooLarge { limit_bytes: limit_bytes.into() });
        }
        Ok(Some(record.value.clone()))
    }
}

/// The record under a key, as the command has left it.
fn open<'s>(
    scope: Scope<'_>,
    overlay: &Overlay<'_>,
    stage: &'s mut BTreeMap<Bytes, Staged>,
    key: Bytes,
) -> Result<&'s mut Staged, MachineError> {
    match stage.entry(key) {
        Entry::Occupied(staged) => Ok(staged.into_mut()),
        Entry::Vacant(place) => {
            let stored = overlay.get(place.key())?.map(StoredRecord::decode).transpose()?;
            let footprint = stored.as_ref().map(|record| Footprint::of(place.key(), record));
            let current = stored.filter(|record| !record.is_due(scope.now_ms));
            Ok(place.insert(Staged { stored: footprint, current, changed: false }))
        }
    }
}

impl Transaction<'_, '_> {
    fn open(&mut self, key: Bytes) -> Result<&mut Staged, MachineError> {
        open(self.scope, self.overlay, &mut self.stage, key)
    }

    fn operate(&mut self, ordinal: u32, operation: Operation) -> Result<OperationResult, Abort> {
        let Self { scope, overlay, stage, old_values } = self;
        let scope = *scope;
        let Operation { key, condition, otherwise, action } = operation;
        let staged = open(scope, overlay, stage, key)?;
        let found = staged.current.as_ref();
        let version = version_of(found);
        if let Some(condition) = condition
            && !holds(condition, found)
        {
            let returns_old =
                matches!(action, Action::Put { return_old: true, .. } | Action::Delete { return_old: true });
            return match otherwise {
                Otherwise::Refuse => Err(Refusal::ConditionFailed { operation: ordinal, found: version }.into()),
                Otherwise::Skip => {
                    Ok(OperationResult::Skipped { version, old: old_values.take(scope, returns_old, found)? })
                }
            };
        }
        let existed = found.is_some();
        let written = |old, number| OperationResult::Written { version: scope.version, old, existed, number };
        match action {
            Action::Put { value, expiry, return_old } => {
                let expires_at_ms = resolve(expiry, found);
                let old = old_values.take(scope, return_old, found)?;
                staged.set(scope, value, expires_at_ms);
                Ok(written(old, 0))
            }
            Action::Delete { return_old } => {
                let Some(version) = version else { return Ok(OperationResult::Absent) };
                let old = old_values.take(scope, return_old, found)?;
                staged.remove();
                Ok(OperationResult::Deleted { version, old })
            }
            Action::Add { delta } => {
                let before = found.map_or(Some(0), |record| parse_integer(record.value.inline()?));
                let sum = before.ok_or(Refusal::NotAnInteger)?.checked_add(delta).ok_or(Refusal::Overflow)?;
                let text = sum.to_string().into_bytes();
                check_value(scope, text.len())?;
                let expires_at_ms = resolve(Expiry::Keep, found);
                staged.set(scope, changed(found, text.into()), expires_at_ms);
                Ok(written(None, sum))
            }
            Action::Append { bytes } => {
                let before = match found.map(|record| &record.value.content) {
                    None => &[][..],
                    Some(Content::Inline(bytes)) => bytes,
                    Some(Content::Large(_)) => return Err(Refusal::NeedsContent.into()),
                };
                check_value(scope, before.len().saturating_add(bytes.len()))?;
                let mut value = BytesMut::with_capacity(before.len() + bytes.len());
                value.put_slice(before);
                value.put_slice(&bytes);
                let length = value.len() as i64;
                let expires_at_ms = resolve(Expiry::Keep, found);
                staged.set(scope, changed(found, value.freeze()), expires_at_ms);
                Ok(written(None, length))
            }
            Action::Expire { expiry } => {
                let Some(record) = found else { return Ok(OperationResult::Absent) };
                let had_expiry = record.expires_at_ms.is_some();
                let (value, expires_at_ms) = (record.value.clone(), resolve(expiry, found));
                staged.set(scope, value, expires_at_ms);
                Ok(written(None, had_expiry.into()))
            }
        }
    }

    fn commit(self, stats: &mut RecordStats) -> Result<(), MachineError> {
        for (key, staged) in self.stage.into_iter().filter(|(_, staged)| staged.changed) {
            let after = staged.current.as_ref().map(|record| Footprint::of(&key, record));
            stats.replace(&key, staged.stored, after, self.overlay)?;
            // The key is a slice of the log entry: the engine copies it if it keeps it.
            match staged.current {
                Some(record) => self.overlay.put(key, record.stored()),
                None if staged.stored.is_some() => self.overlay.delete(key),
                None => {}
            }
        }
        Ok(())
    }
}

/// The value after its bytes were changed.
fn changed(found: Option<&StoredRecord>, bytes: Bytes) -> Value {
    let media_type = found.map(|record| record.value.media_type.clone()).unwrap_or_default();
    Value { content: Content::Inline(bytes), media_type }
}

fn resolve(expiry: Expiry, found: Option<&StoredRecord>) -> Option<u64> {
    match expiry {
        Expiry::Never => None,
        Expiry::Keep => found.and_then(|record| record.expires_at_ms),
        Expiry::At(at_ms) => Some(at_ms),
    }
}

/// Parses a decimal 64-bit integer as counters store it and as Redis accepts it: no plus sign, no spaces, no
/// leading zeros, no `-0`. `None` for everything else.
#[must_use]
pub fn parse_integer(text: &[u8]) -> Option<i64> {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    let canonical = match digits {
        [b'0'] => digits.len() == text.len(),
        [b'1'..=b'9', rest @ ..] => rest.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    if !canonical {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_parse_as_strictly_as_in_redis() {
        for number in [0, 1, -1, 10, i64::MAX, i64::MIN] {
            assert_eq!(parse_integer(number.to_string().as_bytes()), Some(number));
        }
        for text in
            ["", "-", "+1", " 1", "1 ", "01", "-0", "-01", "1.0", "0x1", "9223372036854775808", "-9223372036854775809"]
        {
            assert_eq!(parse_integer(text.as_bytes()), None, "{text:?}");
        }
    }
}
