//! Network faults: partitions, loss, duplication, delay and reordering.

use std::time::Duration;

use flotilla_local_cluster::Link;

use crate::scenario::Testbed;

/// Duration of a partition: several election timeouts.
const FAULT_DURATION: Duration = Duration::from_secs(4);

fn cut_between(testbed: &Testbed, a: usize, b: usize) -> anyhow::Result<()> {
    let proxy = testbed.cluster.proxy()?;
    proxy.set(a, b, Link::CUT);
    proxy.set(b, a, Link::CUT);
    Ok(())
}

/// Heals all links and waits until the cluster has recovered.
async fn heal(testbed: &mut Testbed) -> anyhow::Result<()> {
    let traffic = testbed.cluster.proxy()?.traffic();
    testbed.cluster.proxy()?.heal();
    testbed.wait_recovered().await?;
    testbed.note(format!("{traffic:?}"));
    testbed.wait_completed(100).await
}

pub(super) async fn isolate_in_turn(testbed: &mut Testbed) -> anyhow::Result<()> {
    for i in 1..=3 {
        for other in testbed.others(i) {
            cut_between(testbed, i, other)?;
        }
        // The majority keeps serving.
        testbed.wait_completed(150).await?;
        testbed.hold(FAULT_DURATION).await;
        heal(testbed).await?;
    }
    Ok(())
}

pub(super) async fn one_way(testbed: &mut Testbed) -> anyhow::Result<()> {
    for receives in [false, true] {
        let i = testbed.any_node();
        for other in testbed.others(i) {
            let (from, to) = if receives { (i, other) } else { (other, i) };
            testbed.cluster.proxy()?.set(from, to, Link::CUT);
        }
        testbed.wait_completed(100).await?;
        testbed.hold(FAULT_DURATION).await;
        heal(testbed).await?;
    }
    Ok(())
}

pub(super) async fn bridge(testbed: &mut Testbed) -> anyhow::Result<()> {
    for middle in 1..=3 {
        let outer = testbed.others(middle);
        cut_between(testbed, outer[0], outer[1])?;
        testbed.wait_completed(100).await?;
        testbed.hold(FAULT_DURATION).await;
        heal(testbed).await?;
    }
    Ok(())
}

pub(super) async fn isolate_all(testbed: &mut Testbed) -> anyhow::Result<()> {
    testbed.cluster.proxy()?.set_all(Link::CUT);
    testbed.hold(FAULT_DURATION * 2).await;
    heal(testbed).await
}

pub(super) async fn flap(testbed: &mut Testbed) -> anyhow::Result<()> {
    for _ in 0..25 {
        let (from, to) = (testbed.any_node(), testbed.any_node());
        if from != to {
            testbed.cluster.proxy()?.set(from, to, Link::CUT);
        }
        let pause = 100 + testbed.rng.below(900);
        testbed.hold(Duration::from_millis(pause)).await;
        if testbed.rng.below(3) == 0 {
            testbed.cluster.proxy()?.heal();
        }
    }
    heal(testbed).await
}

pub(super) async fn lose_and_duplicate(testbed: &mut Testbed) -> anyhow::Result<()> {
    testbed.cluster.proxy()?.set_all(Link { lost_permille: 50, duplicated_permille: 30, ..Link::default() });
    testbed.hold(FAULT_DURATION * 2).await;
    testbed.wait_completed(300).await?;
    heal(testbed).await
}

pub(super) async fn delay_and_reorder(testbed: &mut Testbed) -> anyhow::Result<()> {
    testbed.cluster.proxy()?.set_all(Link { delay_ms_max: 60, ..Link::default() });
    testbed.hold(FAULT_DURATION).await;
    testbed.wait_completed(300).await?;
    heal(testbed).await
}

pub(super) async fn unplug_in_turn(testbed: &mut Testbed) -> anyhow::Result<()> {
    for i in 1..=3 {
        testbed.cluster.unplug(i)?;
        testbed.wait_completed(100).await?;
        testbed.hold(FAULT_DURATION).await;
        testbed.cluster.plug(i)?;
        testbed.wait_recovered().await?;
        testbed.wait_completed(100).await?;
    }
    Ok(())
}

pub(super) async fn unplug_majority(testbed: &mut Testbed) -> anyhow::Result<()> {
    for i in [1, 2] {
        testbed.cluster.unplug(i)?;
    }
    testbed.hold(FAULT_DURATION * 2).await;
    for i in [1, 2] {
        testbed.cluster.plug(i)?;
    }
    testbed.wait_recovered().await?;
    testbed.wait_completed(100).await
}
