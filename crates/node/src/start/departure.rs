//! The end of a node that leaves the cluster by order.
//!
//! The metadata group records that the node leaves, and placement moves its replicas away while it serves.
//! When no shard has or wants one here, the node answers its clients, tells the metadata group that it has
//! left, and ends. If it ends earlier, the leader of the metadata group removes it.

use std::{sync::Arc, time::Duration};

use flotilla_control::{Shards, Topology};
use flotilla_meta::{MetaCommand, MetaRefusal, MetaReply, NodeState};
use flotilla_types::NodeId;

use super::ending::Ending;

/// How long a node that has left tries to say so.
const TELL_TIMEOUT: Duration = Duration::from_secs(10);
/// How long it waits for one answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
/// Pause after a try without an answer.
const PAUSE: Duration = Duration::from_millis(200);

/// The departure of this node, if it is ordered to leave.
pub(super) struct Departure {
    node: NodeId,
    topology: Arc<Topology>,
    shards: Shards,
    ending: Ending,
}

impl Departure {
    pub(super) fn new(topology: &Arc<Topology>, shards: &Shards, ending: Ending) -> Self {
        Self { node: topology.node(), topology: topology.clone(), shards: shards.clone(), ending }
    }

    /// Returns when the node is to leave and holds nothing any more.
    pub(super) async fn is_due(&self) {
        let mut metadata = self.topology.watch();
        // The sender lives as long as the topology.
        let _ = metadata
            .wait_for(|meta| {
                let record = meta.node(self.node);
                record.is_some_and(|node| node.state == NodeState::Leaving) && !meta.is_named_by_a_shard(self.node)
            })
            .await;
    }

    /// Tells the metadata group that the node has left, again until it answers or time is up. A peer that
    /// refuses this node as removed says as much: the answer may be lost, because every peer closes its
    /// connection as soon as it knows. Whether the node has left for good, as far as it knows.
    pub(super) async fn complete(self) -> bool {
        let told = tokio::select! {
            told = tokio::time::timeout(TELL_TIMEOUT, self.tell()) => told,
            () = self.ending.removed() => Ok(None),
        };
        let node = self.node;
        match told {
            Ok(None) => {
                tracing::info!("this node has left the cluster");
                eprintln!(
                    "flotilla: {node} has left the cluster for good; its data folder is not needed any more, and a new node \
                     needs an empty one and a token"
                );
                true
            }
            Ok(Some(refusal)) => {
                tracing::warn!(%refusal, "this node was taken back while it left: start it again");
                eprintln!("flotilla: {node} was taken back while it left ({refusal}): start it again");
                false
            }
            Err(_) => {
                tracing::warn!("the metadata group did not answer; its leader removes this node when it has ended");
                false
            }
        }
    }

    /// Returns the refusal, if there is one.
    async fn tell(&self) -> Option<MetaRefusal> {
        loop {
            let command = MetaCommand::CompleteLeave { node: self.node };
            match self.shards.propose_meta(&command, ANSWER_TIMEOUT).await {
                Ok(MetaReply::Refused(refusal)) => return Some(refusal),
                Ok(_) => return None,
                Err(error) => {
                    tracing::debug!(%error, "the metadata group did not answer");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}
