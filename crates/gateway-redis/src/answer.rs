//! Converts the store's answers to replies: results of operations, records found, and errors.
//!
//! Pure. Error codes are those that client libraries act on: `TRYAGAIN` and `CLUSTERDOWN` say that nothing
//! was written and a retry is harmless, `UNKNOWN` that a write may or may not have taken effect.

use flotilla_gateway::{Found, StoreError};
use flotilla_kv::OperationResult;

use crate::{
    Reply, TimeUnit,
    plan::{ReadAnswer, WriteAnswer},
    view::TooMuch,
};

impl WriteAnswer {
    /// The reply to an operation with this result.
    pub(crate) fn reply(self, result: OperationResult) -> Reply {
        let changed = matches!(result, OperationResult::Written { .. } | OperationResult::Deleted { .. });
        match (self, result) {
            (Self::Stored, _) if changed => Reply::OK,
            (Self::Stored, _) => Reply::Null,
            (Self::Changed, _) => Reply::Integer(changed.into()),
            (Self::Number, OperationResult::Written { number, .. }) => Reply::Integer(number),
            (Self::Number, _) => Reply::Integer(0),
            (
                Self::Old,
                OperationResult::Written { old, .. }
                | OperationResult::Deleted { old, .. }
                | OperationResult::Skipped { old, .. },
            ) => Reply::bulk_or_null(old.and_then(|old| old.into_inline().ok())),
            (Self::Old, OperationResult::Absent) => Reply::Null,
        }
    }
}

impl ReadAnswer {
    /// Whether the value itself is needed, not only its attributes.
    pub(crate) fn needs_value(self) -> bool {
        self == Self::Value
    }

    /// The reply for a found record, at `now_ms` in Unix milliseconds.
    pub(crate) fn reply(self, found: Option<Found>, now_ms: u64) -> Reply {
        match (self, found) {
            (Self::Value, found) => Reply::bulk_or_null(found.and_then(|found| found.value.into_inline().ok())),
            (Self::Length, found) => Reply::Integer(found.map_or(0, |found| integer(found.value_bytes))),
            (Self::Exists, found) => Reply::Integer(found.is_some().into()),
            (Self::Type, found) => type_reply(found.is_some()),
            (Self::Ttl(unit), found) => ttl_reply(found.map(|found| found.expires_at_ms), unit, now_ms),
        }
    }
}

/// The type of a record that exists or not.
pub(crate) fn type_reply(exists: bool) -> Reply {
    Reply::Simple(if exists { "string" } else { "none" })
}

/// The time left of a record with this expiry, if there is a record.
pub(crate) fn ttl_reply(record: Option<Option<u64>>, unit: TimeUnit, now_ms: u64) -> Reply {
    Reply::Integer(match record {
        None => -2,
        Some(None) => -1,
        Some(Some(at_ms)) => time_left(at_ms.saturating_sub(now_ms), unit),
    })
}

/// Time left in a unit; seconds are rounded, as in Redis.
fn time_left(left_ms: u64, unit: TimeUnit) -> i64 {
    integer(match unit {
        TimeUnit::Seconds => left_ms.saturating_add(500) / 1_000,
        TimeUnit::Milliseconds => left_ms,
    })
}

/// A number as a Redis integer, saturating.
pub(crate) fn integer(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

pub(crate) const NOT_AN_INTEGER: &str = "ERR value is not an integer or out of range";
pub(crate) const OVERFLOW: &str = "ERR increment or decrement would overflow";

/// The reply to a command that failed.
pub(crate) fn error_reply(error: &StoreError) -> Reply {
    match error {
        StoreError::OutcomeUnknown { .. } => Reply::error(format_args!("UNKNOWN {error}")),
        StoreError::CrossShard => Reply::Error("CROSSSLOT Keys in request don't hash to the same slot".into()),
        StoreError::Busy { .. } => Reply::error(format_args!("TRYAGAIN {error}")),
        StoreError::Unavailable { .. }
        | StoreError::DeadlineExceeded { .. }
        | StoreError::Damaged { .. }
        | StoreError::ObjectsMissing { .. }
        | StoreError::ObjectsUnavailable
        | StoreError::UploadEnded
        | StoreError::Draining => Reply::error(format_args!("CLUSTERDOWN {error}")),
        StoreError::NotAnInteger => Reply::Error(NOT_AN_INTEGER.into()),
        StoreError::Overflow => Reply::Error(OVERFLOW.into()),
        StoreError::ValueTooLarge { .. } => Reply::error(TooMuch::Value),
        StoreError::CollectionNotFound(_)
        | StoreError::CollectionExists(_)
        | StoreError::Invalid(_)
        | StoreError::KeySize { .. }
        | StoreError::BatchTooLarge { .. }
        | StoreError::ConditionFailed { .. }
        | StoreError::SnapshotExpired { .. }
        | StoreError::LargeValue
        | StoreError::WrongReference
        | StoreError::Refused(_) => Reply::error(format_args!("ERR {error}")),
    }
}

/// Approximately how many bytes a reply takes in memory.
pub(crate) fn held_bytes(reply: &Reply) -> usize {
    let content: usize = match reply {
        Reply::Bulk(bytes) => bytes.len(),
        Reply::Verbatim(text) | Reply::Status(text) => text.len(),
        Reply::Error(text) => text.len(),
        Reply::Array(items) | Reply::Set(items) | Reply::Push(items) => items.iter().map(held_bytes).sum(),
        Reply::Map(pairs) => pairs.iter().map(|(key, value)| held_bytes(key) + held_bytes(value)).sum(),
        Reply::Simple(_) | Reply::Integer(_) | Reply::Null | Reply::NullArray | Reply::Boolean(_) => 0,
    };
    size_of::<Reply>() + content
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use flotilla_types::{NodeId, ShardId, Timestamp};

    use super::*;

    fn found(expires_at_ms: Option<u64>) -> Option<Found> {
        Some(Found {
            key: Bytes::from_static(b"k"),
            value: Bytes::from_static(b"v").into(),
            version: Timestamp(1),
            expires_at_ms,
            value_bytes: 7,
            served_by: NodeId(1),
            shard: ShardId(1),
        })
    }

    fn old() -> Option<Bytes> {
        Some(Bytes::from_static(b"old"))
    }

    #[test]
    fn results_of_writes_become_the_replies_of_redis() {
        use WriteAnswer::{Changed, Number, Old, Stored};
        let version = Timestamp(1);
        let written = |old: Option<Bytes>, number| OperationResult::Written {
            version,
            old: old.map(Into::into),
            existed: true,
            number,
        };
        let skipped = |old: Option<Bytes>| OperationResult::Skipped { version: None, old: old.map(Into::into) };
        for (answer, result, reply) in [
            (Stored, written(None, 0), Reply::OK),
            (Stored, skipped(None), Reply::Null),
            (Old, written(None, 0), Reply::Null),
            (Old, written(old(), 0), Reply::bulk_or_null(old())),
            (Old, skipped(old()), Reply::bulk_or_null(old())),
            (Old, OperationResult::Deleted { version, old: old().map(Into::into) }, Reply::bulk_or_null(old())),
            (Old, OperationResult::Absent, Reply::Null),
            (Changed, written(None, 0), Reply::Integer(1)),
            (Changed, OperationResult::Deleted { version, old: None }, Reply::Integer(1)),
            (Changed, skipped(None), Reply::Integer(0)),
            (Changed, OperationResult::Absent, Reply::Integer(0)),
            (Number, written(None, -4), Reply::Integer(-4)),
            (Number, OperationResult::Absent, Reply::Integer(0)),
        ] {
            assert_eq!(answer.reply(result.clone()), reply, "{answer:?} {result:?}");
        }
    }

    #[test]
    fn records_become_the_replies_of_redis() {
        use ReadAnswer::{Exists, Length, Ttl, Type, Value};
        let (seconds, milliseconds) = (Ttl(TimeUnit::Seconds), Ttl(TimeUnit::Milliseconds));
        for (answer, record, reply) in [
            (Value, found(None), Reply::text("v")),
            (Value, None, Reply::Null),
            (Length, found(None), Reply::Integer(7)),
            (Length, None, Reply::Integer(0)),
            (Exists, found(None), Reply::Integer(1)),
            (Type, found(None), Reply::Simple("string")),
            (Type, None, Reply::Simple("none")),
            (seconds, None, Reply::Integer(-2)),
            (seconds, found(None), Reply::Integer(-1)),
            (seconds, found(Some(11_499)), Reply::Integer(1)),
            (seconds, found(Some(11_500)), Reply::Integer(2)),
            (milliseconds, found(Some(11_499)), Reply::Integer(1_499)),
            (milliseconds, found(Some(9_000)), Reply::Integer(0)),
        ] {
            assert_eq!(answer.reply(record, 10_000), reply, "{answer:?}");
        }
    }

    #[test]
    fn only_an_unknown_outcome_has_the_code_unknown() {
        let code = |error: &StoreError| match error_reply(error) {
            Reply::Error(text) => text.split(' ').next().unwrap_or_default().to_owned(),
            other => panic!("{other:?}"),
        };
        assert_eq!(code(&StoreError::OutcomeUnknown { shard: ShardId(1) }), "UNKNOWN");
        assert_eq!(code(&StoreError::CrossShard), "CROSSSLOT");
        assert_eq!(code(&StoreError::Busy { retry_after_ms: 1 }), "TRYAGAIN");
        assert_eq!(code(&StoreError::DeadlineExceeded { shard: None }), "CLUSTERDOWN");
        assert_eq!(code(&StoreError::ValueTooLarge { limit_bytes: 1 }), "ERR");
        assert_eq!(
            error_reply(&StoreError::Overflow),
            Reply::Error("ERR increment or decrement would overflow".into())
        );
    }
}
