//! Refusals as problem documents, and the mapping from errors to them.

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use flotilla_api::{OBJECT_REFS_MAX as MISSING_MAX, ObjectName, Problem, ProblemType, TextError};
use flotilla_types::{NodeId, ShardId};

use crate::{AdminError, Denied, StoreError, store::RETRY_AFTER_MS};

/// A problem document to answer with. Boxed to keep the `Result`s that carry it small.
#[derive(Debug)]
pub(super) struct Refusal(pub(super) Box<Problem>);

impl Refusal {
    pub(super) fn new(kind: ProblemType, detail: impl Into<String>) -> Self {
        Self(Box::new(Problem::new(kind, detail)))
    }

    /// A limit of the gateway itself is reached.
    pub(super) fn busy(detail: &'static str) -> Self {
        let mut refusal = Self::new(ProblemType::Busy, detail);
        refusal.0.retry_after_ms = Some(RETRY_AFTER_MS);
        refusal
    }

    #[cfg(test)]
    pub(super) fn kind(&self) -> ProblemType {
        self.0.kind
    }

    fn about(mut self, shard: Option<ShardId>, leader: Option<NodeId>) -> Self {
        self.0.shard = shard;
        self.0.leader = leader;
        self
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let retry_after_s = self.0.retry_after_ms.map(|ms| ms.div_ceil(1_000));
        let mut response = (status, Json(*self.0)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(seconds) = retry_after_s {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        use ProblemType as P;
        let kind = match &error {
            StoreError::CollectionNotFound(_) => P::CollectionNotFound,
            StoreError::CollectionExists(_) => P::CollectionExists,
            StoreError::Invalid(_) | StoreError::LargeValue => P::InvalidArgument,
            StoreError::KeySize { .. } => P::KeySize,
            StoreError::ValueTooLarge { .. } => P::ValueTooLarge,
            StoreError::BatchTooLarge { .. } => P::BatchTooLarge,
            StoreError::CrossShard => P::CrossShard,
            StoreError::ConditionFailed { .. } => P::ConditionFailed,
            StoreError::NotAnInteger => P::NotAnInteger,
            StoreError::Overflow => P::Overflow,
            StoreError::Busy { .. } => P::Busy,
            StoreError::Unavailable { .. } => P::Unavailable,
            StoreError::Damaged { .. } => P::Damaged,
            StoreError::SnapshotExpired { .. } => P::SnapshotExpired,
            StoreError::DeadlineExceeded { .. } => P::DeadlineExceeded,
            StoreError::OutcomeUnknown { .. } => P::OutcomeUnknown,
            StoreError::ObjectsMissing { .. } => P::ObjectsMissing,
            StoreError::WrongReference => P::WrongReference,
            StoreError::UploadEnded => P::UploadEnded,
            StoreError::ObjectsUnavailable => P::Unavailable,
            StoreError::Draining => P::Draining,
            StoreError::Refused(_) => P::Refused,
        };
        let mut refusal = Self::new(kind, error.to_string());
        match error {
            StoreError::Busy { retry_after_ms } => refusal.0.retry_after_ms = Some(retry_after_ms),
            StoreError::ConditionFailed { operation, found } => {
                refusal.0.operation = Some(operation);
                refusal.0.found_version = found;
            }
            StoreError::ObjectsMissing { missing } => {
                refusal.0.missing = missing.into_iter().take(MISSING_MAX).map(ObjectName).collect();
            }
            StoreError::Unavailable { shard, leader } => refusal = refusal.about(shard, leader),
            StoreError::DeadlineExceeded { shard } => refusal = refusal.about(shard, None),
            StoreError::SnapshotExpired { shard } => refusal = refusal.about(Some(shard), None),
            StoreError::Damaged { shard } => refusal = refusal.about(Some(shard), None),
            StoreError::OutcomeUnknown { shard } => refusal = refusal.about(Some(shard), None),
            _ => {}
        }
        refusal
    }
}

impl From<AdminError> for Refusal {
    fn from(error: AdminError) -> Self {
        let text = error.to_string();
        let kind = match error {
            AdminError::NodeNotFound(_) => ProblemType::NodeNotFound,
            AdminError::OperationNotFound(_) => ProblemType::NotFound,
            AdminError::SettingNotFound => ProblemType::SettingNotFound,
            AdminError::SettingValue { .. } => ProblemType::InvalidArgument,
            AdminError::TokenNotFound(_) => ProblemType::TokenNotFound,
            AdminError::KeyNotFound(_) => ProblemType::ClientKeyNotFound,
            AdminError::ShardNotFound(_) => ProblemType::ShardNotFound,
            AdminError::Blocked { blockers, .. } => {
                let mut refusal = Self::new(ProblemType::Blocked, text);
                refusal.0.blockers = blockers;
                return refusal;
            }
            AdminError::Store(error) => return error.into(),
        };
        Self::new(kind, text)
    }
}

impl From<Denied> for Refusal {
    fn from(denied: Denied) -> Self {
        let kind = match denied {
            Denied::NoKey | Denied::BadKey => ProblemType::Unauthenticated,
            Denied::TooManyTries { .. } => ProblemType::TooManyTries,
            Denied::Right { .. } | Denied::Collection => ProblemType::Forbidden,
        };
        let mut refusal = Self::new(kind, denied.to_string());
        if let Denied::TooManyTries { retry_after_ms } = denied {
            refusal.0.retry_after_ms = Some(retry_after_ms);
        }
        refusal
    }
}

impl From<TextError> for Refusal {
    fn from(error: TextError) -> Self {
        let kind = match error {
            TextError::NotUtf8 => ProblemType::NotUtf8,
            TextError::NotBase64 => ProblemType::MalformedRequest,
        };
        Self::new(kind, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use flotilla_types::Timestamp;

    use super::*;

    #[test]
    fn an_unavailable_shard_is_retryable_and_an_unknown_outcome_is_not() {
        let unknown = Refusal::from(StoreError::OutcomeUnknown { shard: ShardId(4) }).0;
        assert_eq!((unknown.status, unknown.retryable, unknown.shard), (503, false, Some(ShardId(4))));
        let unavailable = StoreError::Unavailable { shard: Some(ShardId(4)), leader: Some(NodeId(2)) };
        let unavailable = Refusal::from(unavailable).0;
        assert_eq!((unavailable.status, unavailable.retryable, unavailable.leader), (503, true, Some(NodeId(2))));
    }

    #[test]
    fn a_failed_condition_carries_its_index_and_the_version_found() {
        let failed = StoreError::ConditionFailed { operation: 3, found: Some(Timestamp(9)) };
        let response = Refusal::from(failed.clone()).into_response();
        assert_eq!(response.status(), StatusCode::PRECONDITION_FAILED);
        assert_eq!(response.headers()[header::CONTENT_TYPE], "application/problem+json");
        let problem = Refusal::from(failed).0;
        assert_eq!((problem.operation, problem.found_version), (Some(3), Some(Timestamp(9))));
    }

    #[test]
    fn busy_has_a_retry_after_header_in_whole_seconds() {
        let response = Refusal::from(StoreError::Busy { retry_after_ms: 1_001 }).into_response();
        assert_eq!(response.headers()[header::RETRY_AFTER], "2");
    }
}
