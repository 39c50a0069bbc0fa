//! Client keys.

use flotilla_types::Role;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::KeyId;

/// A role is its name in JSON.
mod role {
    use super::{Deserialize, Deserializer, Role, Serializer};

    pub(super) fn serialize<S: Serializer>(role: &Role, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(role)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Role, D::Error> {
        use serde::de::Error as _;
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// Body of `POST /v1/cluster/keys`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyRequest {
    /// What its holder may do: `reader`, `writer`, `operator` or `admin`.
    #[serde(with = "role")]
    pub role: Role,
    /// The collections whose records it opens; all when absent or empty. Only for `reader` and `writer`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub collections: Vec<String>,
    /// How long it is valid, in milliseconds; without end when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_ms: Option<u64>,
}

/// A client key as the cluster stores it: without its secret, of which it keeps only a hash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyInfo {
    /// Its id.
    pub id: KeyId,
    /// What its holder may do.
    #[serde(with = "role")]
    pub role: Role,
    /// The collections whose records it opens; all when empty.
    #[serde(default)]
    pub collections: Vec<String>,
    /// When it was created, in Unix milliseconds.
    pub created_at_ms: u64,
    /// When it expires, in Unix milliseconds; from then on it is refused. Absent: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at_ms: Option<u64>,
}

/// A new client key. It is shown only once; the cluster keeps only its hash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyReply {
    /// The key, which is a secret.
    pub key: String,
    /// What the cluster stores of it.
    #[serde(flatten)]
    pub info: KeyInfo,
}

/// Answer to `GET /v1/cluster/keys`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyList {
    /// In the order of their ids. An expired one stays until the next one is created.
    pub keys: Vec<KeyInfo>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_names_a_known_role_and_known_fields_only() {
        let parse = |text| serde_json::from_str::<KeyRequest>(text);
        let request = parse(r#"{"role":"writer","collections":["a"],"ttl_ms":5}"#).expect("a request");
        assert_eq!(
            (request.role, &request.collections[..], request.ttl_ms),
            (Role::Writer, &["a".to_owned()][..], Some(5))
        );
        for bad in [r#"{"role":"root"}"#, r#"{}"#, r#"{"role":"admin","collection":"a"}"#, r#"{"role":4}"#] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_reply_is_the_key_and_what_is_stored_of_it() {
        let info =
            KeyInfo { id: KeyId(255), role: Role::Admin, collections: vec![], created_at_ms: 1, expires_at_ms: None };
        let reply = KeyReply { key: "flk1.x".to_owned(), info };
        let json = serde_json::to_value(&reply).expect("JSON");
        assert_eq!(json["id"], "00000000000000ff");
        assert_eq!(json["role"], "admin");
        assert_eq!(serde_json::from_value::<KeyReply>(json).expect("a reply"), reply);
    }
}
