//! Commands about records as a whole.

use bytes::Bytes;
use flotilla_kv::parse_integer;
use flotilla_types::RecordKey;

use super::get;
use crate::{ObjectQuery, Reply, TimeUnit, answer::integer, view::View};

/// Bytes of a stored record besides key and value: collection, bucket, version and expiry.
const RECORD_OVERHEAD_BYTES: usize = RecordKey::PREFIX_BYTES + 17;
/// Longest value that Redis stores together with its header.
const EMBEDDED_BYTES_MAX: usize = 44;

const NO_SUCH_KEY: &str = "ERR no such key";
const NO_FREQUENCY: &str = "ERR An LFU maxmemory policy is not selected, access frequency not tracked. Please note \
                            that when switching between policies at runtime LRU and LFU data will take some time to \
                            adjust.";

pub(super) fn rename(from: &Bytes, to: &Bytes, if_absent: bool, view: &mut View) -> Result<Reply, Reply> {
    if !view.exists(from) {
        return Err(Reply::Error(NO_SUCH_KEY.into()));
    }
    let done = if if_absent { Reply::Integer(1) } else { Reply::OK };
    if from == to {
        return Ok(if if_absent { Reply::Integer(0) } else { done });
    }
    if if_absent && view.exists(to) {
        return Ok(Reply::Integer(0));
    }
    duplicate(from, to, view)?;
    view.remove(from);
    Ok(done)
}

pub(super) fn copy(from: &Bytes, to: &Bytes, replace: bool, view: &mut View) -> Result<Reply, Reply> {
    if !view.exists(from) || view.exists(to) && !replace {
        return Ok(Reply::Integer(0));
    }
    duplicate(from, to, view)?;
    Ok(Reply::Integer(1))
}

fn duplicate(from: &Bytes, to: &Bytes, view: &mut View) -> Result<(), Reply> {
    Ok(view.copy(from, to)?)
}

pub(super) fn expire_time(key: &Bytes, unit: TimeUnit, view: &View) -> Reply {
    Reply::Integer(match (view.exists(key), view.expires_at_ms(key)) {
        (false, _) => -2,
        (true, None) => -1,
        (true, Some(at_ms)) => match unit {
            TimeUnit::Seconds => integer(at_ms.saturating_add(500) / 1_000),
            TimeUnit::Milliseconds => integer(at_ms),
        },
    })
}

pub(super) fn object(query: ObjectQuery, key: &Bytes, view: &mut View) -> Result<Reply, Reply> {
    if !view.exists(key) {
        return Ok(Reply::Null);
    }
    Ok(match query {
        ObjectQuery::Encoding if view.is_large(key) => Reply::text("raw"),
        ObjectQuery::Encoding => {
            let Reply::Bulk(value) = get(key, view)? else { return Ok(Reply::Null) };
            Reply::text(match value.len() {
                _ if parse_integer(&value).is_some() => "int",
                0..=EMBEDDED_BYTES_MAX => "embstr",
                _ => "raw",
            })
        }
        ObjectQuery::Frequency => Reply::Error(NO_FREQUENCY.into()),
        ObjectQuery::IdleTime => Reply::Integer(integer(view.now_ms().saturating_sub(view.written_at_ms(key)) / 1_000)),
        ObjectQuery::ReferenceCount => Reply::Integer(1),
    })
}

pub(super) fn memory_usage(key: &Bytes, view: &View) -> Reply {
    if !view.exists(key) {
        return Reply::Null;
    }
    Reply::Integer((RECORD_OVERHEAD_BYTES + key.len() + view.value_bytes(key)) as i64)
}
