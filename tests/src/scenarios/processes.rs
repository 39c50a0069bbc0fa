//! Process faults: kills, pauses and restarts.

use std::time::Duration;

use anyhow::ensure;

use crate::scenario::Testbed;

pub(super) async fn kill_in_turn(testbed: &mut Testbed) -> anyhow::Result<()> {
    for i in 1..=3 {
        testbed.cluster.kill(i)?;
        testbed.wait_completed(150).await?;
        testbed.restart(i).await?;
        testbed.wait_completed(50).await?;
    }
    Ok(())
}

pub(super) async fn kill_all(testbed: &mut Testbed) -> anyhow::Result<()> {
    for _ in 0..2 {
        for i in 1..=3 {
            testbed.cluster.kill(i)?;
        }
        for i in 1..=3 {
            testbed.cluster.start_node(i).await?;
        }
        testbed.wait_recovered().await?;
        testbed.wait_completed(200).await?;
    }
    Ok(())
}

pub(super) async fn kill_amid_checkpoints(testbed: &mut Testbed) -> anyhow::Result<()> {
    for _ in 0..6 {
        let i = testbed.any_node();
        let operations = 50 + testbed.rng.below(200);
        testbed.cluster.kill(i)?;
        testbed.wait_completed(operations).await?;
        testbed.truncate_logs_of_others(i).await?;
        testbed.restart(i).await?;
        testbed.wait_completed(operations).await?;
    }
    Ok(())
}

pub(super) async fn stop_and_continue(testbed: &mut Testbed) -> anyhow::Result<()> {
    for i in [1, 2] {
        testbed.cluster.pause(i)?;
        testbed.wait_completed(150).await?;
        testbed.hold(Duration::from_secs(2)).await;
        testbed.cluster.resume(i)?;
        testbed.wait_completed(100).await?;
    }
    Ok(())
}

pub(super) async fn pause_often(testbed: &mut Testbed) -> anyhow::Result<()> {
    for _ in 0..30 {
        let i = testbed.any_node();
        let (paused_ms, running_ms) = (50 + testbed.rng.below(900), 50 + testbed.rng.below(300));
        testbed.cluster.pause(i)?;
        testbed.hold(Duration::from_millis(paused_ms)).await;
        testbed.cluster.resume(i)?;
        testbed.hold(Duration::from_millis(running_ms)).await;
    }
    Ok(())
}

pub(super) async fn rolling_restart(testbed: &mut Testbed) -> anyhow::Result<()> {
    for i in 1..=3 {
        let status = testbed.cluster.stop(i).await?;
        ensure!(status.success(), "n{i} stopped with {status}");
        testbed.wait_completed(100).await?;
        testbed.restart(i).await?;
        testbed.wait_completed(50).await?;
    }
    Ok(())
}

pub(super) async fn kill_while_starting(testbed: &mut Testbed) -> anyhow::Result<()> {
    for round in 0..8 {
        let i = round % 3 + 1;
        testbed.cluster.kill(i)?;
        for step in 0..4 {
            testbed.cluster.start_node(i).await?;
            let delay = Duration::from_millis(10 + 40 * step + testbed.rng.below(40));
            testbed.hold(delay).await;
            testbed.cluster.kill(i)?;
        }
        testbed.restart(i).await?;
        testbed.wait_completed(50).await?;
    }
    Ok(())
}
