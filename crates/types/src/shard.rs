//! What a shard is, where its replicas live, and what a replica's applied state rests on.

use std::{collections::BTreeMap, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{ConfState, KeyRange, LogIndex, NodeId, ObjectId, ParseIdError, ReplicaId, ShardId, Term};

/// The version of a shard: `range` moves when the range does, `config` when the replica set does.
///
/// A routed request with an older epoch than the shard's own is refused.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Epoch {
    /// Counts splits and merges.
    pub range: u64,
    /// Counts changes of the replica set.
    pub config: u64,
}

/// What a replica does in its group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReplicaRole {
    /// Votes and holds data.
    Voter,
    /// Receives the log, does not vote.
    Learner,
}

/// One replica and the node that holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ReplicaDescriptor {
    /// The replica.
    pub replica: ReplicaId,
    /// Its node.
    pub node: NodeId,
    /// What it does.
    pub role: ReplicaRole,
}

/// What a shard's own log says about it: authoritative, moved only by its entries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardDescriptor {
    /// The shard.
    pub shard: ShardId,
    /// Its keys.
    pub range: KeyRange,
    /// Its version.
    pub epoch: Epoch,
    /// Its replicas, ordered by replica id.
    pub replicas: Vec<ReplicaDescriptor>,
}

impl ShardDescriptor {
    /// The replica on this node, if there is one. The newest wins while a node swaps an old replica for a new one.
    #[must_use]
    pub fn replica_on(&self, node: NodeId) -> Option<ReplicaDescriptor> {
        self.replicas.iter().rev().find(|replica| replica.node == node).copied()
    }

    /// The node that holds this replica.
    #[must_use]
    pub fn node_of(&self, replica: ReplicaId) -> Option<NodeId> {
        self.replicas.iter().find(|descriptor| descriptor.replica == replica).map(|descriptor| descriptor.node)
    }
}

/// How far a replica has applied its log, and under which configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// The last applied entry.
    pub index: LogIndex,
    /// Its term.
    pub term: Term,
    /// The configuration after that entry.
    pub conf: ConfState,
    /// The descriptor after that entry.
    pub descriptor: ShardDescriptor,
}

/// The durable applied state of a replica at one log position: what a restart, a snapshot and a backup rest on.
///
/// It names objects; it never holds their bytes. Records are the base chunks overlaid by the runs, oldest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// Where in the log, and under which configuration and descriptor.
    pub position: Position,
    /// The state machine's own state beside the records (sessions, clock). `None` for a replica that applied nothing.
    pub system: Option<ObjectId>,
    /// Chunks of sorted records, disjoint by key hash.
    pub base: Vec<ObjectId>,
    /// Sorted runs with tombstones, oldest first; later runs win.
    pub runs: Vec<ObjectId>,
}

impl Checkpoint {
    /// Every object the checkpoint rests on, in a fixed order.
    pub fn objects(&self) -> impl Iterator<Item = ObjectId> + '_ {
        self.system.iter().chain(&self.base).chain(&self.runs).copied()
    }
}

/// Where a node stands: ordered `key=value` labels, outermost first, for example `region=eu,zone=a`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Locality(pub BTreeMap<String, String>);

impl FromStr for Locality {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let mut labels = BTreeMap::new();
        for label in text.split(',').filter(|label| !label.is_empty()) {
            match label.split_once('=') {
                Some((key, value)) if !key.is_empty() && !value.is_empty() => {
                    labels.insert(key.to_owned(), value.to_owned());
                }
                _ => return Err(ParseIdError { what: "locality (key=value,…)", text: text.to_owned() }),
            }
        }
        Ok(Self(labels))
    }
}

impl fmt::Display for Locality {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (key, value)) in self.0.iter().enumerate() {
            write!(f, "{}{key}={value}", if i == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}
