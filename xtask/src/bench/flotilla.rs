//! A Flotilla cluster under test, and the leaders of its keys.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use flotilla_api::{CreateCollection, Sharding};
use flotilla_client::{Client, ClientOptions};
use flotilla_local_cluster::{Cluster, ClusterOptions, Credentials, has_possible_replicas, status};
use flotilla_placement::bucket_of;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use super::{
    keys,
    measure::{Family, System},
    protocol::Wire,
};
use crate::workspace;

/// Shards of the default collection.
pub(super) const SHARDS_DEFAULT: u16 = 3;
/// Buckets of the default collection, and of any with fewer shards.
const BUCKETS: u16 = 16;
const COLLECTION: &str = "default";
/// How long shards may take to be fully replicated with stable leaders.
const SETTLED_WITHIN: Duration = Duration::from_secs(120);
/// How long leaders must stay unchanged.
const STABLE_FOR: Duration = Duration::from_secs(3);
/// How long to wait for balanced leaders. After that an unbalanced cluster is measured as it is.
const BALANCED_WITHIN: Duration = Duration::from_secs(45);
const POLL_EVERY: Duration = Duration::from_millis(200);

/// A running cluster. Dropping it kills the nodes and removes their data.
pub(super) struct Flotilla {
    pub(super) cluster: Cluster,
    pub(super) runtime: Runtime,
    shards: u16,
    _folder: TempDir,
}

impl Flotilla {
    /// Starts nodes in a new folder under `target`, and waits until shards and leaders have settled.
    pub(super) fn start(binary: PathBuf, target: &Path, nodes: usize, shards: u16) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("bench-").tempdir_in(target)?;
        let mut options = ClusterOptions::new(nodes, binary);
        options.dir = Some(folder.path().to_owned());
        // The runtime must live as long as the cluster. The load does not use it.
        let runtime = workspace::runtime()?;
        let cluster = runtime.block_on(Cluster::start(options))?;
        let flotilla = Self { cluster, runtime, shards, _folder: folder };
        if shards != SHARDS_DEFAULT {
            flotilla.runtime.block_on(flotilla.reshard())?;
        }
        flotilla.settle()?;
        Ok(flotilla)
    }

    /// Replaces the collection by one with the requested shards: they are fixed when a collection is created.
    async fn reshard(&self) -> Result<()> {
        let client = Client::new(ClientOptions::new(self.cluster.http_all()))?;
        client.drop_collection(COLLECTION).await?;
        let (name, sharding) = (COLLECTION.to_owned(), Sharding::Hash);
        let (buckets, shards) = (Some(self.buckets()), Some(self.shards));
        // As many shards as were asked for, however much is stored.
        let split_bytes = Some(0);
        let selection = CreateCollection {
            name,
            sharding,
            buckets,
            shards,
            replicas: None,
            objects_from: None,
            chunk: None,
            split_bytes,
        };
        client.create_collection(&selection).await?;
        Ok(())
    }

    fn buckets(&self) -> u16 {
        self.shards.max(BUCKETS)
    }

    /// Waits until every shard has the replicas that the nodes allow, and leaders have been stable for a
    /// while.
    pub(super) fn settle(&self) -> Result<()> {
        let (start, nodes) = (Instant::now(), self.cluster.len());
        // Buckets of an equal share of the shards, rounded down.
        let share = usize::from(self.shards) / nodes * usize::from(self.buckets() / self.shards);
        let (mut since, mut last) = (Instant::now(), Vec::new());
        loop {
            let http = self.cluster.http(1)?;
            let has_replicas = self.runtime.block_on(has_possible_replicas(&http, &Credentials::default(), nodes));
            let leaders = self.leaders().unwrap_or_default();
            if !has_replicas || leaders != last || leaders.len() != usize::from(self.buckets()) {
                (since, last) = (Instant::now(), leaders);
            } else if since.elapsed() >= STABLE_FOR
                && (is_balanced(&last, nodes, share) || start.elapsed() >= BALANCED_WITHIN)
            {
                return Ok(());
            }
            ensure!(start.elapsed() < SETTLED_WITHIN, "shards did not settle within {SETTLED_WITHIN:?}");
            thread::sleep(POLL_EVERY);
        }
    }

    /// The cluster as a system to measure over a protocol.
    pub(super) fn system(&self, wire: Wire) -> Result<System> {
        let nodes = (1..=self.cluster.len()).map(|i| self.cluster.node(i)).collect::<Result<Vec<_>, _>>()?;
        let addr = |node: &&flotilla_local_cluster::Node| if wire == Wire::Http { node.http } else { node.redis };
        let shards = if self.shards == SHARDS_DEFAULT { String::new() } else { format!(", shards {}", self.shards) };
        Ok(System {
            family: Family::Flotilla,
            name: format!("flotilla ×{}{shards}", nodes.len()),
            wire,
            servers: nodes.iter().map(addr).collect(),
            pids: nodes.iter().map(|node| node.pid).collect(),
        })
    }

    pub(super) fn redis(&self, i: usize) -> Result<SocketAddr> {
        Ok(self.cluster.redis(i)?)
    }

    /// The number of the node that leads each bucket, as the first responding node reports it.
    pub(super) fn leaders(&self) -> Result<Vec<usize>> {
        let leaders_by = |i| -> Result<Vec<usize>> {
            let status = self.runtime.block_on(status(&self.cluster.http(i)?, &Credentials::default()))?;
            let of_keys = status.shards.iter().filter(|shard| shard.collection.as_deref() == Some(COLLECTION));
            let mut led = BTreeMap::new();
            let leader = |shard: &&flotilla_api::ShardInfo| {
                let leader = status.nodes.iter().find(|node| Some(node.id) == shard.leader)?;
                (1..=self.cluster.len()).find(|i| self.cluster.node(*i).is_ok_and(|node| node.name == leader.name))
            };
            for shard in of_keys {
                let leader = leader(&shard).context("a shard without a leader")?;
                led.extend(buckets(&shard.range).context("a shard without buckets")?.map(|bucket| (bucket, leader)));
            }
            ensure!(led.keys().copied().eq(0..led.len()), "a bucket without a shard");
            Ok(led.into_values().collect())
        };
        (1..=self.cluster.len()).find_map(|i| leaders_by(i).ok()).context("no node knows all leaders")
    }

    /// The keys below `count` whose bucket satisfies `is_wanted`.
    pub(super) fn keys(&self, count: u64, is_wanted: impl Fn(usize) -> bool) -> Vec<u64> {
        let bucket = |key: &u64| usize::from(bucket_of(&keys::name(*key), self.buckets()).0);
        (0..count).filter(|key| is_wanted(bucket(key))).collect()
    }
}

/// Whether every node leads at least `share` buckets.
fn is_balanced(leaders: &[usize], nodes: usize, share: usize) -> bool {
    (1..=nodes).all(|node| leaders.iter().filter(|leader| **leader == node).count() >= share)
}

/// The buckets of a shard, parsed from the text in its status: `bucket 3` or `buckets 0–4`.
fn buckets(range: &str) -> Option<RangeInclusive<usize>> {
    if let Some(only) = range.strip_prefix("bucket ") {
        let only = only.parse().ok()?;
        return Some(only..=only);
    }
    let (first, last) = range.strip_prefix("buckets ")?.split_once('–')?;
    Some(first.parse().ok()?..=last.parse().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaders_are_balanced_if_every_node_has_its_share() {
        assert!(is_balanced(&[1, 2, 3, 1], 3, 1) && is_balanced(&[2], 3, 0), "one shard has one leader");
        assert!(!is_balanced(&[1, 1, 1, 2], 3, 1));
    }

    #[test]
    fn buckets_are_parsed_from_the_status_text() {
        assert_eq!(buckets("bucket 7"), Some(7..=7));
        assert_eq!(buckets("buckets 0–4"), Some(0..=4));
        assert_eq!(buckets("all keys"), None);
    }
}
