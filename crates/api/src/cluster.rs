//! Collections, join tokens and readiness.

use flotilla_types::CollectionId;
use serde::{Deserialize, Serialize};

use crate::{NodeInfo, ShardInfo, TokenId};

/// How keys are distributed over shards.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sharding {
    /// By a hash of the key (or of its `{tag}`).
    #[default]
    Hash,
    /// By the order of the keys.
    Range,
}

/// Body of `POST /v1/collections`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateCollection {
    /// Its name.
    pub name: String,
    /// How keys are distributed; by hash when absent.
    #[serde(default)]
    pub sharding: Sharding,
    /// Hash buckets, fixed when the collection is created; the cluster's default when absent. Not for
    /// `range`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub buckets: Option<u16>,
    /// Shards that the buckets are divided among: 1 to `buckets`; the cluster's default when absent. Not for
    /// `range`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shards: Option<u16>,
    /// Desired replicas of each shard; the cluster's default when absent. Fewer while the cluster is smaller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas: Option<u8>,
    /// As in [`ChangeCollection`]; the default when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub objects_from: Option<u32>,
    /// As in [`ChangeCollection`]; the default when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chunk: Option<String>,
    /// As in [`ChangeCollection`]; 64 MiB when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split_bytes: Option<u64>,
}

/// Body of `PATCH /v1/collections/{name}`: what is absent stays. The answer is the [`Collection`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChangeCollection {
    /// Values of more bytes are stored as objects, of which equal ones are stored and sent once: 1,024 to 4,194,304.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub objects_from: Option<u32>,
    /// How those are cut: the lengths of chunks at least, on average and at most, such as `4KiB/16KiB/64KiB`, or
    /// `default` or `archive`. Values that are stored already stay as they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chunk: Option<String>,
    /// A shard with more bytes of keys and values is split, without what values refer to: 1,024 to 2^40, or 0 for never.
    /// Hash collections are split between two buckets only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split_bytes: Option<u64>,
}

/// A collection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Collection {
    /// Its id, never reused.
    pub id: CollectionId,
    /// Its name.
    pub name: String,
    /// How keys are distributed.
    pub sharding: Sharding,
    /// Hash buckets; 1 for `range`.
    pub buckets: u16,
    /// Desired replicas of each shard.
    pub replicas: u8,
    /// Values of more bytes are stored as objects; absent from nodes that store none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub objects_from: Option<u32>,
    /// How those are cut: the lengths of chunks at least, on average and at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chunk: Option<String>,
    /// A shard with more bytes of keys and values is split; 0 for never. Absent from nodes that split none by
    /// themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split_bytes: Option<u64>,
}

/// Answer to `GET /v1/collections`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CollectionList {
    /// In the order of their names.
    pub collections: Vec<Collection>,
}

/// Answer to `GET /v1/cluster/nodes`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeList {
    /// In the order of their ids.
    pub nodes: Vec<NodeInfo>,
}

/// Answer to `GET /v1/cluster/shards`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardList {
    /// In the order of their ids.
    pub shards: Vec<ShardInfo>,
}

/// Body of `POST /v1/cluster/tokens`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenRequest {
    /// How long it is valid, in milliseconds; the cluster's default when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_ms: Option<u64>,
    /// How many nodes may join with it; one when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uses: Option<u32>,
}

/// A new join token. It is shown only once; the cluster keeps only its hash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenReply {
    /// Its id, for listing and revoking it.
    pub id: TokenId,
    /// The token, which is a secret.
    pub token: String,
    /// When it expires, in Unix milliseconds.
    pub expires_at_ms: u64,
    /// How many nodes may join with it.
    pub uses: u32,
}

/// One condition of readiness.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// A short stable name.
    pub name: String,
    /// Whether it holds.
    pub ok: bool,
    /// The state found, as human-readable text.
    pub detail: String,
}

/// Answer to `/readyz?verbose`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Readiness {
    /// Whether all checks hold.
    pub ready: bool,
    /// The checks.
    pub checks: Vec<Check>,
}
