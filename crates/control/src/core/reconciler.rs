//! The interface of all reconcilers: the view they get, the actions they return, the outcomes they receive.
//!
//! Invariants: a reconciler keeps no state that it cannot derive again from a view, so it may be restarted at
//! any moment and its driver may skip actions; equal sequences of views and outcomes give equal actions. A pass
//! costs what has changed since the last one and what is unsettled, not what the node or the cluster holds.

use std::{net::SocketAddr, sync::Arc};

use bytes::Bytes;
use flotilla_meta::{Addresses, MetaCommand, MetaReply, MetaState, NodeRole};
use flotilla_replication::{ConfChange, GroupStatus, ReplicaStatus, Replicas, Role, ShardChange, Size};
use flotilla_types::{
    ClusterVersion, Epoch, HostPort, Incarnation, Locality, NodeId, ReplicaId, ShardDescriptor, ShardId, VersionRange,
};

use super::{
    Members,
    fingerprints::{Evidence, Said},
};

/// Proposals of one pass that may be in flight together.
pub const PROPOSALS_MAX: usize = 16;
/// How long a reconciler's request may take, in milliseconds.
pub const PROPOSE_TIMEOUT_MS: u64 = 3_000;

/// How this node describes itself to the cluster.
#[derive(Debug, Clone)]
pub struct LocalNode {
    /// Its id.
    pub node: NodeId,
    /// How often it has started.
    pub incarnation: Incarnation,
    /// Where it listens.
    pub addresses: Addresses,
    /// Its locality labels.
    pub locality: Locality,
    /// What it does.
    pub role: NodeRole,
    /// The cluster versions that its binary supports.
    pub versions: VersionRange,
}

/// The input of one pass: what the node sees.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// The node.
    pub me: &'a LocalNode,
    /// The newest metadata it has.
    pub meta: &'a MetaState,
    /// Liveness of the nodes.
    pub members: &'a Members,
    /// Its replicas.
    pub replicas: &'a Replicas,
    /// Milliseconds on its monotonic clock.
    pub now_ms: u64,
    /// Unix milliseconds on its wall clock.
    pub wall_ms: u64,
}

impl<'a> View<'a> {
    /// Every replica here that leads its shard. Visits all replicas.
    pub(crate) fn led(&self) -> impl Iterator<Item = (&'a ReplicaStatus, &'a GroupStatus)> + use<'a> {
        self.replicas.iter().filter_map(leading)
    }

    /// The replica here that leads this shard.
    pub(crate) fn leader_of(&self, shard: ShardId) -> Option<(&'a ReplicaStatus, &'a GroupStatus)> {
        self.replicas.of_shard(shard).find_map(leading)
    }
}

/// The replica with its group, if it leads its shard.
fn leading(replica: &ReplicaStatus) -> Option<(&ReplicaStatus, &GroupStatus)> {
    let group = replica.group.as_ref().filter(|group| group.role == Role::Leader)?;
    Some((replica, group))
}

/// What a reconciler asks its driver to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Create a replica here.
    Create {
        /// The replica.
        replica: ReplicaId,
        /// The shard to start from.
        descriptor: ShardDescriptor,
        /// Whether it is one of the shard's initial replicas; otherwise it waits for a snapshot.
        founding: bool,
    },
    /// Destroy a replica here permanently, whether it exists or not: its id can never be created again.
    Destroy {
        /// The replica.
        replica: ReplicaId,
    },
    /// The replicas that the data folder forgot are destroyed: the host may create replicas again.
    TrustFolder,
    /// Change the configuration of a shard that is led here. The host may refuse it without an outcome.
    Change {
        /// The shard.
        shard: ShardId,
        /// The change.
        change: ConfChange,
    },
    /// Change a shard that is led here, otherwise. The host may refuse it without an outcome.
    ChangeShard {
        /// The shard.
        shard: ShardId,
        /// The change.
        change: ShardChange,
    },
    /// A split of a shard is planned, of which a follower is here: it may count ahead what it will give up. No outcome.
    PrepareSplit {
        /// The shard.
        shard: ShardId,
        /// The first key of the new shard.
        at: Bytes,
    },
    /// A merge is planned in which a shard takes part that has a replica here: it may write its memtable beforehand. No
    /// outcome.
    PrepareMerge {
        /// The shard.
        shard: ShardId,
        /// The epoch that the merge is planned for.
        epoch: Epoch,
    },
    /// Measure the records of a replica here. Reported back as [`Outcome::Measured`].
    Measure {
        /// Its shard.
        shard: ShardId,
        /// The replica.
        replica: ReplicaId,
        /// Their middle is wanted if they have more bytes than this.
        above: u64,
    },
    /// Ask what replicas say of their states. Reported back as [`Outcome::Fingerprints`].
    ReadFingerprints {
        /// Their shard.
        shard: ShardId,
        /// The replicas, and their nodes.
        of: Vec<(ReplicaId, NodeId)>,
    },
    /// Tell a node that a replica of it differs from a majority of its shard. No outcome.
    GiveUp {
        /// The node.
        node: NodeId,
        /// The shard.
        shard: ShardId,
        /// The replica.
        replica: ReplicaId,
        /// By which the node can see that it does.
        evidence: Evidence,
    },
    /// Transfer the leadership of a shard that is led here to another node.
    Transfer {
        /// The shard.
        shard: ShardId,
        /// The node.
        to: NodeId,
    },
    /// Propose to the metadata group, within [`PROPOSE_TIMEOUT_MS`]. Reported back as [`Outcome::Answered`].
    ///
    /// Consecutive proposals may be in flight together, up to [`PROPOSALS_MAX`]. When one of them gets no
    /// answer, the remaining actions of the pass are skipped.
    Propose(MetaCommand),
    /// Send the cluster's authority to a node ([`super::PeerRequest::Authority`]), if this node holds it.
    /// Reported back as [`Outcome::AuthorityTaken`] once the node has it durably.
    GiveAuthority {
        /// The node.
        to: NodeId,
    },
    /// Read the metadata group's state by a strong query, within [`PROPOSE_TIMEOUT_MS`]; offer it to
    /// [`super::ClusterView`] and report it back as [`Outcome::FreshMeta`].
    FetchMeta,
    /// Keep a connection to a node. Idempotent: only a new address changes anything.
    Connect {
        /// The node.
        node: NodeId,
        /// Where the metadata says it is.
        addr: HostPort,
    },
    /// Close the connection to a node.
    Disconnect {
        /// The node.
        node: NodeId,
    },
    /// Tell the host which cluster version is in force.
    SetClusterVersion(ClusterVersion),
    /// Send node heartbeats to exactly these nodes.
    SetHeartbeatPeers {
        /// The nodes, in order.
        peers: Vec<NodeId>,
    },
    /// Add a node to membership, which then announces itself to it.
    AddMember {
        /// The node.
        node: NodeId,
        /// Where it is; unspecified if the metadata has a name. Nothing is sent there: packets follow the
        /// connection to the node.
        addr: SocketAddr,
    },
    /// Remove a node from membership permanently.
    ForgetMember {
        /// The node.
        node: NodeId,
    },
}

/// The result of an action. A failed action has no outcome: a later pass finds that it is still needed.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// The metadata group answered a proposal, possibly with a refusal.
    Answered(Box<MetaCommand>, MetaReply),
    /// The node holds the cluster's authority durably.
    AuthorityTaken(NodeId),
    /// The metadata group's state, from its leader.
    FreshMeta(Arc<MetaState>),
    /// What replicas say of their states: those that answered.
    Fingerprints(Vec<(ReplicaId, Said)>),
    /// The size of the records of a shard.
    Measured(ShardId, Size),
}

/// Compares the actual state with the desired state, one step at a time.
///
/// The driver calls `reconcile`, performs the actions in order, reports each outcome by `on_outcome`, and
/// starts the next pass `interval_ms` after the last action has ended.
pub trait Reconciler {
    /// The pause between two passes, in milliseconds.
    fn interval_ms(&self) -> u64;

    /// Runs one pass. Returns what to do next, in order.
    fn reconcile(&mut self, view: &View<'_>) -> Vec<Action>;

    /// Receives the outcome of an action of the last pass.
    fn on_outcome(&mut self, _outcome: Outcome) {}
}
