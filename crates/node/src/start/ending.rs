//! Why a node ends before it is asked to: it was removed from the cluster, or started under another name.
//!
//! A node that was removed never comes back: its id is gone for good, and its replicas are elsewhere. It
//! learns that from its own metadata, or from the first node that refuses it: only the metadata decides
//! whom a node refuses. A node that was to leave has then left, and ends as one that was asked to stop; only
//! its next start says that it was removed.

use std::{fmt, sync::Arc};

use flotilla_control::Topology;
use flotilla_meta::{MetaState, NodeRole, NodeState};
use flotilla_types::{ClusterVersion, NodeId, escape_hidden};
use tokio::sync::watch;

/// Exit code of a node that was removed from the cluster.
pub(crate) const EXIT_REMOVED: u8 = 77;
/// Exit code of a start with flags that do not fit together, or do not fit the data folder.
pub(crate) const EXIT_USAGE: u8 = 2;

/// The flags do not fit the data folder.
#[derive(Debug)]
pub(crate) struct Usage(pub(crate) String);

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// How a node ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// It was asked to.
    Stopped,
    /// It was ordered to leave the cluster, which is done.
    Left,
    /// It was removed from the cluster.
    Removed,
}

/// What shows that this node was removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Removal {
    /// A node refuses it.
    RefusedBy(NodeId),
    /// The metadata says so.
    Recorded(NodeState),
    /// It has left.
    Left,
}

/// Ends this node when it was removed.
#[derive(Debug, Clone)]
pub(crate) struct Ending {
    removal: watch::Sender<Option<Removal>>,
}

impl Default for Ending {
    fn default() -> Self {
        Self { removal: watch::Sender::new(None) }
    }
}

impl Ending {
    /// Called when a node says that this one was removed.
    pub(crate) fn refused_by(&self, peer: NodeId) {
        self.found(Removal::RefusedBy(peer));
    }

    fn found(&self, found: Removal) {
        self.removal.send_if_modified(|removal| {
            let is_first = removal.is_none();
            removal.get_or_insert(found);
            is_first
        });
    }

    /// Waits until it is clear that this node was removed.
    pub(crate) async fn removed(&self) {
        // This holds the sender.
        let _ = self.removal.subscribe().wait_for(Option::is_some).await;
    }

    /// Waits until it is clear that this node was removed, or that it was started under another name than it
    /// has, or with a role that it cannot have. [`Removal::Left`] if it was to leave.
    ///
    /// # Errors
    /// [`Usage`]: the name or the role.
    pub(crate) async fn wait(
        &self,
        topology: &Arc<Topology>,
        name: Option<&str>,
        role: NodeRole,
    ) -> anyhow::Result<Removal> {
        let mut metadata = topology.watch();
        let mut refused = self.removal.subscribe();
        let node = topology.node();
        let mut leaves = false;
        loop {
            let meta = metadata.borrow_and_update().clone();
            check_name(&meta, node, name)?;
            check_role(&meta, node, role)?;
            if let Some(removal) = recorded(&meta, node) {
                self.found(removal);
            } else {
                leaves = meta.node(node).is_some_and(|record| record.state == NodeState::Leaving);
            }
            if let Some(removal) = *refused.borrow_and_update() {
                return Ok(if leaves { Removal::Left } else { removal });
            }
            // The senders live as long as this node.
            tokio::select! {
                _ = metadata.changed() => {}
                _ = refused.changed() => {}
            }
        }
    }
}

/// Whether this metadata says that the node was removed.
pub(crate) fn recorded(meta: &MetaState, node: NodeId) -> Option<Removal> {
    // The record of a gone node may be deleted.
    let state = meta.node(node).map_or(NodeState::Removed, |record| record.state);
    meta.is_gone(node).then_some(Removal::Recorded(state))
}

/// Refuses another name than the one with which the node joined.
pub(crate) fn check_name(meta: &MetaState, node: NodeId, given: Option<&str>) -> anyhow::Result<()> {
    match (meta.node(node), given) {
        (Some(record), Some(given)) if record.name != given => {
            let (name, given) = (escape_hidden(&record.name), escape_hidden(given));
            Err(Usage(format!("{node} is named {name} since it joined, and --name {given} cannot change that")).into())
        }
        _ => Ok(()),
    }
}

/// Refuses to be a gateway while the metadata has a replica on this node, or has no place for the role: such a node
/// would be given replicas.
pub(crate) fn check_role(meta: &MetaState, node: NodeId, role: NodeRole) -> anyhow::Result<()> {
    let Some(record) = meta.node(node).filter(|record| role == NodeRole::Gateway && record.role != role) else {
        return Ok(());
    };
    let in_force = meta.cluster_version();
    let why = if meta.is_named_by_a_shard(node) {
        format!(
            "it holds replicas. Start it with --role storage, move them away with `flotilla node decommission {node}`, \
             and start it as a gateway then"
        )
    } else if in_force < ClusterVersion::NODE_ROLES {
        format!(
            "the cluster is at version {in_force}, and gateways need version {}. Finish the upgrade with \
             `flotilla upgrade finish` first",
            ClusterVersion::NODE_ROLES
        )
    } else {
        return Ok(());
    };
    Err(Usage(format!("{node} ({}) cannot be a gateway: {why}", escape_hidden(&record.name))).into())
}

/// Tells an operator that this node was removed, and what to do.
pub(crate) fn report(removal: Removal, node: NodeId, meta: &MetaState, data_dir: &str) {
    let name = meta.node(node).map(|record| format!(" ({})", escape_hidden(&record.name))).unwrap_or_default();
    let why = match removal {
        Removal::RefusedBy(peer) => format!("as {peer} says"),
        Removal::Recorded(NodeState::Lost) => "because another node joined at its address in its place".to_owned(),
        Removal::Recorded(_) | Removal::Left => "as the metadata says".to_owned(),
    };
    if removal == Removal::Left {
        tracing::error!(
            "{node}{name} has left the cluster for good. To use this machine again, delete {data_dir} and start it \
             with --join and a new token"
        );
        return;
    }
    let text = format!(
        "{node}{name} was removed from the cluster, {why}, and cannot come back: its replicas belong to other nodes. \
         To use this machine again, delete {data_dir} and start it with --join and a new token"
    );
    tracing::error!("{text}");
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use flotilla_meta::{
        Addresses, Feed, Increment, JoinRequest, MetaCommand, MetaFollower, NewNode, NodeRole, SeenNode, TokenId,
    };
    use flotilla_types::{ClusterId, ClusterVersion, Incarnation, Locality, LogIndex, Timestamp, VersionRange};

    use super::*;

    /// Metadata of a node named `a`, and of another one if there are more commands.
    fn metadata_after(more: &[MetaCommand]) -> MetaState {
        let command = MetaCommand::Bootstrap { cluster: ClusterId([1; 16]), node: new_node("a", 1) };
        let mut follower = MetaFollower::default();
        let commands = std::iter::once(&command).chain(more).map(MetaCommand::encode).collect();
        let (index, timestamp) = (LogIndex(1), Timestamp::from_millis(1));
        let increment = Increment { previous: 0, index, timestamp, commands };
        follower.apply(&Feed::Increments(vec![increment])).expect("an increment");
        follower.state().as_ref().clone()
    }

    fn new_node(name: &str, number: u8) -> NewNode {
        NewNode {
            name: name.to_owned(),
            addresses: Addresses { quic: format!("10.0.0.{number}:1"), ..Addresses::default() },
            locality: Locality::default(),
            key_digest: [number; 32],
        }
    }

    fn metadata() -> MetaState {
        metadata_after(&[])
    }

    /// The second of two nodes, in this state.
    fn metadata_of_two(state: NodeState) -> MetaState {
        let (token, secret_hash) = (TokenId(1), [1; 32]);
        let versions = VersionRange::supported();
        let seen = SeenNode { node: NodeId(1), incarnation: Incarnation(1), versions };
        let join = JoinRequest {
            token,
            secret_hash,
            node: new_node("b", 2),
            versions: Some(versions),
            displaced: Vec::new(),
            role: NodeRole::default(),
        };
        metadata_after(&[
            MetaCommand::UpdateNode {
                node: NodeId(1),
                incarnation: Incarnation(1),
                addresses: new_node("a", 1).addresses,
                locality: Locality::default(),
                versions: None,
            },
            MetaCommand::SetClusterVersion { version: ClusterVersion(2), seen: vec![seen] },
            MetaCommand::CreateToken { id: token, hash: secret_hash, expires_at_ms: 9_999, uses: 1 },
            MetaCommand::Join(join),
            MetaCommand::SetNodeState { node: NodeId(2), state },
        ])
    }

    #[tokio::test]
    async fn a_node_that_was_to_leave_has_left_when_it_is_removed() {
        for (state, ends) in [(NodeState::Leaving, Removal::Left), (NodeState::Draining, Removal::RefusedBy(NodeId(1)))]
        {
            let topology = Arc::new(Topology::new(NodeId(2), metadata_of_two(state)));
            assert_eq!(topology.meta().node(NodeId(2)).map(|record| record.state), Some(state));
            let ending = Ending::default();
            ending.refused_by(NodeId(1));
            assert_eq!(ending.wait(&topology, None, NodeRole::default()).await.expect("a removal"), ends);
        }
        let meta = metadata_of_two(NodeState::Removed);
        assert_eq!(recorded(&meta, NodeId(2)), Some(Removal::Recorded(NodeState::Removed)));
        assert_eq!(recorded(&meta, NodeId(0)), Some(Removal::Recorded(NodeState::Removed)), "its record was deleted");
        assert_eq!((recorded(&meta, NodeId(1)), recorded(&meta, NodeId(3))), (None, None), "it has just joined");
    }

    #[test]
    fn a_name_is_that_of_the_join_for_good() {
        let meta = metadata();
        for (node, given, fits) in [(1, None, true), (1, Some("a"), true), (1, Some("b"), false), (2, Some("b"), true)]
        {
            assert_eq!(check_name(&meta, NodeId(node), given).is_ok(), fits, "n{node} {given:?}");
        }
        assert!(check_name(&meta, NodeId(1), Some("b")).unwrap_err().is::<Usage>());
    }

    #[test]
    fn a_node_with_replicas_cannot_be_a_gateway_nor_any_before_the_metadata_has_roles() {
        let meta = metadata_of_two(NodeState::Active);
        let why = |node, role| check_role(&meta, NodeId(node), role).err().map(|error| error.to_string());
        let refused = why(1, NodeRole::Gateway).expect("it holds the metadata group");
        assert!(refused.contains("decommission n1"), "{refused}");
        let refused = why(2, NodeRole::Gateway).expect("the cluster is at version 2");
        assert!(refused.contains("upgrade finish"), "{refused}");
        assert_eq!((why(1, NodeRole::default()), why(3, NodeRole::Gateway)), (None, None));
    }

    #[tokio::test]
    async fn a_node_ends_when_another_refuses_it_and_when_it_has_another_name() {
        let topology = Arc::new(Topology::new(NodeId(1), metadata()));
        let ending = Ending::default();
        assert!(ending.wait(&topology, Some("b"), NodeRole::default()).await.is_err());
        let waiting = ending.wait(&topology, Some("a"), NodeRole::default());
        assert!(tokio::time::timeout(Duration::from_millis(20), waiting).await.is_err());
        ending.refused_by(NodeId(2));
        ending.refused_by(NodeId(3));
        assert_eq!(
            ending.wait(&topology, None, NodeRole::default()).await.expect("a removal"),
            Removal::RefusedBy(NodeId(2))
        );
    }
}
