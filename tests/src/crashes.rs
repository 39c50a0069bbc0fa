//! Crashes at every failpoint: under load, a node aborts there without unwinding and is restarted, again and
//! again.
//!
//! After every ten crashes the history is checked, as a scenario's is. A failpoint that no node reaches fails
//! the run, so that no name outlives its failpoint.

use std::{
    os::unix::process::ExitStatusExt as _,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use flotilla_api::CreateCollection;
use flotilla_client::{Client, ClientOptions};
use flotilla_failpoints::{Place, VARIABLE};
use flotilla_local_cluster::{Cluster, ClusterError, ClusterOptions, WipeScope};
use serde::Serialize;

use crate::{
    checks, linearizable,
    load::{Load, Target, fill, truncate_logs_of_others},
    recovery::wait_recovered,
    scenario::RunFolder,
    support::{SMALL_LIMITS, binary},
};

/// Crashes per history: unknown outcomes add up and make a history hard to check.
const CRASHES_PER_HISTORY: u32 = 10;
/// How long a node may take to reach a failpoint.
const REACHED_WITHIN: Duration = Duration::from_secs(30);
/// Nodes of the cluster.
const NODES: usize = 3;
/// The signal that `abort` raises (SIGABRT).
const ABORTED: i32 = 6;
/// Interval between repetitions of a trigger.
const TRIGGER_EVERY: Duration = Duration::from_millis(200);

/// What makes a node reach a failpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trigger {
    /// The load alone.
    Load,
    /// A restart.
    Restart,
    /// A restart after the other nodes have truncated their logs, so that it needs a snapshot.
    CatchUpBySnapshot,
    /// Another node that catches up by snapshot.
    OtherCatchesUp,
    /// Creating and dropping collections.
    Collections,
    /// Another node that is wiped and rejoins, so that its replicas are replaced.
    OtherRejoins,
    /// Joining the cluster.
    Join,
    /// Bootstrapping a cluster.
    Bootstrap,
    /// None: the failpoint does not crash the node.
    Never,
}

/// The trigger of a failpoint. Exhaustive, so that a new failpoint needs one.
fn trigger(place: Place) -> Trigger {
    use Place::*;
    match place {
        RaftBeforeSend
        | RaftSent
        | RaftHandedOn
        | RaftBeforeNodeHeartbeat
        | WalBeforeWrite
        | WalWritten
        | WalBeforeHeld
        | WalAfterHeld
        | WalBeforePeerSequences
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
        | CheckpointBeforeInstall
        | CheckpointAnnounced
        | CheckpointFed
        | CheckpointConfirmed
        | CheckpointInstalled
        | ObjectsBeforeAppend
        | ObjectsBeforeSync
        | ObjectsFilesSynced
        | ObjectsSynced => Trigger::Load,
        // Only segments that exist at the start are closed ones.
        ObjectsBeforeDelete | RaftLogOpen | ApplyOpen | ApplyLoaded | SnapshotBeforeLoad | ObjectsSegmentBegun
        | FolderBeforeWrite | FolderBeside | FolderSynced | FolderRenamed | FolderReplaced => Trigger::Restart,
        RaftSnapshotParked
        | WalBeforeClear
        | WalCleared
        | SnapshotBeforeInstall
        | SnapshotInstalled
        | SnapshotBeforePull
        | SnapshotFetched
        | SnapshotImported
        | SnapshotSynced => Trigger::CatchUpBySnapshot,
        FramesSnapshot | SnapshotServe => Trigger::OtherCatchesUp,
        RaftCreate | RaftDestroy | WalBeforeCreate | WalCreated | WalBeforeTombstone | WalTombstoned | ApplyClose
        | FeedBeforeKeep | FeedKept => Trigger::Collections,
        RaftConfChange | WalBeforeConfEntry | ApplyConfChange => Trigger::OtherRejoins,
        JoinKeyKept | JoinAnswered | JoinIdentityKept => Trigger::Join,
        FoundIdentityKept | FoundBeforeDone => Trigger::Bootstrap,
        // A segment gets its table of contents when it is full; no load of these runs fills one.
        ObjectsBeforeFooter | ObjectsFooterWritten => Trigger::Never,
        // They change numbers, and crash nothing.
        ObjectsGrace | ClockWall | ApplyFlaw | SnapshotFlaw => Trigger::Never,
    }
}

/// The result of the crashes at one failpoint.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// The failpoint.
    pub place: &'static str,
    /// Crashes there.
    pub crashes: u32,
    /// Attempts: more than crashes if the failpoint was not reached each time.
    pub tries: u32,
    /// Operations in the checked histories.
    pub operations: usize,
    /// Duration in milliseconds.
    pub took_ms: u64,
    /// Why it failed, if it did.
    pub error: Option<String>,
}

/// The failpoints that can crash a node, in order.
pub fn places() -> impl Iterator<Item = Place> {
    Place::ALL.iter().copied().filter(|place| trigger(*place) != Trigger::Never)
}

/// Crashes nodes `times` times at a failpoint, each time under load.
#[must_use]
pub fn crash_at(place: Place, times: u32, seed: u64) -> Row {
    let start = Instant::now();
    let mut row = Row { place: place.name(), crashes: 0, tries: 0, operations: 0, took_ms: 0, error: None };
    row.error = crash_repeatedly(place, times, seed, &mut row).err().map(|error| format!("{error:#}"));
    if row.error.is_none() && row.crashes == 0 {
        row.error = Some("no node reached it".to_owned());
    }
    row.took_ms = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
    row
}

fn crash_repeatedly(place: Place, times: u32, seed: u64, row: &mut Row) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    if trigger(place) == Trigger::Bootstrap {
        runtime.block_on(crash_bootstraps(place, times, row))
    } else {
        runtime.block_on(crash_cluster(place, times, seed, row))
    }
}

async fn crash_cluster(place: Place, times: u32, seed: u64, row: &mut Row) -> anyhow::Result<()> {
    let mut folder = RunFolder::new(&place.name().replace("::", "-"), seed)?;
    let mut options = ClusterOptions::new(NODES, binary());
    options.dir = Some(folder.dir.clone());
    options.arguments = SMALL_LIMITS.map(str::to_owned).to_vec();
    if matches!(place, Place::CheckpointAnnounced | Place::CheckpointFed | Place::CheckpointConfirmed) {
        // Only a sled view is fed by checkpoints.
        options.arguments.extend(["--view", "sled"].map(str::to_owned));
    }
    let mut cluster = Cluster::start(options).await?;
    let mut left = times;
    while left > 0 {
        let crashes = left.min(CRASHES_PER_HISTORY);
        left -= crashes;
        let crashed_before = row.crashes;
        crash_and_check(&mut cluster, place, crashes, seed, &mut folder, row)
            .await
            .with_context(|| folder.dir.display().to_string())?;
        if row.crashes == crashed_before {
            // No node reaches the failpoint: trying again would not help.
            break;
        }
    }
    folder.passed = true;
    Ok(())
}

/// Some crashes under one load, followed by the checks of a scenario.
async fn crash_and_check(
    cluster: &mut Cluster,
    place: Place,
    crashes: u32,
    seed: u64,
    folder: &mut RunFolder,
    row: &mut Row,
) -> anyhow::Result<()> {
    let targets: Vec<_> = (1..=NODES)
        .map(|i| Ok(Target { http: cluster.http(i)?, redis: cluster.redis(i)? }))
        .collect::<Result<_, ClusterError>>()?;
    let load = Load::start(&targets, &format!("{}/", row.tries), seed ^ u64::from(row.tries)).await?;
    folder.recorder = Some(load.recorder());
    for _ in 0..crashes {
        row.tries += 1;
        let victim = usize::try_from(row.tries)? % NODES + 1;
        let reached = crash_once(cluster, place, victim).await.with_context(|| format!("n{victim}, {place}"))?;
        row.crashes += u32::from(reached);
        wait_recovered(cluster).await.with_context(|| format!("after a crash of n{victim} at {place}"))?;
        load.wait_completed(20).await?;
    }
    let healed = Instant::now();
    let finished = load.finish().await?;
    checks::wait_replicas_equal(cluster, healed).await?;
    for i in 1..=NODES {
        finished.read_all(&cluster.http(i)?, 1_000 + i as u64).await?;
    }
    checks::check_write_once_keys(&cluster.http(1)?, &finished).await?;
    let exited = cluster.unexpected_exits()?;
    ensure!(exited.is_empty(), "unexpected exits: {exited:?}");
    row.operations += finished.recorder.counts().0;
    linearizable::check_and_keep(&finished.recorder.operations(), &folder.dir)
}

/// Makes a node crash at a failpoint and restarts it. Returns whether it reached the failpoint.
async fn crash_once(cluster: &mut Cluster, place: Place, victim: usize) -> anyhow::Result<bool> {
    let settings = match place {
        // By default unused segments are deleted only after minutes.
        Place::ObjectsBeforeDelete => format!("{place}=return(abort);objects::grace=return(100)"),
        _ => format!("{place}=return(abort)"),
    };
    let other = victim % NODES + 1;
    match trigger(place) {
        Trigger::Load | Trigger::Collections => cluster.set_failpoints(victim, &settings)?,
        Trigger::Restart | Trigger::CatchUpBySnapshot => {
            cluster.kill(victim)?;
            if trigger(place) == Trigger::CatchUpBySnapshot {
                truncate_logs_of_others(cluster, victim).await?;
            }
            cluster.set_failpoints(victim, &settings)?;
            cluster.start_node(victim).await?;
        }
        Trigger::OtherCatchesUp => {
            cluster.kill(other)?;
            truncate_logs_of_others(cluster, other).await?;
            cluster.set_failpoints(victim, &settings)?;
            cluster.start_node(other).await?;
        }
        Trigger::OtherRejoins => {
            cluster.kill(other)?;
            cluster.wipe(other, WipeScope::All)?;
            cluster.set_failpoints(victim, &settings)?;
            cluster.start_node(other).await?;
        }
        Trigger::Join => {
            cluster.kill(victim)?;
            cluster.wipe(victim, WipeScope::All)?;
            cluster.set_variable(victim, VARIABLE, &settings)?;
            cluster.start_node(victim).await?;
        }
        Trigger::Bootstrap | Trigger::Never => bail!("a running cluster does not reach {place}"),
    }
    let reached = wait_crash(cluster, place, victim).await?;
    cluster.set_variable(victim, VARIABLE, "")?;
    cluster.clear_failpoints(victim)?;
    if reached {
        revive(cluster, place, victim).await?;
    }
    Ok(reached)
}

/// Starts a node after its crash. One that had no identity yet joins again.
async fn revive(cluster: &mut Cluster, place: Place, victim: usize) -> anyhow::Result<()> {
    if matches!(place, Place::JoinKeyKept | Place::JoinAnswered) {
        cluster.start_joining(victim).await?;
    } else {
        cluster.start_node(victim).await?;
    }
    Ok(())
}

/// Repeats the trigger until the victim has crashed. Returns whether it did in time.
async fn wait_crash(cluster: &mut Cluster, place: Place, victim: usize) -> anyhow::Result<bool> {
    let start = Instant::now();
    let mut round = 0_u32;
    loop {
        match cluster.wait_exit(victim, TRIGGER_EVERY).await {
            Ok(status) => {
                ensure!(status.signal() == Some(ABORTED), "it exited with {status}");
                return Ok(true);
            }
            Err(ClusterError::TimedOut { .. }) if start.elapsed() < REACHED_WITHIN => {}
            Err(ClusterError::TimedOut { .. }) => return Ok(false),
            Err(error) => bail!(error),
        }
        round += 1;
        if trigger(place) == Trigger::Collections {
            change_collections(cluster, victim, round).await;
        } else if trigger(place) != Trigger::Join {
            fill(&[cluster.http(victim % NODES + 1)?], round).await;
        }
    }
}

/// Creates or drops a collection, best effort: the next round tries again.
async fn change_collections(cluster: &Cluster, victim: usize, round: u32) {
    let client = cluster.http(victim % NODES + 1).map(|http| Client::new(ClientOptions::new([http])));
    let Ok(Ok(client)) = client else { return };
    let _ = if round % 2 == 1 {
        let request = CreateCollection {
            name: "temporary".to_owned(),
            sharding: Default::default(),
            buckets: Some(2),
            shards: Some(2),
            replicas: None,
            objects_from: None,
            chunk: None,
            split_bytes: None,
        };
        client.create_collection(&request).await.map(drop)
    } else {
        client.drop_collection("temporary").await
    };
}

/// Bootstraps clusters of one node that crash meanwhile, and complete the bootstrap at the next start.
async fn crash_bootstraps(place: Place, times: u32, row: &mut Row) -> anyhow::Result<()> {
    for _ in 0..times {
        row.tries += 1;
        let mut options = ClusterOptions::new(1, binary());
        options.variables = vec![(VARIABLE.to_owned(), format!("{place}=return(abort)"))];
        let mut cluster = Cluster::start_bootstrap(options)?;
        let Ok(status) = cluster.wait_exit(1, REACHED_WITHIN).await else { break };
        ensure!(status.signal() == Some(ABORTED), "it exited with {status}");
        row.crashes += 1;
        cluster.clear_variables();
        cluster.start_node(1).await?;
        cluster.wait_ready().await?;
        let client = Client::new(ClientOptions::new([cluster.http(1)?]))?;
        client.put("default", b"bootstrapped", "yes".into(), &Default::default()).await?;
        ensure!(client.get("default", b"bootstrapped").await?.is_some(), "a record of the new cluster is lost");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_least_thirty_failpoints_can_crash_a_node() {
        assert!(places().count() >= 30, "{}", places().count());
    }
}
