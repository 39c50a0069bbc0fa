//! Disk faults: power cuts, full and slow disks, failed writes and fsyncs.

use std::{fs, time::Duration};

use anyhow::{Context as _, ensure};

use crate::scenario::Testbed;

/// How long a node may take to exit after a fatal fault.
const EXITS_WITHIN: Duration = Duration::from_secs(60);
/// Exit code of a node that cannot continue.
pub(super) const FATAL_EXIT_CODE: i32 = 70;
/// How long a disk stays full or slow.
const FAULT_DURATION: Duration = Duration::from_secs(5);

pub(super) async fn power_cut(testbed: &mut Testbed) -> anyhow::Result<()> {
    for i in 1..=3 {
        testbed.cluster.cut_power(i)?;
        testbed.wait_completed(100).await?;
        testbed.cluster.restore_power(i)?;
        testbed.restart(i).await?;
        testbed.wait_completed(100).await?;
    }
    Ok(())
}

pub(super) async fn power_cut_of_all(testbed: &mut Testbed) -> anyhow::Result<()> {
    for _ in 0..3 {
        for i in 1..=3 {
            testbed.cluster.cut_power(i)?;
        }
        for i in 1..=3 {
            testbed.cluster.restore_power(i)?;
            testbed.cluster.start_node(i).await?;
        }
        testbed.wait_recovered().await?;
        testbed.wait_completed(200).await?;
    }
    Ok(())
}

pub(super) async fn full(testbed: &mut Testbed) -> anyhow::Result<()> {
    let i = testbed.any_node();
    testbed.cluster.fill_disk(i)?;
    // It may continue while it needs no space, but must not acknowledge what it could not write.
    testbed.wait_completed(150).await?;
    // More than the log has preallocated.
    for _ in 0..4 {
        testbed.truncate_logs_of_others(i).await?;
    }
    let exited = testbed.cluster.wait_exit(i, FAULT_DURATION).await;
    if let Ok(status) = &exited {
        ensure!(status.code() == Some(FATAL_EXIT_CODE), "n{i} exited with {status}");
    }
    testbed.note(format!("n{i} {}", if exited.is_ok() { "exited by itself" } else { "continued" }));
    testbed.cluster.free_disk(i)?;
    if !testbed.cluster.is_running(i)? {
        testbed.cluster.start_node(i).await?;
    }
    testbed.wait_recovered().await
}

/// Sets a failpoint that must make a node exit, waits for that, and restarts it.
async fn expect_exit(testbed: &mut Testbed, i: usize, settings: &str) -> anyhow::Result<()> {
    testbed.cluster.set_failpoints(i, settings)?;
    let status = testbed.cluster.wait_exit(i, EXITS_WITHIN).await.with_context(|| format!("n{i} with {settings}"))?;
    ensure!(status.code() == Some(FATAL_EXIT_CODE), "n{i} exited with {status}");
    testbed.cluster.clear_failpoints(i)?;
    testbed.wait_completed(100).await?;
    testbed.restart(i).await?;
    testbed.wait_completed(50).await
}

pub(super) async fn log_without_space(testbed: &mut Testbed) -> anyhow::Result<()> {
    for i in 1..=3 {
        expect_exit(testbed, i, "log_fd::write::no_space_err=return").await?;
    }
    Ok(())
}

pub(super) async fn objects_without_space(testbed: &mut Testbed) -> anyhow::Result<()> {
    let i = testbed.any_node();
    testbed.cluster.set_failpoints(i, "objects::before_append=return(enospc)")?;
    testbed.truncate_logs_of_others(i).await?;
    testbed.hold(FAULT_DURATION * 2).await;
    testbed.cluster.clear_failpoints(i)?;
    ensure!(
        testbed.cluster.is_running(i)?,
        "n{i} exited although its disk was full only for {} s",
        (FAULT_DURATION * 2).as_secs()
    );
    testbed.truncate_logs_of_others(i).await?;
    testbed.wait_recovered().await
}

pub(super) async fn log_sync_fails(testbed: &mut Testbed) -> anyhow::Result<()> {
    for i in 1..=3 {
        expect_exit(testbed, i, "log_fd::sync::err=return").await?;
    }
    Ok(())
}

pub(super) async fn written_but_failed(testbed: &mut Testbed) -> anyhow::Result<()> {
    for i in 1..=3 {
        expect_exit(testbed, i, "raft_log::synced=return(error)").await?;
        expect_exit(testbed, i, "wal::written=return(error)").await?;
    }
    Ok(())
}

pub(super) async fn object_sync_fails(testbed: &mut Testbed) -> anyhow::Result<()> {
    let i = testbed.any_node();
    expect_exit(testbed, i, "objects::before_sync=1*return(error)").await?;
    ensure_nothing_given_up(testbed, i)
}

pub(super) async fn objects_fail(testbed: &mut Testbed) -> anyhow::Result<()> {
    for i in 1..=3 {
        expect_exit(testbed, i, "objects::before_append=return(error)").await?;
        ensure_nothing_given_up(testbed, i)?;
    }
    Ok(())
}

/// A failing disk must not cost a replica.
pub(super) fn ensure_nothing_given_up(testbed: &Testbed, i: usize) -> anyhow::Result<()> {
    let log = fs::read(testbed.cluster.log(i)?)?;
    let log = String::from_utf8_lossy(&log);
    let given_up = log.lines().find(|line| line.contains("are damaged") || line.contains("a replica failed"));
    ensure!(given_up.is_none(), "n{i}: {}", given_up.unwrap_or_default());
    Ok(())
}

pub(super) async fn full_at_start(testbed: &mut Testbed) -> anyhow::Result<()> {
    let i = testbed.any_node();
    let ballast = testbed.cluster.node(i)?.data_dir.join("ballast");
    ensure!(ballast.exists(), "n{i} has no ballast file");
    testbed.cluster.fill_disk(i)?;
    if testbed.cluster.is_running(i)? {
        testbed.cluster.kill(i)?;
    }
    testbed.cluster.start_node(i).await?;
    testbed.cluster.wait_node(i).await?;
    ensure!(!ballast.exists(), "n{i} started on a full disk and kept its ballast file");
    testbed.wait_completed(150).await?;
    testbed.cluster.free_disk(i)?;
    if testbed.cluster.is_running(i)? {
        testbed.cluster.kill(i)?;
    }
    testbed.restart(i).await?;
    ensure!(ballast.exists(), "n{i} has room and made no ballast file");
    ensure_nothing_given_up(testbed, i)
}

pub(super) async fn slow(testbed: &mut Testbed) -> anyhow::Result<()> {
    for i in 1..=3 {
        testbed.cluster.set_failpoints(i, "raft_log::before_sync=sleep(100)")?;
        testbed.hold(FAULT_DURATION).await;
        testbed.wait_completed(100).await?;
        testbed.cluster.clear_failpoints(i)?;
    }
    Ok(())
}
