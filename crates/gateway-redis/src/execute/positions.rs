//! The positions of scans, on every node: besides its own table of cursors, each node writes the positions
//! that it hands out to a collection of the cluster, where they stay for a while. So a scan goes on on any
//! node, also after a restart.
//!
//! A position that cannot be written in time is known on this node only: the scan itself must not fail for
//! it.

use std::time::{Duration, Instant};

use bytes::Bytes;
use flotilla_api::Sharding;
use flotilla_gateway::StoreError;
use flotilla_kv::{Action, Expiry};

use crate::{clock, keyspace::create, plan::operation, server::Shared};

/// The collection of the positions.
const COLLECTION: &str = "redis-cursors";
/// How long a position is kept.
const KEPT: Duration = Duration::from_secs(3_600);
/// How long a position counts as written: a scan that hands it out again writes it again later.
const COUNTED: Duration = Duration::from_secs(KEPT.as_secs() / 2);
/// How long a page of a scan waits until its position is written.
const SHARE_WITHIN: Duration = Duration::from_secs(3);
/// After a failure positions are not written for so long, so that a scan does not wait for each.
const PAUSE: Duration = Duration::from_secs(10);

/// The cursor of the position from which a scan continues.
pub(super) async fn cursor_of(shared: &Shared, from: &Bytes, deadline: Instant) -> u64 {
    let now = Instant::now();
    let cursor = {
        let mut cursors = shared.cursors.lock();
        let cursor = cursors.insert(from);
        if cursors.is_shared(cursor, now) || cursors.is_paused(now) {
            return cursor;
        }
        cursor
    };
    // Some of the time is left for the reply itself.
    let within = deadline.saturating_duration_since(now) / 2;
    let deadline = now + within.min(SHARE_WITHIN);
    match share(shared, cursor, from, deadline).await {
        Ok(()) => shared.cursors.lock().shared(cursor, now + COUNTED),
        Err(error) => {
            tracing::debug!(%error, "a cursor is known on this node only");
            shared.cursors.lock().pause(now + PAUSE);
        }
    }
    cursor
}

/// The position of a cursor; `None` if it was never handed out, or long ago.
pub(super) async fn position_of(shared: &Shared, cursor: u64, deadline: Instant) -> Result<Option<Bytes>, StoreError> {
    let known = shared.cursors.lock().find(cursor);
    if known.is_some() || !shared.store.has_collection(COLLECTION, deadline).await? {
        return Ok(known);
    }
    let Some(found) = shared.store.get_one(COLLECTION, key_of(cursor), deadline).await? else { return Ok(None) };
    let found = shared.store.with_content(COLLECTION, found, false, deadline).await?;
    Ok(found.and_then(|found| found.value.into_inline().ok()))
}

async fn share(shared: &Shared, cursor: u64, from: &Bytes, deadline: Instant) -> Result<(), StoreError> {
    if !shared.store.has_collection(COLLECTION, deadline).await? {
        // One shard.
        create(&shared.store, shared.admin.as_ref(), COLLECTION, Sharding::Range, deadline).await?;
    }
    let kept_ms = u64::try_from(KEPT.as_millis()).unwrap_or(u64::MAX);
    let expiry = Expiry::At(clock::wall_ms().saturating_add(kept_ms));
    let put = Action::Put { value: from.clone().into(), expiry, return_old: false };
    shared.store.write(COLLECTION, Vec::new(), vec![operation(key_of(cursor), None, put)], deadline).await.map(drop)
}

fn key_of(cursor: u64) -> Bytes {
    Bytes::copy_from_slice(&cursor.to_be_bytes())
}
