//! Whether a hurt cluster is as it must be: nothing lost, replicas equal, nobody gone, memory bounded.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use flotilla_api::{DigestList, Held, LocalRole};
use flotilla_client::{Client, ClientOptions, PutOptions, ScanOptions};
use flotilla_local_cluster::Cluster;
use flotilla_types::{NodeId, ReplicaRole, ShardId};
use tokio::time::sleep;

use crate::{
    load::{Ended, own_keys},
    support::Fate,
};

/// How long after the healing replicas may differ.
pub(crate) const EQUAL_WITHIN: Duration = Duration::from_secs(30);
/// Keys that are written after the healing: enough for every shard to hold some.
const PROBES: usize = 64;
/// Records of one page.
const PAGE: usize = 500;
/// What is listed of a long list.
const SHOWN: usize = 5;
/// Between two looks at digests: each reads every record.
const LOOK_EVERY: Duration = Duration::from_millis(300);

/// Every key that was put once is there as it was acknowledged, and nothing is that was refused.
///
/// # Errors
/// Something is not, or cannot be read.
pub(crate) async fn own_keys_are_kept(http: &str, ended: &Ended) -> anyhow::Result<usize> {
    let client = Client::new(ClientOptions::new([http]))?;
    let mut stored = HashMap::new();
    let mut options = ScanOptions { prefix: own_keys(&ended.prefix).into(), limit: PAGE, ..ScanOptions::default() };
    loop {
        let page = client.scan("default", &options).await.context("a scan after everything is healed")?;
        stored.extend(page.records.into_iter().map(|record| (record.key, record.value)));
        options.cursor = page.cursor;
        if options.cursor.is_none() {
            break;
        }
    }
    let mut wrong = Vec::new();
    for (key, value, fate) in &ended.own {
        let found = stored.remove(key.as_bytes());
        let whole = found.as_deref() == Some(value.as_bytes());
        let fits = match fate {
            Fate::Acknowledged => whole,
            Fate::Refused => found.is_none(),
            Fate::Unknown => whole || found.is_none(),
        };
        if !fits {
            wrong.push(format!(
                "{key} ({fate:?}) is there with {:?} bytes of {}",
                found.map(|it| it.len()),
                value.len()
            ));
        }
    }
    wrong.extend(stored.keys().map(|key| format!("nobody put {key:?}")));
    ensure!(wrong.is_empty(), "{} keys are wrong: {:?}", wrong.len(), &wrong[..wrong.len().min(SHOWN)]);
    Ok(ended.own.len())
}

/// Every shard takes writes again, through every node.
///
/// # Errors
/// One does not within [`EQUAL_WITHIN`] of `healed`.
pub(crate) async fn writes_are_served(cluster: &mut Cluster, healed: Instant) -> anyhow::Result<()> {
    for i in 1..=cluster.len() {
        if !cluster.runs(i)? {
            continue;
        }
        let client = Client::new(ClientOptions::new([cluster.http(i)?]))?;
        for number in 0..PROBES {
            let key = format!("healed/{number}");
            while let Err(error) = client.put("default", key.as_bytes(), "yes".into(), &PutOptions::default()).await {
                let since = healed.elapsed();
                ensure!(since < EQUAL_WITHIN, "{} s after healing n{i} does not put {key}: {error}", since.as_secs());
                sleep(LOOK_EVERY).await;
            }
        }
    }
    Ok(())
}

/// What a node holds of each shard.
type Holdings = BTreeMap<ShardId, (NodeId, Option<Held>)>;

/// Waits until all replicas of each shard hold the same. Returns how long that took since `healed`.
///
/// # Errors
/// They differ after [`EQUAL_WITHIN`].
pub(crate) async fn replicas_are_equal(cluster: &mut Cluster, healed: Instant) -> anyhow::Result<Duration> {
    loop {
        let differs = match look(cluster).await {
            Ok(None) => return Ok(healed.elapsed()),
            Ok(Some(differs)) => differs,
            Err(error) => format!("{error:#}"),
        };
        ensure!(healed.elapsed() < EQUAL_WITHIN, "{} s after healing: {differs}", EQUAL_WITHIN.as_secs());
        sleep(LOOK_EVERY).await;
    }
}

/// What differs, if anything.
async fn look(cluster: &mut Cluster) -> anyhow::Result<Option<String>> {
    let (mut holdings, mut statuses) = (Vec::<Holdings>::new(), Vec::new());
    for i in 1..=cluster.len() {
        if !cluster.runs(i)? {
            continue;
        }
        let client = Client::new(ClientOptions::new([cluster.http(i)?]))?;
        let status = client.status().await?;
        let DigestList { node, replicas } = client.digests().await?;
        let stands = |shard: ShardId| {
            let local = status.shards.iter().find(|known| known.id == shard).and_then(|known| known.local.as_ref());
            local.is_some_and(|local| !matches!(local.role, LocalRole::Quarantined | LocalRole::Stopped))
        };
        let own = replicas.into_iter().filter(|held| stands(held.shard));
        holdings.push(own.map(|replica| (replica.shard, (node, replica.held))).collect());
        statuses.push(status);
    }
    let Some(status) = statuses.first() else { bail!("nobody runs") };
    let live: BTreeSet<NodeId> = statuses.iter().map(|status| status.node).collect();
    for shard in &status.shards {
        let voters: BTreeSet<NodeId> = shard
            .replicas
            .iter()
            .filter(|replica| replica.role == ReplicaRole::Voter)
            .map(|replica| replica.node)
            .collect();
        let wanted = usize::from(shard.desired_replicas).min(if live.len() < 3 { 1 } else { live.len() });
        if voters.len() < wanted || !voters.is_subset(&live) {
            return Ok(Some(format!("{} has voters {voters:?} of {wanted}", shard.id)));
        }
        let held: Vec<_> =
            holdings.iter().filter_map(|node| node.get(&shard.id)).filter(|it| voters.contains(&it.0)).collect();
        let equal = held.iter().all(|(_, digest)| digest.is_some() && *digest == held[0].1);
        if held.len() != voters.len() || !equal {
            return Ok(Some(format!("{} is held as {held:?}", shard.id)));
        }
    }
    Ok(if status.shards.is_empty() { Some("no shards".to_owned()) } else { None })
}
