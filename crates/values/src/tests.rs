//! Tests over the whole crate, and what they share.

mod cutting;
mod golden;
mod lists;
mod reading;
mod similar;

use std::collections::BTreeMap;

use bytes::Bytes;
use flotilla_types::ObjectId;
use proptest::{collection::vec, prelude::*};

use crate::{Chunking, Cutter, Finished, Object, ValueRef};

/// Objects by their ids, as a store has them.
pub(crate) type Store = BTreeMap<ObjectId, Bytes>;

/// Short chunks, so that a short value has many.
pub(crate) fn short() -> Chunking {
    Chunking::new(1 << 10, 2 << 10, 4 << 10).unwrap()
}

/// Bytes without any pattern, the same ones for a seed.
pub(crate) fn random(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// All objects of a value, in the order in which the cutter returns them.
pub(crate) fn cut(chunking: Chunking, content: &[u8]) -> (ValueRef, Vec<Object>) {
    let Finished { value, objects } = crate::cut(content, chunking).unwrap();
    (value, objects)
}

/// The same from pushes of these lengths, and a last one of the rest.
pub(crate) fn cut_in_pushes(
    chunking: Chunking,
    mut content: &[u8],
    pushes: impl IntoIterator<Item = usize>,
) -> (ValueRef, Vec<Object>) {
    let mut cutter = Cutter::new(chunking, content.len() as u64);
    let mut objects = Vec::new();
    for bytes in pushes.into_iter().chain([usize::MAX]) {
        let (mut push, rest) = content.split_at(bytes.min(content.len()));
        while let Some(object) = cutter.push(&mut push).unwrap() {
            objects.push(object);
        }
        assert!(push.is_empty());
        content = rest;
    }
    let Finished { value, objects: last } = cutter.finish();
    objects.extend(last);
    (value, objects)
}

pub(crate) fn store(objects: Vec<Object>) -> Store {
    objects.into_iter().map(|object| (object.id, object.bytes)).collect()
}

/// Contents of many kinds: without a pattern, of one byte, and of parts that come again.
pub(crate) fn contents() -> impl Strategy<Value = Vec<u8>> {
    let part = prop_oneof![
        3 => (any::<u64>(), 0..60_000_usize).prop_map(|(seed, len)| random(seed, len)),
        1 => (any::<u8>(), 0..200_000_usize).prop_map(|(byte, len)| vec![byte; len]),
        1 => (0..3_u64, 0..30_000_usize).prop_map(|(seed, len)| random(seed, len)),
        1 => vec(any::<u8>(), 1..100).prop_map(|part| part.repeat(300)),
    ];
    vec(part, 0..6).prop_map(|parts| parts.concat())
}
