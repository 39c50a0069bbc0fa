//! Shards and their replicas.

use std::{collections::BTreeMap, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{KeyRange, NodeId, ParseIdError, ReplicaId, ShardId};

/// The version of a shard. A routed request with an older epoch than the shard's own is refused.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Epoch {
    /// Incremented by every change of the key range (split, merge).
    pub range: u64,
    /// Incremented by every change of the replica set.
    pub config: u64,
}

/// The role of a replica in its group's configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReplicaRole {
    /// Votes and holds data.
    Voter,
    /// Receives the log and does not vote.
    Learner,
}

/// One replica and the node that holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ReplicaDescriptor {
    /// The replica.
    pub replica: ReplicaId,
    /// Its node.
    pub node: NodeId,
    /// Its role.
    pub role: ReplicaRole,
}

/// The authoritative description of a shard, changed only by entries of its own log.
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
    /// The replica on this node, if there is one. While a node replaces a replica, this is the newer one.
    #[must_use]
    pub fn replica_on(&self, node: NodeId) -> Option<ReplicaDescriptor> {
        self.replicas.iter().rev().find(|replica| replica.node == node).copied()
    }

    /// Whether the shard has given its keys up, to be merged into its left neighbour, and the merge is not decided.
    #[must_use]
    pub fn is_frozen(&self) -> bool {
        self.range.is_empty()
    }

    /// The node that holds this replica.
    #[must_use]
    pub fn node_of(&self, replica: ReplicaId) -> Option<NodeId> {
        self.replicas.iter().find(|descriptor| descriptor.replica == replica).map(|descriptor| descriptor.node)
    }
}

/// The location of a node: `key=value` labels, for example `region=eu,zone=a`.
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
