//! A cluster of our own nodes, and where its keys lie.

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
use flotilla_local_cluster::{Cluster, ClusterOptions, is_whole, status};
use flotilla_placement::bucket_of;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use super::{
    keys,
    measure::{Family, System},
    protocol::Wire,
};
use crate::workspace;

/// Shards that the collection has from the start.
pub(super) const SHARDS_DEFAULT: u16 = 3;
/// Its buckets, and the fewest that it is given.
const BUCKETS: u16 = 16;
const COLLECTION: &str = "default";
/// How long shards may take until all of them have their replicas and leaders lie where they should.
const SETTLED_WITHIN: Duration = Duration::from_secs(120);
/// For so long the leaders must be the same ones.
const QUIET: Duration = Duration::from_secs(3);
/// So long each node may take to lead its share of them. It is not insisted on: a cluster that never balances is measured as it is.
const SPREAD_WITHIN: Duration = Duration::from_secs(45);
const POLL_EVERY: Duration = Duration::from_millis(200);

/// Running nodes. Dropping it ends them, and removes their data.
pub(super) struct Own {
    pub(super) cluster: Cluster,
    pub(super) runtime: Runtime,
    shards: u16,
    _folder: TempDir,
}

impl Own {
    /// Starts nodes in a folder of their own under `target`, and waits until everything has its place.
    pub(super) fn start(binary: PathBuf, target: &Path, nodes: usize, shards: u16) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("bench-").tempdir_in(target)?;
        let mut options = ClusterOptions::new(nodes, binary);
        options.dir = Some(folder.path().to_owned());
        // It must live as long as the cluster; the load does without.
        let runtime = workspace::runtime()?;
        let cluster = runtime.block_on(Cluster::start(options))?;
        let own = Self { cluster, runtime, shards, _folder: folder };
        if shards != SHARDS_DEFAULT {
            own.runtime.block_on(own.reshard())?;
        }
        own.settle()?;
        Ok(own)
    }

    /// The shards are fixed for a collection's life, so this is another one of the same name.
    async fn reshard(&self) -> Result<()> {
        let client = Client::new(ClientOptions::new(self.cluster.http_all()))?;
        client.drop_collection(COLLECTION).await?;
        let (name, sharding) = (COLLECTION.to_owned(), Sharding::Hash);
        let (buckets, shards) = (Some(self.buckets()), Some(self.shards));
        let wanted = CreateCollection { name, sharding, buckets, shards, replicas: None };
        client.create_collection(&wanted).await?;
        Ok(())
    }

    fn buckets(&self) -> u16 {
        self.shards.max(BUCKETS)
    }

    /// Waits until every shard is whole, and leaders have stayed where they are for a while.
    pub(super) fn settle(&self) -> Result<()> {
        let (start, nodes) = (Instant::now(), self.cluster.len());
        // As many shards for each node as there are for all, of the smallest size.
        let share = usize::from(self.shards) / nodes * usize::from(self.buckets() / self.shards);
        let (mut since, mut last) = (Instant::now(), Vec::new());
        loop {
            let http = self.cluster.http(1)?;
            let is_whole = self.runtime.block_on(is_whole(&http, nodes));
            let leaders = self.leaders().unwrap_or_default();
            if !is_whole || leaders != last || leaders.len() != usize::from(self.buckets()) {
                (since, last) = (Instant::now(), leaders);
            } else if since.elapsed() >= QUIET && (is_spread(&last, nodes, share) || start.elapsed() >= SPREAD_WITHIN) {
                return Ok(());
            }
            ensure!(start.elapsed() < SETTLED_WITHIN, "shards do not settle within {SETTLED_WITHIN:?}");
            thread::sleep(POLL_EVERY);
        }
    }

    /// As one system over a protocol.
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

    /// The number of the node that leads each bucket, as the first running node knows it.
    pub(super) fn leaders(&self) -> Result<Vec<usize>> {
        let asked = |i| -> Result<Vec<usize>> {
            let status = self.runtime.block_on(status(&self.cluster.http(i)?))?;
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
        (1..=self.cluster.len()).find_map(|i| asked(i).ok()).context("no node knows all leaders")
    }

    /// Those keys below `count` whose bucket satisfies `is_wanted`.
    pub(super) fn keys(&self, count: u64, is_wanted: impl Fn(usize) -> bool) -> Vec<u64> {
        let bucket = |key: &u64| usize::from(bucket_of(&keys::name(*key), self.buckets()).0);
        (0..count).filter(|key| is_wanted(bucket(key))).collect()
    }
}

/// Whether every node leads at least so many buckets.
fn is_spread(leaders: &[usize], nodes: usize, share: usize) -> bool {
    (1..=nodes).all(|node| leaders.iter().filter(|leader| **leader == node).count() >= share)
}

/// The buckets of a shard, from what its status says for people: `bucket 3` or `buckets 0–4`.
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
    fn leaders_are_spread_when_no_node_has_less_than_its_share() {
        assert!(is_spread(&[1, 2, 3, 1], 3, 1) && is_spread(&[2], 3, 0), "one shard has one leader");
        assert!(!is_spread(&[1, 1, 1, 2], 3, 1));
    }

    #[test]
    fn buckets_are_read_from_what_the_status_says() {
        assert_eq!(buckets("bucket 7"), Some(7..=7));
        assert_eq!(buckets("buckets 0–4"), Some(0..=4));
        assert_eq!(buckets("all keys"), None);
    }
}
