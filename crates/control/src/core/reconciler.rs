//! What every reconciler has in common: what it sees, what it can ask for, what it is told.
//!
//! Invariants: a reconciler remembers nothing that it cannot find again by looking, so it may start anew at any moment, and
//! whoever performs may leave actions out; the same views and outcomes give the same actions.

use std::{net::SocketAddr, sync::Arc};

use flotilla_meta::{Addresses, MetaCommand, MetaReply, MetaState};
use flotilla_replication::{ConfChange, GroupStatus, ReplicaStatus, Role};
use flotilla_types::{Incarnation, Locality, NodeId, ReplicaId, ShardDescriptor, ShardId};

use super::Members;

/// Proposals of one look that may be under way together.
pub const PROPOSALS_MAX: usize = 16;
/// How long a reconciler's request may take, in milliseconds.
pub const PROPOSE_TIMEOUT_MS: u64 = 3_000;

/// How this node presents itself.
#[derive(Debug, Clone)]
pub struct Me {
    /// Its id.
    pub node: NodeId,
    /// How often it has started.
    pub incarnation: Incarnation,
    /// Where it is reached.
    pub addresses: Addresses,
    /// Where it stands.
    pub locality: Locality,
}

/// What a node sees when a reconciler looks.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// The node.
    pub me: &'a Me,
    /// The newest metadata it knows.
    pub meta: &'a MetaState,
    /// Which nodes it hears of.
    pub members: &'a Members,
    /// Its replicas.
    pub replicas: &'a [ReplicaStatus],
    /// Milliseconds on its monotonic clock.
    pub now_ms: u64,
    /// Unix milliseconds on its wall clock.
    pub wall_ms: u64,
}

impl<'a> View<'a> {
    /// The replicas here that lead their shard.
    pub(crate) fn led(&self) -> impl Iterator<Item = (&'a ReplicaStatus, &'a GroupStatus)> + use<'a> {
        self.replicas
            .iter()
            .filter_map(|replica| Some((replica, replica.group.as_ref().filter(|group| group.role == Role::Leader)?)))
    }
}

/// What a reconciler wants done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Create a replica here.
    Create {
        /// The replica.
        replica: ReplicaId,
        /// The shard to start from.
        descriptor: ShardDescriptor,
        /// Whether it is one of the shard's first replicas; otherwise it waits for a snapshot.
        founding: bool,
    },
    /// Destroy a replica here for ever, whether it exists or not: its id can never be created again.
    Destroy {
        /// The replica.
        replica: ReplicaId,
    },
    /// Change the configuration of a shard that is led here. May be refused in silence.
    Change {
        /// The shard.
        shard: ShardId,
        /// The change.
        change: ConfChange,
    },
    /// Hand the leadership of a shard that is led here to a node.
    Transfer {
        /// The shard.
        shard: ShardId,
        /// The node.
        to: NodeId,
    },
    /// Propose to the metadata group, within [`PROPOSE_TIMEOUT_MS`]. Reported back as [`Outcome::Answered`].
    ///
    /// Proposals that stand together may be under way together, up to [`PROPOSALS_MAX`]. When one of them gets no answer, what
    /// comes behind them in the look is left out.
    Propose(MetaCommand),
    /// Send the cluster's authority to a node ([`super::PeerRequest::Authority`]), if it is here. Reported back as
    /// [`Outcome::AuthorityTaken`] once the node has it durably.
    GiveAuthority {
        /// The node.
        to: NodeId,
    },
    /// Ask the metadata group for its state by a strong query, within [`PROPOSE_TIMEOUT_MS`]; offer it to
    /// [`super::Known`] and report it back as [`Outcome::FreshMeta`].
    FetchMeta,
    /// Keep a connection to a node. Said again and again; only a new address changes anything.
    Connect {
        /// The node.
        node: NodeId,
        /// Where it is.
        addr: SocketAddr,
    },
    /// Give the connection to a node up.
    Disconnect {
        /// The node.
        node: NodeId,
    },
    /// Send beats to these nodes, and to no others.
    Beat {
        /// The nodes, in order.
        peers: Vec<NodeId>,
    },
    /// Tell membership of a node, which it then greets.
    Greet {
        /// The node.
        node: NodeId,
        /// Where it is.
        addr: SocketAddr,
    },
    /// Tell membership that a node is gone for ever.
    Forget {
        /// The node.
        node: NodeId,
    },
}

/// What became of an action. An action that failed has no outcome: it is found again by looking.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// The metadata group answered a proposal, maybe by a refusal.
    Answered(Box<MetaCommand>, MetaReply),
    /// The node holds the cluster's authority durably.
    AuthorityTaken(NodeId),
    /// The metadata group's state, from its leader.
    FreshMeta(Arc<MetaState>),
}

/// Compares what is with what should be, one step at a time.
///
/// Whoever drives it calls `look`, performs the actions in order, reports each outcome by `learn`, and looks again
/// `every_ms` after the last action has ended.
pub trait Reconciler {
    /// The pause between two looks, in milliseconds.
    fn every_ms(&self) -> u64;

    /// What to do next, in order.
    fn look(&mut self, view: &View<'_>) -> Vec<Action>;

    /// What became of an action of the last look.
    fn learn(&mut self, _outcome: Outcome) {}
}
