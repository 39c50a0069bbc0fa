//! Cluster settings, join tokens and the cluster version.

use flotilla_types::NodeId;
use serde::{Deserialize, Serialize};

use crate::TokenId;

/// A cluster-wide setting. All are whole numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    /// Its name.
    pub key: String,
    /// Its current value, in the unit that the description names.
    pub value: u64,
    /// Its value unless set.
    pub default: u64,
    /// What it does, its unit and its range.
    pub description: String,
}

/// Answer to `GET /v1/cluster/settings`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettingList {
    /// Every setting, always in the same order.
    pub settings: Vec<Setting>,
}

/// Body of `PUT /v1/cluster/settings/{key}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SettingRequest {
    /// The new value.
    pub value: u64,
}

/// Answer to `GET` and `POST /v1/cluster/upgrade`: the cluster version, and who keeps it from rising.
///
/// The version fixes which formats and meanings of replicated data are in force. New binaries work at the old
/// version until an operator finishes the upgrade; from then on, old binaries cannot take part any more.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpgradeStatus {
    /// The version in force.
    pub cluster_version: u32,
    /// The version that `POST` would put in force; absent when the answering node's binary supports no later
    /// one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<u32>,
    /// Whether every node is ready for it.
    pub ready: bool,
    /// The nodes that are part of the cluster, in the order of their ids.
    pub nodes: Vec<NodeUpgrade>,
}

/// One node's part in an upgrade.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeUpgrade {
    /// The node.
    pub node: NodeId,
    /// Its name.
    pub name: String,
    /// The versions that its binary supports, if the answering node has seen it since it started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub versions: Option<crate::Versions>,
    /// Whether it was seen, since its last recorded start, with a binary that supports the next version.
    pub ready: bool,
}

/// A join token as the cluster stores it: without its secret, of which it keeps only a hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenInfo {
    /// Its id.
    pub id: TokenId,
    /// When it was created, in Unix milliseconds.
    pub created_at_ms: u64,
    /// When it expires, in Unix milliseconds; from then on it is refused.
    pub expires_at_ms: u64,
    /// How many nodes may still join with it.
    pub uses_left: u32,
    /// How many nodes could join with it when it was created.
    pub uses: u32,
}

/// Answer to `GET /v1/cluster/tokens`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenList {
    /// In the order of their ids. An expired or used-up one stays until the next one is created.
    pub tokens: Vec<TokenInfo>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_takes_only_a_whole_number() {
        let parse = |text| serde_json::from_str::<SettingRequest>(text);
        assert_eq!(parse(r#"{"value":5000}"#).expect("a request").value, 5_000);
        for bad in [r#"{"value":"5000"}"#, r#"{"value":-1}"#, r#"{"value":1.5}"#, r#"{}"#, r#"{"value":1,"unit":"s"}"#]
        {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
