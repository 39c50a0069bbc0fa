//! Replies of single-record calls and of scans.

use flotilla_types::Timestamp;
use serde::{Deserialize, Serialize};

use crate::Encoding;

/// Answer to `PUT /v1/kv/{collection}/{key}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PutReply {
    /// Version of the record, for `if_version`.
    pub version: Timestamp,
    /// Hybrid time of the write (see [`Timestamp`]).
    pub timestamp: Timestamp,
    /// For `token=` of later reads, which then see this write. Opaque; empty from nodes of earlier releases.
    #[serde(default)]
    pub token: String,
}

/// Answer to `DELETE /v1/kv/{collection}/{key}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeleteReply {
    /// The version that was removed.
    pub version: Timestamp,
    /// Hybrid time of the removal.
    pub timestamp: Timestamp,
    /// For `token=` of later reads, as after a put.
    #[serde(default)]
    pub token: String,
}

/// Answer to `GET /v1/kv/{collection}`: records in key order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScanPage {
    /// The records.
    pub items: Vec<ScanItem>,
    /// Opaque position for the next page's `cursor`; absent or null on the last page.
    #[serde(default)]
    pub cursor: Option<String>,
}

/// One record of a [`ScanPage`]. Key and value are in the requested encoding, or without one as text where
/// both are UTF-8 and in base64 where not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScanItem {
    /// Its key.
    pub key: String,
    /// Its value; absent with `values=false`, and where `etag` is there instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// The entity tag of a value that is too long for a page: read it under its key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etag: Option<String>,
    /// The encoding of key and value, if it is not that which was requested: `base64` for a record that is
    /// not UTF-8.
    #[serde(default, skip_serializing_if = "Encoding::is_default")]
    pub encoding: Encoding,
    /// Its version.
    pub version: Timestamp,
    /// Length of its value in bytes, before encoding.
    pub value_bytes: u64,
    /// When it expires, in Unix milliseconds; absent when it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at_ms: Option<u64>,
}
