//! Crashes at every place in the shells: a node is made to end there, without unwinding, and comes back, again and again under load.
//!
//! Every ten crashes the history so far is judged, as a scenario's is. A place that nobody comes by fails the series, so that no name stands for a place that does not exist any more.

use std::{
    os::unix::process::ExitStatusExt as _,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use flotilla_api::CreateCollection;
use flotilla_client::{Client, ClientOptions};
use flotilla_failpoints::{Place, VARIABLE};
use flotilla_local_cluster::{Cluster, ClusterError, ClusterOptions, What};
use serde::Serialize;

use crate::{
    linearizable,
    load::{Load, Target, fill},
    scenario::Kept,
    support::{SMALL, binary},
    verdict,
    whole::wait_whole,
};

/// Crashes of one history: unknown outcomes add up.
const CHUNK: u32 = 10;
/// How long a node may take to come by a place.
const REACHED_WITHIN: Duration = Duration::from_secs(30);
/// Nodes of the cluster.
const NODES: usize = 3;
/// The signal of `abort`.
const ABORTED: i32 = 6;
/// Between two goes at what makes nodes come by.
const STIR_EVERY: Duration = Duration::from_millis(200);

/// What makes a node come by a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// The load alone.
    Load,
    /// Its start.
    Start,
    /// Its start after it was away for longer than the others' logs reach back.
    Behind,
    /// The same of another node.
    OtherBehind,
    /// Collections that come and go.
    Collections,
    /// Another node that joins anew, so that replicas are replaced.
    OtherRejoins,
    /// Its own first start.
    Join,
    /// The founding of a cluster.
    Found,
    /// Nothing: the place does not end anybody.
    Never,
}

/// Exhaustive, so that a new place needs a way.
fn way(place: Place) -> Way {
    use Place::*;
    match place {
        RaftBeforeSend
        | RaftSent
        | RaftHandedOn
        | RaftBeforeBeat
        | WalBeforeWrite
        | WalWritten
        | WalBeforeHeld
        | WalAfterHeld
        | WalBeforeMarks
        | WalBeforePointer
        | WalPointerWritten
        | RaftLogBeforeSync
        | RaftLogSynced
        | RaftLogBeforeReclaim
        | RaftLogReclaimed
        | ApplyBefore
        | ApplyDone
        | ApplyAnswered
        | ApplyBeforeFreeze
        | ApplyFrozen
        | CheckpointBeforeBuild
        | CheckpointRunWritten
        | CheckpointBeforeFold
        | CheckpointFolded
        | CheckpointBuilt
        | CheckpointBeforeSettle
        | CheckpointAnnounced
        | CheckpointFed
        | CheckpointConfirmed
        | CheckpointSettled
        | ObjectsBeforeAppend
        | ObjectsBeforeSync
        | ObjectsFilesSynced
        | ObjectsSynced => Way::Load,
        // Only segments that were there at the start are closed ones.
        ObjectsBeforeDelete | RaftLogOpen | ApplyOpen | ApplyLoaded | SnapshotBeforeLoad | ObjectsSegmentBegun
        | FolderBeforeWrite | FolderBeside | FolderSynced | FolderRenamed | FolderReplaced => Way::Start,
        RaftSnapshotParked
        | WalBeforeClear
        | WalCleared
        | SnapshotBeforeInstall
        | SnapshotInstalled
        | SnapshotBeforePull
        | SnapshotFetched
        | SnapshotImported
        | SnapshotSynced => Way::Behind,
        FramesSnapshot | SnapshotServe => Way::OtherBehind,
        RaftCreate | RaftDestroy | WalBeforeCreate | WalCreated | WalBeforeTombstone | WalTombstoned | ApplyClose
        | FeedBeforeKeep | FeedKept => Way::Collections,
        RaftConfChange | WalBeforeConfEntry | ApplyConfChange => Way::OtherRejoins,
        JoinKeyKept | JoinAnswered | JoinIdentityKept => Way::Join,
        FoundIdentityKept | FoundBeforeDone => Way::Found,
        ObjectsGrace | ClockWall => Way::Never,
    }
}

/// How the crashes at one place went.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// The place.
    pub place: &'static str,
    /// Crashes there.
    pub crashes: u32,
    /// Goes at it: more when nobody came by now and then.
    pub tries: u32,
    /// Operations of the histories that were judged.
    pub operations: usize,
    /// How long all of it took, in milliseconds.
    pub took_ms: u64,
    /// What went wrong.
    pub error: Option<String>,
}

/// The places that crash, in order.
pub fn places() -> impl Iterator<Item = Place> {
    Place::ALL.iter().copied().filter(|place| way(*place) != Way::Never)
}

/// Crashes nodes so often at a place, each time under load.
#[must_use]
pub fn crash_at(place: Place, times: u32, seed: u64) -> Row {
    let begun = Instant::now();
    let mut row = Row { place: place.name(), crashes: 0, tries: 0, operations: 0, took_ms: 0, error: None };
    let result =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Into::into).and_then(|runtime| {
            match way(place) {
                Way::Found => runtime.block_on(found_again(place, times, &mut row)),
                _ => runtime.block_on(series(place, times, seed, &mut row)),
            }
        });
    row.error = result.err().map(|error| format!("{error:#}"));
    if row.error.is_none() && row.crashes == 0 {
        row.error = Some("nobody came by".to_owned());
    }
    row.took_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    row
}

async fn series(place: Place, times: u32, seed: u64, row: &mut Row) -> anyhow::Result<()> {
    let mut kept = Kept::new(&place.name().replace("::", "-"), seed)?;
    let mut options = ClusterOptions::new(NODES, binary());
    options.dir = Some(kept.dir.clone());
    options.arguments = SMALL.map(str::to_owned).to_vec();
    if matches!(place, Place::CheckpointAnnounced | Place::CheckpointFed | Place::CheckpointConfirmed) {
        // Only sled is fed.
        options.arguments.extend(["--view", "sled"].map(str::to_owned));
    }
    let mut cluster = Cluster::start(options).await?;
    let mut left = times;
    while left > 0 {
        let chunk = left.min(CHUNK);
        left -= chunk;
        let crashed_before = row.crashes;
        judge_chunk(&mut cluster, place, chunk, seed, &mut kept, row)
            .await
            .with_context(|| kept.dir.display().to_string())?;
        if row.crashes == crashed_before {
            // Once is enough to know.
            break;
        }
    }
    kept.done = true;
    Ok(())
}

/// Some crashes under one load, and the verdict on it.
async fn judge_chunk(
    cluster: &mut Cluster,
    place: Place,
    crashes: u32,
    seed: u64,
    kept: &mut Kept,
    row: &mut Row,
) -> anyhow::Result<()> {
    let targets: Vec<_> = (1..=NODES)
        .map(|i| Ok(Target { http: cluster.http(i)?, redis: cluster.redis(i)? }))
        .collect::<Result<_, ClusterError>>()?;
    let load = Load::start(&targets, &format!("{}/", row.tries), seed ^ u64::from(row.tries)).await?;
    kept.recorder = Some(load.recorder());
    for _ in 0..crashes {
        row.tries += 1;
        let victim = usize::try_from(row.tries)? % NODES + 1;
        let reached = crash_once(cluster, place, victim).await.with_context(|| format!("n{victim}, {place}"))?;
        row.crashes += u32::from(reached);
        wait_whole(cluster).await.with_context(|| format!("after a crash of n{victim} at {place}"))?;
        load.more(20).await?;
    }
    let healed = Instant::now();
    let ended = load.finish().await?;
    verdict::replicas_are_equal(cluster, healed).await?;
    for i in 1..=NODES {
        ended.read_all(&cluster.http(i)?, 1_000 + i as u64).await?;
    }
    verdict::own_keys_are_kept(&cluster.http(1)?, &ended).await?;
    let gone = cluster.ended()?;
    ensure!(gone.is_empty(), "ended unplanned: {gone:?}");
    row.operations += ended.recorder.counts().0;
    linearizable::check_and_keep(&ended.recorder.operations(), &kept.dir)
}

/// Makes a node end at a place and brings it back. Returns whether it came by.
async fn crash_once(cluster: &mut Cluster, place: Place, victim: usize) -> anyhow::Result<bool> {
    let settings = match place {
        // Left-over segments are collected after minutes otherwise.
        Place::ObjectsBeforeDelete => format!("{place}=return(abort);objects::grace=return(100)"),
        _ => format!("{place}=return(abort)"),
    };
    let other = victim % NODES + 1;
    match way(place) {
        Way::Load | Way::Collections => cluster.set_failpoints(victim, &settings)?,
        Way::Start | Way::Behind => {
            cluster.kill(victim)?;
            if way(place) == Way::Behind {
                leave_behind(cluster, victim).await?;
            }
            cluster.set_failpoints(victim, &settings)?;
            cluster.start_node(victim).await?;
        }
        Way::OtherBehind => {
            cluster.kill(other)?;
            leave_behind(cluster, other).await?;
            cluster.set_failpoints(victim, &settings)?;
            cluster.start_node(other).await?;
        }
        Way::OtherRejoins => {
            cluster.kill(other)?;
            cluster.wipe(other, What::All)?;
            cluster.set_failpoints(victim, &settings)?;
            cluster.start_node(other).await?;
        }
        Way::Join => {
            cluster.kill(victim)?;
            cluster.wipe(victim, What::All)?;
            cluster.set_variable(victim, VARIABLE, &settings)?;
            cluster.start_node(victim).await?;
        }
        Way::Found | Way::Never => bail!("no cluster comes by {place}"),
    }
    let reached = wait_crash(cluster, place, victim).await?;
    cluster.set_variable(victim, VARIABLE, "")?;
    cluster.clear_failpoints(victim)?;
    if reached {
        revive(cluster, place, victim).await?;
    }
    Ok(reached)
}

/// Starts a node after its crash. One that had no identity yet is told once more how to join.
async fn revive(cluster: &mut Cluster, place: Place, victim: usize) -> anyhow::Result<()> {
    if matches!(place, Place::JoinKeyKept | Place::JoinAnswered) {
        cluster.start_joining(victim).await?;
    } else {
        cluster.start_node(victim).await?;
    }
    Ok(())
}

/// Has the others checkpoint and truncate, so that this one needs a snapshot.
async fn leave_behind(cluster: &Cluster, i: usize) -> anyhow::Result<()> {
    let others: Vec<_> =
        (1..=NODES).filter(|other| *other != i).map(|other| cluster.http(other)).collect::<Result<_, _>>()?;
    for round in 0..2 {
        fill(&others, round).await;
    }
    Ok(())
}

/// Stirs until the victim has ended. Returns whether it did.
async fn wait_crash(cluster: &mut Cluster, place: Place, victim: usize) -> anyhow::Result<bool> {
    let begun = Instant::now();
    let mut round = 0_u32;
    loop {
        match cluster.wait_exit(victim, STIR_EVERY).await {
            Ok(status) => {
                ensure!(status.signal() == Some(ABORTED), "it ended with {status}");
                return Ok(true);
            }
            Err(ClusterError::TimedOut { .. }) if begun.elapsed() < REACHED_WITHIN => {}
            Err(ClusterError::TimedOut { .. }) => return Ok(false),
            Err(error) => bail!(error),
        }
        round += 1;
        if way(place) == Way::Collections {
            stir_collections(cluster, victim, round).await;
        } else if way(place) != Way::Join {
            fill(&[cluster.http(victim % NODES + 1)?], round).await;
        }
    }
}

/// Creates a collection or drops it. Whatever fails is tried again with the next.
async fn stir_collections(cluster: &Cluster, victim: usize, round: u32) {
    let asked = cluster.http(victim % NODES + 1).map(|http| Client::new(ClientOptions::new([http])));
    let Ok(Ok(client)) = asked else { return };
    let _ = if round % 2 == 1 {
        let wanted = CreateCollection {
            name: "stirred".to_owned(),
            sharding: Default::default(),
            buckets: Some(2),
            shards: Some(2),
            replicas: None,
        };
        client.create_collection(&wanted).await.map(drop)
    } else {
        client.drop_collection("stirred").await
    };
}

/// Founds clusters of one node that end while they are founded, and go on at the next start.
async fn found_again(place: Place, times: u32, row: &mut Row) -> anyhow::Result<()> {
    for _ in 0..times {
        row.tries += 1;
        let mut options = ClusterOptions::new(1, binary());
        options.variables = vec![(VARIABLE.to_owned(), format!("{place}=return(abort)"))];
        let mut cluster = Cluster::start_founding(options)?;
        let Ok(status) = cluster.wait_exit(1, REACHED_WITHIN).await else { break };
        ensure!(status.signal() == Some(ABORTED), "it ended with {status}");
        row.crashes += 1;
        cluster.clear_variables();
        cluster.start_node(1).await?;
        cluster.wait_ready().await?;
        let client = Client::new(ClientOptions::new([cluster.http(1)?]))?;
        client.put("default", b"founded", "yes".into(), &Default::default()).await?;
        ensure!(client.get("default", b"founded").await?.is_some(), "a record of the new cluster is lost");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_more_than_thirty_places_to_crash_at() {
        assert!(places().count() >= 30, "{}", places().count());
    }
}
