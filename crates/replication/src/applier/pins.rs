//! Pinned snapshots: states of replicas that stay readable while later entries are applied.
//!
//! A reader opens a snapshot of a shard under an id of its own, by a query that is confirmed as any other one, and
//! names the id in the queries that follow: all of them see the same moment. The replica that served the first
//! query keeps it; another one does not have it. A snapshot that ended, for whatever reason, is not here any more:
//! the query fails as [`RequestError::SnapshotExpired`](crate::RequestError::SnapshotExpired), and the reader
//! begins again.
//!
//! What a snapshot keeps in memory is at most what the replica had in its memtables when it was opened. On the
//! disk it keeps the objects of that time.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::{BufMut as _, Bytes, BytesMut};
use flotilla_storage::StateEngine;
use flotilla_types::ReplicaId;

use super::{
    Applied, Ready,
    slow::{ReadState, Slow, SlowRead, on_read_failure},
};
use crate::{Query, RequestError};

/// Snapshots of a node that are kept open. Beyond it, the one that was not used for longest ends.
pub const PINS_MAX: usize = 4_096;
/// Bytes of memtables that the snapshots of a node keep. Beyond it, as above; one alone may exceed it.
pub const PINNED_BYTES_MAX: usize = 256 << 20;
/// Milliseconds for which a snapshot stays open without being used.
pub const PIN_IDLE_MS: u64 = 5 * 60_000;
/// Milliseconds for which a snapshot stays open: it keeps objects that are garbage otherwise.
pub const PIN_MS_MAX: u64 = 60 * 60_000;

/// Begins a query that names a snapshot. No version of a state machine's queries does.
const NAMED: u8 = 0xFE;
const HEADER_BYTES: usize = 2 + 16;

/// Names the snapshots of one reader, in any number of shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PinId(pub u128);

/// A query on a snapshot. Binaries that know no snapshots take it for one that does not parse, and say so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PinnedQuery {
    /// The snapshot.
    pub id: PinId,
    /// Whether to open it, in place of an earlier one with this id.
    pub opens: bool,
    /// The query, in the state machine's format.
    pub query: Bytes,
}

impl PinnedQuery {
    /// The query as bytes.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut bytes = BytesMut::with_capacity(HEADER_BYTES + self.query.len());
        bytes.put_u8(NAMED);
        bytes.put_u8(self.opens.into());
        bytes.put_u128(self.id.0);
        bytes.put_slice(&self.query);
        bytes.freeze()
    }

    /// Reads a query that names a snapshot; `None` if it names none.
    #[must_use]
    pub fn decode(payload: &Bytes) -> Option<Self> {
        let (header, _) = payload.split_at_checked(HEADER_BYTES)?;
        let [NAMED, opens @ (0 | 1), id @ ..] = header else { return None };
        let id = PinId(u128::from_be_bytes(id.try_into().ok()?));
        Some(Self { id, opens: *opens == 1, query: payload.slice(HEADER_BYTES..) })
    }
}

struct Pin {
    state: Arc<ReadState>,
    /// Bytes of memtables that it keeps, at most.
    bytes: usize,
    opened_ms: u64,
    used_ms: u64,
}

impl Pin {
    /// Whether it was not used for long, or is open for long.
    fn has_expired(&self, now_ms: u64) -> bool {
        now_ms >= self.used_ms + PIN_IDLE_MS || now_ms >= self.opened_ms + PIN_MS_MAX
    }
}

/// The open snapshots of a node. Times are Unix milliseconds.
#[derive(Default)]
pub(super) struct Pins {
    pins: BTreeMap<(ReplicaId, PinId), Pin>,
    bytes: usize,
    /// Their number, for other threads.
    open: Arc<AtomicUsize>,
}

impl Pins {
    pub(super) fn open(&mut self, now_ms: u64, key: (ReplicaId, PinId), state: Arc<ReadState>, bytes: usize) {
        self.end(&[key]);
        self.expire(now_ms);
        while !self.pins.is_empty() && (self.pins.len() >= PINS_MAX || self.bytes + bytes > PINNED_BYTES_MAX) {
            let oldest = self.pins.iter().min_by_key(|(_, pin)| pin.used_ms).map(|(key, _)| *key);
            self.end(oldest.as_slice());
            metrics::counter!("flotilla_snapshots_evicted_total").increment(1);
        }
        self.bytes += bytes;
        self.pins.insert(key, Pin { state, bytes, opened_ms: now_ms, used_ms: now_ms });
        self.publish();
    }

    /// The state of an open snapshot.
    pub(super) fn state(&mut self, now_ms: u64, key: (ReplicaId, PinId)) -> Option<Arc<ReadState>> {
        let pin = self.pins.get_mut(&key)?;
        if pin.has_expired(now_ms) {
            self.end(&[key]);
            return None;
        }
        pin.used_ms = now_ms;
        Some(pin.state.clone())
    }

    /// Ends what was not used for long, or is open for long.
    pub(super) fn expire(&mut self, now_ms: u64) {
        let expired = self.pins.iter().filter(|(_, pin)| pin.has_expired(now_ms));
        let expired: Vec<_> = expired.map(|(key, _)| *key).collect();
        self.end(&expired);
    }

    /// Ends the snapshots of a replica.
    pub(super) fn end_all_of(&mut self, replica: ReplicaId) {
        let of_replica = (replica, PinId(0))..=(replica, PinId(u128::MAX));
        let keys: Vec<_> = self.pins.range(of_replica).map(|(key, _)| *key).collect();
        self.end(&keys);
    }

    fn end(&mut self, keys: &[(ReplicaId, PinId)]) {
        for key in keys {
            if let Some(pin) = self.pins.remove(key) {
                self.bytes -= pin.bytes;
            }
        }
        self.publish();
    }

    fn publish(&self) {
        self.open.store(self.pins.len(), Ordering::Relaxed);
    }

    pub(super) fn count(&self) -> Arc<AtomicUsize> {
        self.open.clone()
    }
}

impl Ready {
    /// Hands over a query on a snapshot, after opening that if the query says so.
    pub(super) fn read_pinned<T>(
        &self,
        replica: ReplicaId,
        wall_ms: u64,
        query: Query<T>,
        engine: &dyn StateEngine,
        (slow_reads, pins): (&Arc<AtomicUsize>, &mut Pins),
        out: &mut Applied<T>,
    ) {
        let Some(PinnedQuery { id, opens, query: payload }) = PinnedQuery::decode(&query.payload) else { return };
        let query = Query { payload, ..query };
        if opens {
            // Records are due by the shard's clock alone: a later time would not see the same state.
            match ReadState::of(self, replica, self.clock, engine) {
                Ok(Some(state)) => {
                    let usage = engine.usage(replica);
                    pins.open(wall_ms, (replica, id), state, usage.active_bytes + usage.frozen_bytes);
                }
                Ok(None) => {}
                Err(error) => {
                    let error = on_read_failure(replica, error.into(), &mut out.fatal);
                    return out.replies.push((query.reply, Err(error)));
                }
            }
        }
        let Some(state) = pins.state(wall_ms, (replica, id)) else {
            return out.replies.push((query.reply, Err(RequestError::SnapshotExpired)));
        };
        match SlowRead::new(replica, query, state, slow_reads, &self.slow_reads) {
            Ok(read) => out.slow.push(Slow::Read(read.of_pin())),
            Err(query) => out.replies.push((query.reply, Err(RequestError::Busy))),
        }
    }
}

#[cfg(test)]
mod tests {
    use flotilla_hostile::{attack, mutated};
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn pinned_queries_round_trip_and_other_ones_name_no_snapshot() {
        let queries = (any::<u128>(), any::<bool>(), proptest::collection::vec(any::<u8>(), 0..9))
            .prop_map(|(id, opens, query)| PinnedQuery { id: PinId(id), opens, query: query.into() });
        attack(128, queries.clone(), |query| assert_eq!(PinnedQuery::decode(&query.encode()), Some(query)));
        attack(500, mutated(queries.prop_map(|query| query.encode())), |bytes| {
            let bytes = Bytes::from(bytes);
            if let Some(query) = PinnedQuery::decode(&bytes) {
                assert_eq!(query.encode(), bytes);
            }
        });
        assert_eq!(PinnedQuery::decode(&Bytes::from_static(&[1; 40])), None);
    }
}
