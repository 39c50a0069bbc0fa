//! Objects of other nodes.

use std::time::Duration;

use flotilla_control::{Shards, clock};
use flotilla_types::{NodeId, Refs};
use futures_util::future::{BoxFuture, FutureExt as _};

use super::values::{FetchObjects, NotFetched};

/// Fetches over this node's connections to the others.
pub(super) struct Peers(pub(super) Shards);

impl FetchObjects for Peers {
    fn fetch(
        &self,
        upload: u64,
        objects: Refs,
        from: Vec<NodeId>,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<(), NotFetched>> {
        let shards = self.0.clone();
        let deadline_ms = clock::monotonic_ms() + u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX / 2);
        async move {
            let fetched = shards.fetch_from(upload, from, &objects, deadline_ms).await;
            fetched.map(|_| ()).map_err(|error| {
                tracing::debug!(%error, "objects were not fetched");
                NotFetched
            })
        }
        .boxed()
    }
}
