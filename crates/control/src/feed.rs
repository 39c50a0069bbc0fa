//! The loop that follows the metadata feed on nodes without a voter of the metadata group. [`FeedFollower`]
//! decides.

use std::{sync::Arc, time::Duration};

use flotilla_meta::{CodecError, Feed, FeedError, MetaState};
use flotilla_transport::Class;
use flotilla_types::NodeId;

use crate::{FeedFollower, FeedStep, PeerRequest, core, loops::Context};

/// Keeps the topology's metadata fresh while no voter of the metadata group runs on this node.
pub(crate) async fn follow(context: Arc<Context>) {
    let mut follower = FeedFollower::default();
    loop {
        let meta = context.topology.meta();
        match follower.next(context.me.node, &meta, &seeds(&context, &meta), &context.host.status()) {
            FeedStep::Wait(pause_ms) => tokio::time::sleep(Duration::from_millis(pause_ms)).await,
            FeedStep::Fetch { source, version, wait_ms, timeout_ms } => {
                let request = PeerRequest::Feed { version, wait_ms };
                match fetch(&context, source, request, Duration::from_millis(timeout_ms)).await {
                    Some(feed) => match follower.on_answer(&feed) {
                        Ok(meta) => context.topology.offer(meta),
                        // This node would never learn of the version in force, and serve by old metadata.
                        Err(FeedError::Codec(CodecError::Version { found, known })) => context.host.end_node(&format!(
                            "the metadata of {source} has version {found} and this binary supports {known}: \
                             install a binary that supports version {found} and start the node again"
                        )),
                        Err(error) => tracing::debug!(%source, %error, "the metadata feed restarts from a snapshot"),
                    },
                    None => follower.on_failure(),
                }
            }
        }
    }
}

/// Sources besides those that the metadata names: those of the start, and nodes that joined after it.
fn seeds(context: &Context, meta: &MetaState) -> Vec<NodeId> {
    let peers = context.network.peers().into_iter().map(|peer| peer.node);
    let unknown = peers.filter(|peer| meta.node(*peer).is_none() && !context.seeds.contains(peer));
    context.seeds.iter().copied().chain(unknown).collect()
}

async fn fetch(context: &Context, source: NodeId, request: PeerRequest, timeout: Duration) -> Option<Feed> {
    let response = context.network.call(source, Class::Rpc, request.encode(), timeout).await.ok()?;
    Feed::decode(&core::decode_answer(response).ok()?.payload).ok()
}
