//! Routing by the newest shard map, again whenever a shard refuses a route as outdated.
//!
//! Every request goes on until its deadline: a refusal brings a newer map, so that a change of ranges costs
//! one more try and no error. Without any metadata a request fails at once ([`super::collection_of`]).

use std::time::Duration;

use bytes::Bytes;
use flotilla_control::{ShardError, clock};
use flotilla_placement::{Shard, ShardMap};
use flotilla_route::{Route, RouteRefusals};
use flotilla_types::KeyRange;

use super::{Store, StoreError};

/// The refusals that one request met.
pub(super) struct Rerouting<'a> {
    store: &'a Store,
    deadline_ms: u64,
    refusals: RouteRefusals,
    last_refused: Option<Route>,
}

impl<'a> Rerouting<'a> {
    pub(super) fn new(store: &'a Store, deadline_ms: u64) -> Self {
        Self { store, deadline_ms, refusals: RouteRefusals::default(), last_refused: None }
    }

    /// Records that a shard refused a route.
    pub(super) fn refused(&mut self, route: Route) {
        self.refusals.record(route);
        self.last_refused = Some(route);
    }

    /// Routes by the newest map. Waits before a route that was refused repeatedly, and while a key has no
    /// shard: then its range has just changed, and its new shard is not known here yet. New metadata ends the wait.
    ///
    /// # Errors
    /// `route` failed for another reason, or the deadline has passed.
    pub(super) async fn route<T>(
        &self,
        route: impl Fn(&ShardMap) -> Result<Vec<(Route, T)>, StoreError>,
    ) -> Result<Vec<(Route, T)>, StoreError> {
        let mut paused = false;
        loop {
            let routed = route(&self.store.map());
            let pause_ms = match &routed {
                Err(StoreError::Unavailable { shard: None, .. }) => self.refusals.pause_ms([None]),
                Ok(routed) if !paused => self.refusals.pause_ms(routed.iter().map(|(route, _)| Some(*route))),
                Ok(_) | Err(_) => 0,
            };
            let left_ms = match (self.last_refused, pause_ms) {
                (None, 0) => return routed,
                _ => self.deadline_ms.saturating_sub(clock::monotonic_ms()),
            };
            match self.last_refused {
                Some(Route { shard, .. }) if left_ms == 0 => {
                    return Err(self.store.read_error(ShardError::Unavailable, shard, self.deadline_ms));
                }
                None if left_ms == 0 => return routed,
                _ if pause_ms == 0 => return routed,
                _ => {
                    let pause = Duration::from_millis(pause_ms.min(left_ms));
                    let mut updates = self.store.inner.shards.topology().watch();
                    let _ = tokio::time::timeout(pause, updates.changed()).await;
                }
            }
            paused = true;
        }
    }
}

/// The route to a shard of the map.
pub(super) fn route_to(shard: &Shard) -> Route {
    Route { shard: shard.descriptor.shard, range_epoch: shard.descriptor.epoch.range }
}

/// The shard that holds a record key.
pub(super) fn home<'a>(map: &'a ShardMap, record_key: &Bytes) -> Result<&'a Shard, StoreError> {
    map.shard_of(record_key).ok_or(StoreError::Unavailable { shard: None, leader: None })
}

/// The parts of a range of record keys, in order, with the shard that holds each; none if it is empty.
pub(super) fn parts(map: &ShardMap, range: &KeyRange) -> Result<Vec<(Route, KeyRange)>, StoreError> {
    let mut parts = Vec::new();
    let mut rest = range.clone();
    while !rest.is_empty() {
        let shard = home(map, &rest.start)?;
        let part = rest.intersection(&shard.descriptor.range);
        let end = part.end.clone();
        parts.push((route_to(shard), part));
        if end.is_empty() {
            break;
        }
        rest.start = end;
    }
    Ok(parts)
}
