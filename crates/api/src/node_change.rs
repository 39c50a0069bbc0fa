//! Changes of a node's part in the cluster: drain, leave, remove, and back.

use std::{fmt, str::FromStr};

use flotilla_types::{NodeId, ShardId};
use serde::{Deserialize, Serialize};

use crate::{Blocker, NodeState};

/// What can be done with a node: the last segment of `POST /v1/cluster/nodes/{id}/{verb}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeVerb {
    /// Its leaderships move away and nothing new is placed on it; its replicas stay.
    Drain,
    /// It is in service again, after `drain`, `decommission` or an unfinished `leave`.
    Undrain,
    /// Its replicas move away as well; it stays a member.
    Decommission,
    /// The same as `undrain`.
    Recommission,
    /// Its replicas move away; then it is removed and its process ends.
    Leave,
    /// It is removed at once and for good.
    Remove,
}

impl NodeVerb {
    /// Every verb.
    pub const ALL: [Self; 6] =
        [Self::Drain, Self::Undrain, Self::Decommission, Self::Recommission, Self::Leave, Self::Remove];

    /// Its name in paths and on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Drain => "drain",
            Self::Undrain => "undrain",
            Self::Decommission => "decommission",
            Self::Recommission => "recommission",
            Self::Leave => "leave",
            Self::Remove => "remove",
        }
    }
}

impl fmt::Display for NodeVerb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The text is no verb.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the verbs are drain, undrain, decommission, recommission, leave and remove")]
pub struct UnknownNodeVerb;

impl FromStr for NodeVerb {
    type Err = UnknownNodeVerb;

    fn from_str(text: &str) -> Result<Self, UnknownNodeVerb> {
        Self::ALL.into_iter().find(|verb| verb.name() == text).ok_or(UnknownNodeVerb)
    }
}

/// Answer to `POST /v1/cluster/nodes/{id}/{verb}`: what the verb does to the node, as the answering node sees
/// it. With `?dry_run=true` nothing was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeChange {
    /// The node.
    pub node: NodeId,
    /// The verb.
    pub verb: NodeVerb,
    /// Whether nothing was done.
    pub dry_run: bool,
    /// The node's state: before, in a dry run; else after.
    pub state: NodeState,
    /// Replicas that it holds.
    pub replicas: u32,
    /// Shards that it leads.
    pub leaders: u32,
    /// How much of the verb is still to be done: leaderships to hand over that another node can take, or
    /// replicas to move.
    pub remaining: u32,
    /// The first shards that other nodes cannot take over: those that it would go on leading, or of which its
    /// replica would stay.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stuck: Vec<ShardId>,
    /// How many these are.
    #[serde(default)]
    pub stuck_total: u32,
    /// Replicas that other nodes take over: of a node whose replicas move away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moves: Option<u64>,
    /// Bytes of their records, as far as nodes report them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub move_bytes: Option<u64>,
    /// The first of the replicas that speak against it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub blockers: Vec<Blocker>,
    /// How many these are.
    #[serde(default)]
    pub blockers_total: u64,
    /// Why it is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusal: Option<String>,
    /// Whether `?force=true` does it all the same.
    #[serde(default)]
    pub force_helps: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verb_is_written_alike_in_paths_and_in_json() {
        for verb in NodeVerb::ALL {
            assert_eq!(verb.name().parse(), Ok(verb));
            assert_eq!(serde_json::to_string(&verb).expect("JSON"), format!("\"{verb}\""));
        }
        for other in ["", "Drain", "drains", "../nodes"] {
            assert_eq!(other.parse::<NodeVerb>(), Err(UnknownNodeVerb), "{other}");
        }
    }
}
