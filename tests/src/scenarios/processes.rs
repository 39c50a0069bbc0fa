//! Faults of processes.

use std::time::Duration;

use anyhow::ensure;

use crate::scenario::Ground;

pub(super) async fn kill_in_turn(ground: &mut Ground) -> anyhow::Result<()> {
    for i in 1..=3 {
        ground.cluster.kill(i)?;
        ground.more(150).await?;
        ground.restart(i).await?;
        ground.more(50).await?;
    }
    Ok(())
}

pub(super) async fn kill_all(ground: &mut Ground) -> anyhow::Result<()> {
    for _ in 0..2 {
        for i in 1..=3 {
            ground.cluster.kill(i)?;
        }
        for i in 1..=3 {
            ground.cluster.start_node(i).await?;
        }
        ground.recovered().await?;
        ground.more(200).await?;
    }
    Ok(())
}

pub(super) async fn kill_amid_checkpoints(ground: &mut Ground) -> anyhow::Result<()> {
    for _ in 0..6 {
        let i = ground.any_node();
        let more = 50 + ground.chance.below(200);
        ground.cluster.kill(i)?;
        ground.more(more).await?;
        ground.leave_behind(i).await?;
        ground.restart(i).await?;
        ground.more(more).await?;
    }
    Ok(())
}

pub(super) async fn stop_and_continue(ground: &mut Ground) -> anyhow::Result<()> {
    for i in [1, 2] {
        ground.cluster.pause(i)?;
        ground.more(150).await?;
        ground.last(Duration::from_secs(2)).await;
        ground.cluster.resume(i)?;
        ground.more(100).await?;
    }
    Ok(())
}

pub(super) async fn stutter(ground: &mut Ground) -> anyhow::Result<()> {
    for _ in 0..30 {
        let i = ground.any_node();
        let (stopped, goes) = (50 + ground.chance.below(900), 50 + ground.chance.below(300));
        ground.cluster.pause(i)?;
        ground.last(Duration::from_millis(stopped)).await;
        ground.cluster.resume(i)?;
        ground.last(Duration::from_millis(goes)).await;
    }
    Ok(())
}

pub(super) async fn rolling_restart(ground: &mut Ground) -> anyhow::Result<()> {
    for i in 1..=3 {
        let status = ground.cluster.stop(i).await?;
        ensure!(status.success(), "n{i} stopped with {status}");
        ground.more(100).await?;
        ground.restart(i).await?;
        ground.more(50).await?;
    }
    Ok(())
}

pub(super) async fn kill_while_starting(ground: &mut Ground) -> anyhow::Result<()> {
    for round in 0..8 {
        let i = round % 3 + 1;
        ground.cluster.kill(i)?;
        for step in 0..4 {
            ground.cluster.start_node(i).await?;
            let lasts = Duration::from_millis(10 + 40 * step + ground.chance.below(40));
            ground.last(lasts).await;
            ground.cluster.kill(i)?;
        }
        ground.restart(i).await?;
        ground.more(50).await?;
    }
    Ok(())
}
