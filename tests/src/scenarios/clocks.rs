//! Faults of clocks. Wall clocks only: the monotonic one belongs to the machine.

use std::time::Duration;

use crate::scenario::Ground;

const HOURS_MS: i64 = 5 * 3_600_000;
/// What all clocks are wrong by: well beyond any deadline.
const ALL_MS: i64 = 3_600_000;
/// Long enough for beats and elections.
const LASTS: Duration = Duration::from_secs(3);

fn set(ground: &Ground, i: usize, offset_ms: i64) -> anyhow::Result<()> {
    Ok(ground.cluster.set_failpoints(i, &format!("clock::wall=return({offset_ms})"))?)
}

pub(super) async fn go_wrong(ground: &mut Ground) -> anyhow::Result<()> {
    for offset_ms in [-HOURS_MS, 400, HOURS_MS] {
        let i = ground.any_node();
        set(ground, i, offset_ms)?;
        ground.last(LASTS).await;
        ground.more(100).await?;
        ground.cluster.clear_failpoints(i)?;
        ground.recovered().await?;
        ground.more(100).await?;
    }
    Ok(())
}

/// As when the time server of all of them is wrong, and then put right.
pub(super) async fn all_wrong(ground: &mut Ground) -> anyhow::Result<()> {
    for offset_ms in [ALL_MS, -ALL_MS] {
        for i in 1..=3 {
            set(ground, i, offset_ms)?;
        }
        ground.last(LASTS).await;
        ground.more(200).await?;
        for i in 1..=3 {
            ground.cluster.clear_failpoints(i)?;
        }
        ground.more(200).await?;
    }
    ground.recovered().await
}

pub(super) async fn jump(ground: &mut Ground) -> anyhow::Result<()> {
    for _ in 0..20 {
        let i = ground.any_node();
        let offset_ms = i64::try_from(ground.chance.below(4_000))? - 2_000;
        set(ground, i, offset_ms)?;
        ground.last(Duration::from_millis(500)).await;
    }
    for i in 1..=3 {
        ground.cluster.clear_failpoints(i)?;
    }
    ground.recovered().await
}
