//! Cluster settings, join tokens and the cluster version.

use std::{fmt, str::FromStr};

use flotilla_types::NodeId;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

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

/// Id of a join token; not a secret. In JSON and in paths it is 16 hexadecimal digits, because many readers
/// lose digits of JSON numbers of this size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TokenId(pub u64);

/// The text is not a token id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a token id has 16 hexadecimal digits")]
pub struct InvalidTokenId;

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for TokenId {
    type Err = InvalidTokenId;

    fn from_str(text: &str) -> Result<Self, InvalidTokenId> {
        // `from_str_radix` alone would accept a sign.
        if text.len() != 16 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(InvalidTokenId);
        }
        u64::from_str_radix(text, 16).map(Self).map_err(|_| InvalidTokenId)
    }
}

impl Serialize for TokenId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for TokenId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
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
    fn a_token_id_keeps_every_digit_in_json() {
        for id in [TokenId(0), TokenId(u64::MAX), TokenId((1 << 53) + 1)] {
            let text = serde_json::to_string(&id).expect("JSON");
            assert_eq!(text.len(), 18, "{text}");
            assert_eq!(serde_json::from_str::<TokenId>(&text).expect("an id"), id);
        }
        for bad in ["", "1", "+000000000000001", "00000000000000011", "000000000000000g", "../cluster/nodes"] {
            assert_eq!(bad.parse::<TokenId>(), Err(InvalidTokenId), "{bad}");
        }
    }

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
