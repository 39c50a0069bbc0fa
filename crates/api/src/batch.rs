//! `POST /v1/batch`: several writes, applied atomically.

use flotilla_types::Timestamp;
use serde::{Deserialize, Serialize};

use crate::Encoding;

fn default_collection() -> String {
    "default".to_owned()
}

/// A batch. All keys must live in one shard of one collection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BatchRequest {
    /// The collection; `default` when absent.
    #[serde(default = "default_collection")]
    pub collection: String,
    /// Checked before anything is written. At most [`crate::BATCH_OPERATIONS_MAX`].
    #[serde(default)]
    pub conditions: Vec<BatchCondition>,
    /// Applied in order. One to [`crate::BATCH_OPERATIONS_MAX`].
    pub operations: Vec<BatchOperation>,
}

/// A condition on a record. Exactly one of `version`, `absent: true` and `present: true`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BatchCondition {
    /// Its key.
    pub key: String,
    /// Encoding of `key`.
    #[serde(default, skip_serializing_if = "Encoding::is_default")]
    pub encoding: Encoding,
    /// The record exists with exactly this version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<Timestamp>,
    /// The record does not exist.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub absent: bool,
    /// The record exists.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub present: bool,
}

/// The kind of an operation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BatchVerb {
    /// Store `value`, with `ttl_ms` if given.
    #[default]
    Put,
    /// Remove the record.
    Delete,
    /// Read the value as a decimal 64-bit integer (absent = 0) and add `delta`. The expiry stays.
    Add,
    /// Append `value` to the value (absent = empty). The expiry stays.
    Append,
    /// Set the expiry to `ttl_ms` from now; without `ttl_ms`, remove it.
    Expire,
}

/// One write. Fields that its `op` does not use must be absent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BatchOperation {
    /// The kind of the operation.
    pub op: BatchVerb,
    /// The key.
    pub key: String,
    /// `put`: the value; `append`: the bytes to append.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// Encoding of `key` and `value`.
    #[serde(default, skip_serializing_if = "Encoding::is_default")]
    pub encoding: Encoding,
    /// `add`: the summand, which may be negative.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delta: Option<i64>,
    /// `put`, `expire`: milliseconds until the record expires, counted from when the gateway reads the
    /// request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_ms: Option<u64>,
    /// Only if the record has exactly this version; otherwise the whole batch is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub if_version: Option<Timestamp>,
    /// Only if there is no such record; otherwise the whole batch is refused.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub if_absent: bool,
}

/// Answer to a batch that was applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchReply {
    /// Hybrid time of the batch.
    pub timestamp: Timestamp,
    /// For `token=` of later reads, which then see these writes. Opaque; empty from nodes of earlier
    /// releases.
    #[serde(default)]
    pub token: String,
    /// Version of every record that the batch wrote.
    pub version: Timestamp,
    /// One for each operation, in order.
    pub results: Vec<BatchResult>,
}

/// The result of one operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchResult {
    /// The effect.
    pub outcome: Outcome,
    /// The version written or removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<Timestamp>,
    /// `written`: whether the record existed before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub existed: Option<bool>,
    /// `add`: the sum. `append`: the new length in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub number: Option<i64>,
}

/// The effect of one operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Stored or changed.
    Written,
    /// Removed.
    Deleted,
    /// There was no record to remove or to change.
    Absent,
    /// Its condition did not hold, and it was skipped.
    Skipped,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistyped_condition_is_refused_not_ignored() {
        let text = r#"{"operations":[{"op":"put","key":"a","value":"1","if_versoin":3}]}"#;
        assert!(serde_json::from_str::<BatchRequest>(text).is_err());
        let text = r#"{"operations":[{"op":"add","key":"a","delta":-2}],"conditions":[{"key":"b","absent":true}]}"#;
        let batch: BatchRequest = serde_json::from_str(text).expect("a batch");
        assert_eq!(batch.collection, "default");
        assert_eq!(batch.operations[0].delta, Some(-2));
        assert!(batch.conditions[0].absent);
    }
}
