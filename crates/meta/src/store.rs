//! Stores the state as records, so that checkpoints and snapshots carry it like any other data.
//!
//! Invariants: one record per object, under `CollectionId::SYSTEM`, bucket 0; only the differences between
//! two states are written; loading all records gives the state that wrote them.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use flotilla_persistent::Map;
use flotilla_storage::{MachineError, StateReader, WriteSet};
use flotilla_types::{Bucket, CollectionId, KeyRange, NodeId, RecordKey};

use crate::{
    CodecError, MetaState, TokenId,
    codec::{
        decode_authority, decode_collection, decode_header, decode_key, decode_node, decode_operation, decode_shard,
        decode_token, encode_authority, encode_collection, encode_header, encode_key, encode_node, encode_operation,
        encode_shard, encode_token,
    },
};

const HEADER: &[u8] = b"header";
const NODE: &[u8] = b"node/";
const COLLECTION: &[u8] = b"collection/";
const SHARD: &[u8] = b"shard/";
const TOKEN: &[u8] = b"token/";
const KEY: &[u8] = b"key/";
const OPERATION: &[u8] = b"operation/";
const AUTHORITY: &[u8] = b"authority";
const SETTING: &[u8] = b"setting/";

/// Records read at a time while loading.
const PAGE_ITEMS: usize = 1_024;
/// Bytes read at a time while loading.
const PAGE_BYTES: usize = 1 << 20;

/// Appends the writes that turn the records of `old` into those of `new`, in a fixed order.
pub(crate) fn write_changes(old: &MetaState, new: &MetaState, writes: &mut WriteSet) {
    if old.header != new.header {
        writes.push((key(HEADER, &[]), Some(encode_header(&new.header).into())));
    }
    if let Some(authority) = &new.authority
        && old.authority != new.authority
    {
        writes.push((key(AUTHORITY, &[]), Some(encode_authority(authority).into())));
    }
    changes(&old.nodes, &new.nodes, |id| key(NODE, &id.0.to_be_bytes()), encode_node, writes);
    changes(&old.collections, &new.collections, |id| key(COLLECTION, &id.0.to_be_bytes()), encode_collection, writes);
    changes(&old.shards, &new.shards, |id| key(SHARD, &id.0.to_be_bytes()), encode_shard, writes);
    changes(&old.tokens, &new.tokens, |id| key(TOKEN, &id.0.to_be_bytes()), encode_token, writes);
    changes(&old.keys, &new.keys, |id| key(KEY, &id.0.to_be_bytes()), encode_key, writes);
    changes(&old.operations, &new.operations, |id| key(OPERATION, &id.0.to_be_bytes()), encode_operation, writes);
    changes(
        &old.settings,
        &new.settings,
        |name| key(SETTING, name.as_bytes()),
        |value| Bytes::copy_from_slice(value.as_bytes()),
        writes,
    );
}

/// Reads the state back from its records; the empty state when there are none.
pub(crate) fn load(records: &dyn StateReader) -> Result<MetaState, MachineError> {
    let mut state = MetaState::default();
    let mut found_any = false;
    let mut found_header = false;
    let mut range = KeyRange::of_buckets(CollectionId::SYSTEM, Bucket(0), Bucket(0));
    loop {
        let page = records.scan(&range, PAGE_ITEMS, PAGE_BYTES)?;
        let Some((last, _)) = page.last() else { break };
        // The smallest key after the last one.
        let mut next = BytesMut::from(&last[..]);
        next.extend_from_slice(&[0]);
        range.start = next.freeze();
        for (key, value) in page {
            found_any = true;
            let key = RecordKey::from_bytes(key).ok_or(MachineError::Corrupt("metadata record key"))?;
            found_header |= load_record(&mut state, &key.user_key(), &value)?;
        }
    }
    if found_any && !found_header {
        return Err(MachineError::Corrupt("metadata without a header"));
    }
    Ok(state)
}

/// Adds one record to the state. Returns whether it was the header.
fn load_record(state: &mut MetaState, name: &[u8], value: &[u8]) -> Result<bool, MachineError> {
    if name == HEADER {
        state.header = decode_header(value).map_err(corrupt)?;
        return Ok(true);
    }
    if name == AUTHORITY {
        state.authority = Some(Arc::new(decode_authority(value).map_err(corrupt)?));
    } else if let Some(id) = name.strip_prefix(NODE) {
        let node = decode_node(value).map_err(corrupt)?;
        check_key(id == node.id.0.to_be_bytes())?;
        state.nodes.insert(NodeId(node.id.0), Arc::new(node));
    } else if let Some(id) = name.strip_prefix(COLLECTION) {
        let collection = decode_collection(value).map_err(corrupt)?;
        check_key(id == collection.id.0.to_be_bytes())?;
        state.collections.insert(collection.id, Arc::new(collection));
    } else if let Some(id) = name.strip_prefix(SHARD) {
        let shard = decode_shard(value).map_err(corrupt)?;
        check_key(id == shard.id.0.to_be_bytes())?;
        state.record_shard(shard);
    } else if let Some(id) = name.strip_prefix(TOKEN) {
        let token = decode_token(value).map_err(corrupt)?;
        check_key(id == token.id.0.to_be_bytes())?;
        state.tokens.insert(TokenId(token.id.0), Arc::new(token));
    } else if let Some(id) = name.strip_prefix(KEY) {
        let key = decode_key(value).map_err(corrupt)?;
        check_key(id == key.id.0.to_be_bytes())?;
        state.keys.insert(key.id, Arc::new(key));
    } else if let Some(id) = name.strip_prefix(OPERATION) {
        let operation = decode_operation(value).map_err(corrupt)?;
        check_key(id == operation.id.0.to_be_bytes())?;
        state.record_operation(operation);
    } else if let Some(setting) = name.strip_prefix(SETTING) {
        let setting = str::from_utf8(setting).map_err(|_| MachineError::Corrupt("setting name"))?;
        let value = str::from_utf8(value).map_err(|_| MachineError::Corrupt("setting value"))?;
        state.settings.insert(setting.to_owned(), value.into());
    } else {
        return Err(MachineError::Corrupt("metadata record of an unknown kind"));
    }
    Ok(false)
}

fn changes<K: Ord, V: PartialEq + ?Sized>(
    old: &Map<K, Arc<V>>,
    new: &Map<K, Arc<V>>,
    key: impl Fn(&K) -> Bytes,
    encode: impl Fn(&V) -> Bytes,
    writes: &mut WriteSet,
) {
    let changed: Vec<_> = Map::changes(old, new).collect();
    let written = changed.iter().filter_map(|change| Some((change.key, change.after?)));
    writes.extend(written.map(|(id, record)| (key(id), Some(encode(record).into()))));
    let removed = changed.iter().filter(|change| change.after.is_none());
    writes.extend(removed.map(|change| (key(change.key), None)));
}

fn key(kind: &[u8], id: &[u8]) -> Bytes {
    RecordKey::new(CollectionId::SYSTEM, Bucket(0), &[kind, id].concat()).into_bytes()
}

fn check_key(same: bool) -> Result<(), MachineError> {
    if same { Ok(()) } else { Err(MachineError::Corrupt("metadata record under the key of another record")) }
}

pub(crate) fn corrupt(error: CodecError) -> MachineError {
    match error {
        CodecError::Malformed => MachineError::Corrupt("metadata record"),
        CodecError::Version { found, known } => MachineError::Version { found, known },
    }
}
