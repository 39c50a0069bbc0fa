//! Client keys.

use std::{fmt, str::FromStr};

use flotilla_types::Role;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// Id of a client key; not a secret. In JSON and in paths it is 16 hexadecimal digits, because many readers
/// lose digits of JSON numbers of this size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(pub u64);

/// The text is not a key id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a key id has 16 hexadecimal digits")]
pub struct InvalidKeyId;

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for KeyId {
    type Err = InvalidKeyId;

    fn from_str(text: &str) -> Result<Self, InvalidKeyId> {
        // `from_str_radix` alone would accept a sign.
        if text.len() != 16 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(InvalidKeyId);
        }
        u64::from_str_radix(text, 16).map(Self).map_err(|_| InvalidKeyId)
    }
}

impl Serialize for KeyId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for KeyId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

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
        for bad in ["", "1", "+000000000000001", "000000000000000g"] {
            assert_eq!(bad.parse::<KeyId>(), Err(InvalidKeyId), "{bad}");
        }
    }
}
