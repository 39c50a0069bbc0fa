//! The routes of one request that shards refused as outdated, and when to try the next one.

use std::collections::BTreeMap;

use flotilla_types::ShardId;

/// Pause before a route that was refused twice is tried again, in milliseconds.
const PAUSE_MS: u64 = 20;

/// How a request was routed: by this descriptor of this shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Route {
    /// The shard.
    pub shard: ShardId,
    /// Its range epoch.
    pub range_epoch: u64,
}

/// The routes of one request that were refused.
///
/// A refusal usually brings a newer map, so the next route is another one and is tried at once. A refused
/// route is tried once more without a pause, because the range may have changed only while the request was
/// in the shard: then no newer map came yet, and the next refusal brings it.
#[derive(Debug, Clone, Default)]
pub struct RouteRefusals {
    refused: BTreeMap<Route, u32>,
}

impl RouteRefusals {
    /// Records that a shard refused this route.
    pub fn record(&mut self, route: Route) {
        *self.refused.entry(route).or_default() += 1;
    }

    /// Whether no route was refused yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.refused.is_empty()
    }

    /// How long to wait before these routes are tried, in milliseconds; also when the map has none for some
    /// key (`None`), which a change of ranges explains.
    #[must_use]
    pub fn pause_ms(&self, routes: impl IntoIterator<Item = Option<Route>>) -> u64 {
        let again = |route: Option<Route>| route.is_none_or(|route| self.refused.get(&route).is_some_and(|n| *n > 1));
        if routes.into_iter().any(again) { PAUSE_MS } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(range_epoch: u64) -> Option<Route> {
        Some(Route { shard: ShardId(1), range_epoch })
    }

    #[test]
    fn only_a_route_that_was_refused_twice_waits() {
        let mut refusals = RouteRefusals::default();
        assert!(refusals.is_empty());
        refusals.record(Route { shard: ShardId(1), range_epoch: 1 });
        assert_eq!((refusals.is_empty(), refusals.pause_ms([route(1)])), (false, 0));
        refusals.record(Route { shard: ShardId(1), range_epoch: 1 });
        assert_eq!(refusals.pause_ms([route(2)]), 0, "the refusal brought a newer map");
        assert_eq!(refusals.pause_ms([route(2), route(1)]), PAUSE_MS);
        assert_eq!(refusals.pause_ms([route(2), None]), PAUSE_MS, "no shard is known to hold the key");
    }
}
