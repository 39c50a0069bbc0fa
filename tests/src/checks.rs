//! Checks of a cluster after its faults are healed: writable, replicas equal, no acknowledged write lost.

use std::{
    collections::{BTreeSet, HashMap},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use flotilla_api::{DigestComparison, ShardVerdict, Verdict};
use flotilla_client::{Client, ClientOptions, PutOptions, ScanOptions};
use flotilla_local_cluster::Cluster;
use flotilla_types::{NodeId, ReplicaRole, ShardId};
use tokio::time::sleep;

use crate::{
    load::{FinishedLoad, write_once_prefix},
    support::WriteOutcome,
};

/// How long after healing replicas may differ.
pub(crate) const EQUAL_WITHIN: Duration = Duration::from_secs(30);
/// Keys that are written after healing: enough for every shard to hold some.
const PROBES: usize = 64;
/// Records per page of a scan.
const PAGE: usize = 500;
/// Problems listed at most.
const SHOWN: usize = 5;
/// Interval between polls: computing digests reads every record.
const POLL_EVERY: Duration = Duration::from_millis(300);

/// Checks that every acknowledged write-once key has its value, and that no refused one exists. Returns the
/// number of keys.
///
/// # Errors
/// A key is wrong, or cannot be read.
pub(crate) async fn check_write_once_keys(http: &str, load: &FinishedLoad) -> anyhow::Result<usize> {
    let client = Client::new(ClientOptions::new([http]))?;
    let mut stored = HashMap::new();
    let prefix = write_once_prefix(&load.prefix).into();
    let mut options = ScanOptions { prefix, limit: PAGE, ..ScanOptions::default() };
    loop {
        let page = client.scan("default", &options).await.context("a scan after healing")?;
        stored.extend(page.records.into_iter().map(|record| (record.key, record.value)));
        options.cursor = page.cursor;
        if options.cursor.is_none() {
            break;
        }
    }
    let mut wrong = Vec::new();
    for (key, value, outcome) in &load.write_once {
        let found = stored.remove(key.as_bytes());
        let intact = found.as_deref() == Some(value.as_bytes());
        let is_expected = match outcome {
            WriteOutcome::Acknowledged => intact,
            WriteOutcome::Refused => found.is_none(),
            WriteOutcome::Unknown => intact || found.is_none(),
        };
        if !is_expected {
            wrong.push(format!(
                "{key} ({outcome:?}) has {:?} bytes instead of {}",
                found.map(|it| it.len()),
                value.len()
            ));
        }
    }
    wrong.extend(stored.keys().map(|key| format!("{key:?} was never put")));
    ensure!(wrong.is_empty(), "{} keys are wrong: {:?}", wrong.len(), &wrong[..wrong.len().min(SHOWN)]);
    Ok(load.write_once.len())
}

/// Waits until every shard accepts writes through every running node.
///
/// # Errors
/// One still refuses writes [`EQUAL_WITHIN`] after `healed`.
pub(crate) async fn wait_writable(cluster: &mut Cluster, healed: Instant) -> anyhow::Result<()> {
    for i in 1..=cluster.len() {
        if !cluster.is_running(i)? {
            continue;
        }
        let client = Client::new(ClientOptions::new([cluster.http(i)?]))?;
        for number in 0..PROBES {
            let key = format!("healed/{number}");
            while let Err(error) = client.put("default", key.as_bytes(), "yes".into(), &PutOptions::default()).await {
                let since = healed.elapsed();
                ensure!(since < EQUAL_WITHIN, "{} s after healing, n{i} does not put {key}: {error}", since.as_secs());
                sleep(POLL_EVERY).await;
            }
        }
    }
    Ok(())
}

/// Waits until all replicas of each shard have equal digests. Returns the time since `healed`.
///
/// # Errors
/// They still differ after [`EQUAL_WITHIN`].
pub(crate) async fn wait_replicas_equal(cluster: &mut Cluster, healed: Instant) -> anyhow::Result<Duration> {
    loop {
        let difference = match find_difference(cluster).await {
            Ok(None) => return Ok(healed.elapsed()),
            Ok(Some(difference)) => difference,
            Err(error) => format!("{error:#}"),
        };
        ensure!(healed.elapsed() < EQUAL_WITHIN, "{} s after healing: {difference}", EQUAL_WITHIN.as_secs());
        sleep(POLL_EVERY).await;
    }
}

/// Why the replicas are not all equal, if they are not.
async fn find_difference(cluster: &mut Cluster) -> anyhow::Result<Option<String>> {
    let mut statuses = Vec::new();
    // A new comparison each time, so that what a replica held before it was replaced does not count.
    let mut comparison = DigestComparison::default();
    for i in 1..=cluster.len() {
        if !cluster.is_running(i)? {
            continue;
        }
        let http = cluster.http(i)?;
        let client = Client::new(ClientOptions::new([&http]))?;
        let status = client.status().await?;
        comparison.add(&http, &status, client.digests().await?);
        statuses.push(status);
    }
    let Some(status) = statuses.first() else { bail!("no node is running") };
    let live: BTreeSet<NodeId> = statuses.iter().map(|status| status.node).collect();
    for shard in &status.shards {
        let voters: BTreeSet<NodeId> = shard
            .replicas
            .iter()
            .filter(|replica| replica.role == ReplicaRole::Voter)
            .map(|replica| replica.node)
            .collect();
        let desired = usize::from(shard.desired_replicas).min(if live.len() < 3 { 1 } else { live.len() });
        if voters.len() < desired || !voters.is_subset(&live) {
            return Ok(Some(format!("{} has voters on {voters:?}, desired are {desired}", shard.id)));
        }
    }
    let report = comparison.report();
    // A single voter is all there is to read in a cluster that is too small for more.
    let is_alone = |shard: ShardId| {
        let found = status.shards.iter().find(|found| found.id == shard);
        found.is_some_and(|found| found.replicas.len() == 1)
    };
    let is_equal = |shard: &ShardVerdict| shard.verdict == Verdict::Equal || is_alone(shard.shard);
    let is_pass = !report.shards.is_empty() && report.shards.iter().all(is_equal);
    Ok(if is_pass { None } else { Some(format!("{:?}: {:?}", report.verdict, report.reasons)) })
}
