//! Clock faults. Wall clocks only: all nodes share the machine's monotonic clock.

use std::time::Duration;

use crate::scenario::Testbed;

/// Error of one node's clock.
const OFFSET_MS: i64 = 5 * 3_600_000;
/// Error of all clocks: well beyond any deadline.
const COMMON_OFFSET_MS: i64 = 3_600_000;
/// Long enough for heartbeats and elections.
const FAULT_DURATION: Duration = Duration::from_secs(3);

fn set_offset(testbed: &Testbed, i: usize, offset_ms: i64) -> anyhow::Result<()> {
    Ok(testbed.cluster.set_failpoints(i, &format!("clock::wall=return({offset_ms})"))?)
}

pub(super) async fn shift_one(testbed: &mut Testbed) -> anyhow::Result<()> {
    for offset_ms in [-OFFSET_MS, 400, OFFSET_MS] {
        let i = testbed.any_node();
        set_offset(testbed, i, offset_ms)?;
        testbed.hold(FAULT_DURATION).await;
        testbed.wait_completed(100).await?;
        testbed.cluster.clear_failpoints(i)?;
        testbed.wait_recovered().await?;
        testbed.wait_completed(100).await?;
    }
    Ok(())
}

/// As if the time server of all nodes were wrong and then corrected.
pub(super) async fn shift_all(testbed: &mut Testbed) -> anyhow::Result<()> {
    for offset_ms in [COMMON_OFFSET_MS, -COMMON_OFFSET_MS] {
        for i in 1..=3 {
            set_offset(testbed, i, offset_ms)?;
        }
        testbed.hold(FAULT_DURATION).await;
        testbed.wait_completed(200).await?;
        for i in 1..=3 {
            testbed.cluster.clear_failpoints(i)?;
        }
        testbed.wait_completed(200).await?;
    }
    testbed.wait_recovered().await
}

pub(super) async fn jump(testbed: &mut Testbed) -> anyhow::Result<()> {
    for _ in 0..20 {
        let i = testbed.any_node();
        let offset_ms = i64::try_from(testbed.rng.below(4_000))? - 2_000;
        set_offset(testbed, i, offset_ms)?;
        testbed.hold(Duration::from_millis(500)).await;
    }
    for i in 1..=3 {
        testbed.cluster.clear_failpoints(i)?;
    }
    testbed.wait_recovered().await
}
