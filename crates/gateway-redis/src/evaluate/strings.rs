//! Commands that store and change values.

use bytes::Bytes;
use flotilla_kv::parse_integer;

use super::{get, may_set, resolve};
use crate::{
    Float, Reply, Set,
    answer::{NOT_AN_INTEGER, OVERFLOW},
    view::{TooMuch, View},
};

pub(super) fn set(set: &Set, view: &mut View) -> Result<Reply, Reply> {
    let old = if set.returns_old { Some(get(&set.key, view)?) } else { None };
    let sets = may_set(set, view);
    if sets {
        let expires_at_ms = resolve(set.expiry, &set.key, view);
        view.put(&set.key, set.value.clone(), expires_at_ms)?;
    }
    Ok(old.unwrap_or(if sets { Reply::OK } else { Reply::Null }))
}

pub(super) fn mset(pairs: &[(Bytes, Bytes)], view: &mut View) -> Result<Reply, Reply> {
    for (_, value) in pairs {
        view.check_length(value.len())?;
    }
    for (key, value) in pairs {
        view.put(key, value.clone(), None)?;
    }
    Ok(Reply::OK)
}

pub(super) fn append(key: &Bytes, value: &[u8], view: &mut View) -> Result<Reply, Reply> {
    let before = view.value_bytes(key);
    let length = before + value.len();
    view.edit(key, length)?[before..].copy_from_slice(value);
    Ok(Reply::Integer(length as i64))
}

pub(super) fn add(key: &Bytes, delta: i64, view: &mut View) -> Result<Reply, Reply> {
    let before = if view.exists(key) { parse_integer(view.value(key)) } else { Some(0) };
    let sum =
        before.ok_or(Reply::Error(NOT_AN_INTEGER.into()))?.checked_add(delta).ok_or(Reply::Error(OVERFLOW.into()))?;
    let expires_at_ms = view.expires_at_ms(key);
    view.put(key, sum.to_string().into(), expires_at_ms)?;
    Ok(Reply::Integer(sum))
}

pub(super) fn mset_nx(pairs: &[(Bytes, Bytes)], view: &mut View) -> Result<Reply, Reply> {
    if pairs.iter().any(|(key, _)| view.exists(key)) {
        return Ok(Reply::Integer(0));
    }
    mset(pairs, view)?;
    Ok(Reply::Integer(1))
}

pub(super) fn add_float(key: &Bytes, delta: Float, view: &mut View) -> Result<Reply, Reply> {
    let before = if view.exists(key) { Float::parse(view.value(key)) } else { Some(Float::Exact(0)) };
    let before = before.ok_or(Reply::Error("ERR value is not a valid float".into()))?;
    let not_finite = || Reply::Error("ERR increment would produce NaN or Infinity".into());
    let sum = Bytes::from(before.checked_add(delta).ok_or_else(not_finite)?.to_string());
    let expires_at_ms = view.expires_at_ms(key);
    view.put(key, sum.clone(), expires_at_ms)?;
    Ok(Reply::Bulk(sum))
}

pub(super) fn get_range(key: &Bytes, start: i64, end: i64, view: &mut View) -> Result<Reply, Reply> {
    let value = view.value(key);
    let part =
        clamp(value.len() as u64, start, end).map_or(&[][..], |(first, last)| &value[first as usize..=last as usize]);
    let part = Bytes::copy_from_slice(part);
    view.spend(part.len())?;
    Ok(Reply::Bulk(part))
}

pub(super) fn set_range(key: &Bytes, offset: u64, value: &[u8], view: &mut View) -> Result<Reply, Reply> {
    if !value.is_empty() {
        let offset = usize::try_from(offset).map_err(|_| TooMuch::Value)?;
        let end = offset.checked_add(value.len()).ok_or(TooMuch::Value)?;
        view.edit(key, end)?[offset..end].copy_from_slice(value);
    }
    Ok(Reply::Integer(view.value_bytes(key) as i64))
}

/// First and last position of a range in `length` items, where negative positions count from the end. `None`
/// if the range is empty.
pub(crate) fn clamp(length: u64, start: i64, end: i64) -> Option<(u64, u64)> {
    let from_end = |position: i64| match u64::try_from(position) {
        Ok(position) => position,
        Err(_) => length.saturating_sub(position.unsigned_abs()),
    };
    let reversed = start < 0 && end < 0 && start > end;
    let (first, last) = (from_end(start), from_end(end).min(length.checked_sub(1)?));
    (!reversed && first <= last).then_some((first, last))
}
