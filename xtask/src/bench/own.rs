//! A cluster of our own nodes, and where its keys lie.

use std::{
    net::SocketAddr,
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

/// Buckets, and so shards, that the collection has from the start.
pub(super) const SHARDS_DEFAULT: u16 = 16;
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

    /// The number of buckets is fixed for a collection's life, so this is another one of the same name.
    async fn reshard(&self) -> Result<()> {
        let client = Client::new(ClientOptions::new(self.cluster.http_all()))?;
        client.drop_collection(COLLECTION).await?;
        let (name, sharding) = (COLLECTION.to_owned(), Sharding::Hash);
        let wanted = CreateCollection { name, sharding, buckets: Some(self.shards), replicas: None };
        client.create_collection(&wanted).await?;
        Ok(())
    }

    /// Waits until every shard is whole, and leaders have stayed where they are for a while.
    pub(super) fn settle(&self) -> Result<()> {
        let (start, nodes) = (Instant::now(), self.cluster.len());
        let (mut since, mut last) = (Instant::now(), Vec::new());
        loop {
            let http = self.cluster.http(1)?;
            let is_whole = self.runtime.block_on(is_whole(&http, nodes));
            let leaders = self.leaders().unwrap_or_default();
            if !is_whole || leaders != last || leaders.len() != usize::from(self.shards) {
                (since, last) = (Instant::now(), leaders);
            } else if since.elapsed() >= QUIET && (is_spread(&last, nodes) || start.elapsed() >= SPREAD_WITHIN) {
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
            let mut shards: Vec<_> = of_keys.collect();
            shards.sort_by_key(|shard| bucket(&shard.range));
            ensure!(
                shards.iter().enumerate().all(|(i, shard)| bucket(&shard.range) == Some(i)),
                "a shard of many buckets"
            );
            let leader = |shard: &&flotilla_api::ShardInfo| {
                let leader = status.nodes.iter().find(|node| Some(node.id) == shard.leader)?;
                (1..=self.cluster.len()).find(|i| self.cluster.node(*i).is_ok_and(|node| node.name == leader.name))
            };
            shards.iter().map(leader).collect::<Option<Vec<_>>>().context("a shard without a leader")
        };
        (1..=self.cluster.len()).find_map(|i| asked(i).ok()).context("no node knows all leaders")
    }

    /// Those keys below `count` whose bucket satisfies `is_wanted`.
    pub(super) fn keys(&self, count: u64, is_wanted: impl Fn(usize) -> bool) -> Vec<u64> {
        let bucket = |key: &u64| usize::from(bucket_of(&keys::name(*key), self.shards).0);
        (0..count).filter(|key| is_wanted(bucket(key))).collect()
    }
}

/// Whether every node leads its share, rounded down.
fn is_spread(leaders: &[usize], nodes: usize) -> bool {
    let led = |node: usize| leaders.iter().filter(|leader| **leader == node).count();
    (1..=nodes).all(|node| led(node) >= leaders.len() / nodes)
}

/// The only bucket of a shard, from what its status says for people.
fn bucket(range: &str) -> Option<usize> {
    range.strip_prefix("bucket ")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaders_are_spread_when_no_node_has_less_than_its_share() {
        assert!(is_spread(&[1, 2, 3, 1], 3) && is_spread(&[2], 3), "one shard has one leader");
        assert!(!is_spread(&[1, 1, 1, 2], 3));
    }

    #[test]
    fn buckets_are_told_by_number() {
        assert_eq!([bucket("bucket 12"), bucket("buckets 0–3"), bucket("all keys")], [Some(12), None, None]);
    }
}
