//! Commands that store and change values.

use bytes::Bytes;
use flotilla_kv::parse_integer;

use super::{get, may_set, resolve};
use crate::{
    Reply, Set,
    answer::{NOT_AN_INTEGER, OVERFLOW},
    view::{View, check_length},
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
        check_length(value.len())?;
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
