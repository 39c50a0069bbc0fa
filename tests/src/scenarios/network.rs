//! Faults of the network.

use std::time::Duration;

use flotilla_local_cluster::Link;

use crate::scenario::Ground;

/// How long a partition lasts: several elections.
const LASTS: Duration = Duration::from_secs(4);

fn cut_between(ground: &Ground, a: usize, b: usize) -> anyhow::Result<()> {
    let proxy = ground.cluster.proxy()?;
    proxy.set(a, b, Link::CUT);
    proxy.set(b, a, Link::CUT);
    Ok(())
}

/// Heals all links, and waits until every node serves again.
async fn heal(ground: &mut Ground) -> anyhow::Result<()> {
    let traffic = ground.cluster.proxy()?.traffic();
    ground.cluster.proxy()?.heal();
    ground.recovered().await?;
    ground.note(format!("{traffic:?}"));
    ground.more(100).await
}

pub(super) async fn cut_off(ground: &mut Ground) -> anyhow::Result<()> {
    for i in 1..=3 {
        for other in ground.others(i) {
            cut_between(ground, i, other)?;
        }
        // The others go on.
        ground.more(150).await?;
        ground.last(LASTS).await;
        heal(ground).await?;
    }
    Ok(())
}

pub(super) async fn one_way(ground: &mut Ground) -> anyhow::Result<()> {
    for hears in [false, true] {
        let i = ground.any_node();
        for other in ground.others(i) {
            let (from, to) = if hears { (i, other) } else { (other, i) };
            ground.cluster.proxy()?.set(from, to, Link::CUT);
        }
        ground.more(100).await?;
        ground.last(LASTS).await;
        heal(ground).await?;
    }
    Ok(())
}

pub(super) async fn bridge(ground: &mut Ground) -> anyhow::Result<()> {
    for middle in 1..=3 {
        let ends = ground.others(middle);
        cut_between(ground, ends[0], ends[1])?;
        ground.more(100).await?;
        ground.last(LASTS).await;
        heal(ground).await?;
    }
    Ok(())
}

pub(super) async fn cut_all(ground: &mut Ground) -> anyhow::Result<()> {
    ground.cluster.proxy()?.set_all(Link::CUT);
    ground.last(LASTS * 2).await;
    heal(ground).await
}

pub(super) async fn flap(ground: &mut Ground) -> anyhow::Result<()> {
    for _ in 0..25 {
        let (from, to) = (ground.any_node(), ground.any_node());
        if from != to {
            ground.cluster.proxy()?.set(from, to, Link::CUT);
        }
        let pause = 100 + ground.chance.below(900);
        ground.last(Duration::from_millis(pause)).await;
        if ground.chance.below(3) == 0 {
            ground.cluster.proxy()?.heal();
        }
    }
    heal(ground).await
}

pub(super) async fn lose_and_double(ground: &mut Ground) -> anyhow::Result<()> {
    ground.cluster.proxy()?.set_all(Link { lost_permille: 50, doubled_permille: 30, ..Link::default() });
    ground.last(LASTS * 2).await;
    ground.more(300).await?;
    heal(ground).await
}

pub(super) async fn delay_and_reorder(ground: &mut Ground) -> anyhow::Result<()> {
    ground.cluster.proxy()?.set_all(Link { delay_ms: (0, 60), ..Link::default() });
    ground.last(LASTS).await;
    ground.more(300).await?;
    heal(ground).await
}

pub(super) async fn pull_cable(ground: &mut Ground) -> anyhow::Result<()> {
    for i in 1..=3 {
        ground.cluster.unplug(i)?;
        ground.more(100).await?;
        ground.last(LASTS).await;
        ground.cluster.plug(i)?;
        ground.recovered().await?;
        ground.more(100).await?;
    }
    Ok(())
}

pub(super) async fn pull_most_cables(ground: &mut Ground) -> anyhow::Result<()> {
    for i in [1, 2] {
        ground.cluster.unplug(i)?;
    }
    ground.last(LASTS * 2).await;
    for i in [1, 2] {
        ground.cluster.plug(i)?;
    }
    ground.recovered().await?;
    ground.more(100).await
}
