//! Nodes that hold no replica of the metadata group follow it by a resumable, versioned feed.

use std::{sync::Arc, time::Duration};

use flotilla_meta::{Feed, MetaFollower, MetaState};
use flotilla_transport::Class;
use flotilla_types::{NodeId, ShardId};
use flotilla_wire::{decode, encode, peer};

use crate::{loops::Context, rpc};

/// How long the source may wait for news.
const WAIT_MS: u32 = 5_000;
/// Beyond the wait, how long an answer may take.
const SLACK: Duration = Duration::from_secs(2);
/// Pause after a source failed, and between looks at whether a feed is needed.
const PAUSE: Duration = Duration::from_millis(250);

/// Keeps the topology's metadata fresh while no replica of the metadata group does so here.
pub(crate) async fn follow(context: Arc<Context>) {
    let mut follower = MetaFollower::new(context.topology.meta());
    let mut turn = 0_usize;
    loop {
        if has_own_replica(&context) {
            tokio::time::sleep(PAUSE).await;
            continue;
        }
        if context.topology.meta().version() > follower.state().version() {
            follower = MetaFollower::new(context.topology.meta());
        }
        let sources = sources(&context.topology.meta(), &context.seeds, context.me.node);
        let Some(source) = sources.get(turn % sources.len().max(1)).copied() else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        match ask(&context, source, follower.wanted()).await {
            Some(feed) => match follower.apply(&feed) {
                Ok(_) => {
                    turn = 0;
                    context.topology.offer(follower.state());
                }
                Err(error) => tracing::debug!(%source, %error, "the metadata feed starts over"),
            },
            None => {
                turn += 1;
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

fn has_own_replica(context: &Context) -> bool {
    let status = context.host.status();
    status.iter().any(|replica| {
        replica.shard == ShardId::META
            && replica.group.as_ref().is_some_and(|group| group.conf.is_voter(replica.replica) && group.leader.0 != 0)
    })
}

/// Nodes that hold a replica of the metadata group, or may; all others behind them, in case the metadata is old.
fn sources(meta: &MetaState, seeds: &[NodeId], me: NodeId) -> Vec<NodeId> {
    let voters = meta.shard(ShardId::META).map(|shard| shard.descriptor.replicas.clone()).unwrap_or_default();
    let mut sources: Vec<_> = voters.iter().map(|replica| replica.node).collect();
    sources.extend(meta.nodes().filter(|node| !node.state.is_gone()).map(|node| node.id));
    sources.extend(seeds);
    let mut seen = std::collections::BTreeSet::new();
    sources.retain(|node| *node != me && seen.insert(*node));
    sources
}

async fn ask(context: &Context, source: NodeId, version: u64) -> Option<Feed> {
    let kind = peer::request::Kind::Feed(peer::Feed { version, wait_ms: WAIT_MS });
    let request = encode(&peer::Request { kind: Some(kind) });
    let timeout = Duration::from_millis(WAIT_MS.into()) + SLACK;
    let response = context.network.call(source, Class::Rpc, request, timeout).await.ok()?;
    let answer = rpc::answer_of(decode(response).ok()?).ok()?;
    Feed::decode(&answer).ok()
}
