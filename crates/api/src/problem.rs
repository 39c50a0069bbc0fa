//! Problem documents after RFC 9457, with stable slugs and a statement on whether to retry.

use std::fmt;

use flotilla_types::{NodeId, ShardId, Timestamp};
use serde::{Deserialize, Serialize};

use crate::{Blocker, ObjectName};

/// An `application/problem+json` document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{title} ({kind}): {detail}")]
pub struct Problem {
    /// The kind of problem: a stable slug.
    #[serde(rename = "type")]
    pub kind: ProblemType,
    /// Human-readable title; the same for all problems of a kind.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What is wrong in this case, and what to do.
    pub detail: String,
    /// Whether the same request may succeed later and is safe to repeat.
    pub retryable: bool,
    /// How long to wait before a retry, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
    /// The shard concerned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shard: Option<ShardId>,
    /// The node believed to lead that shard.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader: Option<NodeId>,
    /// `condition_failed`: index of the condition (conditions first, then operations).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<u32>,
    /// `condition_failed`: the version found, if the record exists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub found_version: Option<Timestamp>,
    /// `objects_missing`: the first of the objects that the node lacks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<ObjectName>,
    /// `blocked`: the first of the replicas that speak against it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub blockers: Vec<Blocker>,
}

impl Problem {
    /// Creates a problem with the title, status and retryability of its kind.
    #[must_use]
    pub fn new(kind: ProblemType, detail: impl Into<String>) -> Self {
        let (status, retryable, title) = kind.facts();
        Self {
            kind,
            title: title.to_owned(),
            status,
            detail: detail.into(),
            retryable,
            retry_after_ms: None,
            shard: None,
            leader: None,
            operation: None,
            found_version: None,
            missing: Vec::new(),
            blockers: Vec::new(),
        }
    }
}

macro_rules! problem_types {
    ($($(#[$doc:meta])* $name:ident = $slug:literal, $status:literal, $retryable:literal, $title:literal;)*) => {
        /// The kinds of problems. In JSON, a kind is its slug: the name in `snake_case`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum ProblemType {
            $($(#[$doc])* #[serde(rename = $slug)] $name,)*
            /// A kind that this version does not know.
            #[serde(rename = "unknown", other)]
            Unknown,
        }

        impl ProblemType {
            /// Every kind that a node sends.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// The slug.
            #[must_use]
            pub const fn slug(self) -> &'static str {
                match self { $(Self::$name => $slug,)* Self::Unknown => "unknown" }
            }

            /// HTTP status, whether to retry, title.
            const fn facts(self) -> (u16, bool, &'static str) {
                match self {
                    $(Self::$name => ($status, $retryable, $title),)*
                    Self::Unknown => (500, false, "Unknown problem"),
                }
            }
        }
    };
}

problem_types! {
    /// The request does not parse.
    MalformedRequest = "malformed_request", 400, false, "The request does not parse";
    /// A parameter is not valid.
    InvalidArgument = "invalid_argument", 400, false, "A parameter is not valid";
    /// The key is empty or too long.
    KeySize = "key_size", 400, false, "The key is empty or too long";
    /// `consistency` is not a known consistency level.
    InvalidConsistency = "invalid_consistency", 400, false, "There is no such consistency level";
    /// The value is not a decimal 64-bit integer.
    NotAnInteger = "not_an_integer", 400, false, "The value is not an integer";
    /// The sum does not fit into 64 bits.
    Overflow = "overflow", 400, false, "The sum does not fit into 64 bits";
    /// The keys of a batch live in more than one shard.
    CrossShard = "cross_shard", 400, false, "The keys live in more than one shard";
    /// The request has no key, or one that is not valid.
    Unauthenticated = "unauthenticated", 401, false, "A valid key is needed";
    /// The key's role or collections do not cover this.
    Forbidden = "forbidden", 403, false, "The key does not allow this";
    /// A web page of another origin may not make this request.
    ForbiddenOrigin = "forbidden_origin", 403, false, "The origin is not allowed";
    /// There is no such route.
    NotFound = "not_found", 404, false, "There is no such route";
    /// There is no record under the key.
    KeyNotFound = "key_not_found", 404, false, "There is no such key";
    /// There is no such collection.
    CollectionNotFound = "collection_not_found", 404, false, "There is no such collection";
    /// There is no such node.
    NodeNotFound = "node_not_found", 404, false, "There is no such node";
    /// There is no such shard.
    ShardNotFound = "shard_not_found", 404, false, "There is no such shard";
    /// There is no such setting.
    SettingNotFound = "setting_not_found", 404, false, "There is no such setting";
    /// There is no such join token.
    TokenNotFound = "token_not_found", 404, false, "There is no such join token";
    /// There is no such client key.
    ClientKeyNotFound = "client_key_not_found", 404, false, "There is no such client key";
    /// The route exists, but not with this method.
    MethodNotAllowed = "method_not_allowed", 405, false, "The method is not allowed here";
    /// The bytes are not UTF-8 text.
    NotUtf8 = "not_utf8", 400, false, "The bytes are not UTF-8 text";
    /// The request took too long to arrive.
    RequestTimeout = "request_timeout", 408, true, "The request took too long to arrive";
    /// The collection exists already, with other properties.
    CollectionExists = "collection_exists", 409, false, "The collection exists already";
    /// The cluster's state does not allow it.
    Refused = "refused", 409, false, "The cluster refused";
    /// Replicas cannot, or should not, leave their nodes.
    Blocked = "blocked", 409, false, "Replicas cannot leave their nodes";
    /// The node lacks objects of the value: upload them, and try again.
    ObjectsMissing = "objects_missing", 409, false, "Objects of the value are missing";
    /// The objects of a reference make up another value, or are cut in another way.
    WrongReference = "wrong_reference", 400, false, "The reference is not that of its content";
    /// The upload has ended: begin another one, and ask for all of its objects again.
    UploadEnded = "upload_ended", 410, false, "The upload has ended";
    /// The snapshot of a scan has ended: start the scan again.
    SnapshotExpired = "snapshot_expired", 410, false, "The snapshot has expired";
    /// A condition did not hold. Nothing was written.
    ConditionFailed = "condition_failed", 412, false, "A condition does not hold";
    /// The value is too long.
    ValueTooLarge = "value_too_large", 413, false, "The value is too long";
    /// No byte of the value is in the range that the request asks for.
    RangeNotSatisfiable = "range_not_satisfiable", 416, false, "The value has no such bytes";
    /// The batch has too many operations or bytes.
    BatchTooLarge = "batch_too_large", 413, false, "The batch is too large";
    /// The body is too long (of a request whose body is not a value).
    BodyTooLarge = "body_too_large", 413, false, "The body is too long";
    /// The content type is one that forms of web pages can send.
    UnsupportedMediaType = "unsupported_media_type", 415, false, "The content type is not accepted";
    /// The request names a host that is not this node.
    UnknownHost = "unknown_host", 421, false, "The host is not this node";
    /// The headers are too long.
    HeadersTooLarge = "headers_too_large", 431, false, "The headers are too long";
    /// The address has sent too many wrong keys.
    TooManyTries = "too_many_tries", 429, true, "Too many wrong keys came from this address";
    /// The consistency level exists, but this node does not support it.
    UnsupportedConsistency = "unsupported_consistency", 501, false, "The consistency level is not supported";
    /// A limit is reached. Nothing was written.
    Busy = "busy", 503, true, "The cluster is busy";
    /// Too few replicas can be reached. Nothing was written.
    Unavailable = "unavailable", 503, true, "The shard is not available";
    /// What the request reads is damaged on disk. Nothing was written.
    Damaged = "damaged", 503, true, "The data is damaged on disk";
    /// The node is draining. Nothing was written.
    Draining = "draining", 503, true, "The node is draining";
    /// The node is not ready.
    NotReady = "not_ready", 503, true, "The node is not ready";
    /// The write may or may not have taken effect; the caller decides whether to repeat it.
    OutcomeUnknown = "outcome_unknown", 503, false, "The outcome of the write is not known";
    /// The deadline passed. Nothing was written.
    DeadlineExceeded = "deadline_exceeded", 504, true, "The deadline passed";
    /// A fault of the node itself.
    Internal = "internal", 500, false, "The node failed";
}

impl fmt::Display for ProblemType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.slug())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slugs_round_trip_and_unknown_ones_still_parse() {
        for kind in ProblemType::ALL {
            let text = serde_json::to_string(&Problem::new(*kind, "x")).expect("JSON");
            assert!(text.contains(&format!(r#""type":"{kind}""#)), "{text}");
            assert_eq!(serde_json::from_str::<Problem>(&text).expect("a problem").kind, *kind);
        }
        let unknown = r#"{"type":"from_the_future","title":"t","status":418,"detail":"d","retryable":true}"#;
        assert_eq!(serde_json::from_str::<Problem>(unknown).expect("a problem").kind, ProblemType::Unknown);
    }

    #[test]
    fn an_unknown_outcome_is_not_retryable() {
        assert!(!Problem::new(ProblemType::OutcomeUnknown, "").retryable);
    }
}
