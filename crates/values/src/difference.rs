//! How much of a value is new to somebody who has another one.

use std::collections::BTreeSet;

use flotilla_types::ObjectId;

/// The bytes of objects in `after` that are not in `before`, each counted once: what has to travel to a node
/// that has `before`, without compression. Objects are given as id and length.
pub fn new_bytes(before: impl IntoIterator<Item = ObjectId>, after: impl IntoIterator<Item = (ObjectId, u64)>) -> u64 {
    let mut held: BTreeSet<_> = before.into_iter().collect();
    after.into_iter().filter(|(id, _)| held.insert(*id)).map(|(_, bytes)| bytes).sum()
}
