//! Why a call failed, and whether state may have changed.

use flotilla_api::{Problem, ProblemType};

/// Why a call failed. [`ClientError::OutcomeUnknown`] and a [`Problem`] of that kind leave open whether state
/// changed. After [`ClientError::Protocol`] a write took place. After every other error nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No endpoint was given.
    #[error("no endpoint was given")]
    NoEndpoint,
    /// An endpoint is not `http://host:port`, `https://host:port` or `host:port`.
    #[error("`{0}` is not an endpoint; write http://host:port or https://host:port")]
    InvalidEndpoint(String),
    /// The client key holds characters that no key has.
    #[error("the client key is malformed; copy the whole key again")]
    MalformedKey,
    /// The authority is not a PEM certificate.
    #[error("the authority is not a certificate in PEM")]
    MalformedAuthority,
    /// The media type is empty, too long, holds characters that no header may have, or is that of references.
    #[error("`{0}` cannot be the media type of a value")]
    InvalidMediaType(String),
    /// The value could not be read where it comes from, or the cache could not be used.
    #[error("{what} cannot be read")]
    Source {
        /// What could not be read.
        what: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The value could not be written where it goes to.
    #[error("the value cannot be written")]
    Sink {
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A node began to answer, and then sent nothing for a long time.
    #[error("{endpoint} sends nothing more")]
    Stalled {
        /// The endpoint.
        endpoint: String,
    },
    /// The file changed while it was sent. Nothing was written.
    #[error("the value changed while it was sent")]
    SourceChanged,
    /// The value is longer than any that a cluster takes. Nothing was written.
    #[error("the value is longer than {bytes_max} bytes")]
    TooLong {
        /// The limit.
        bytes_max: u64,
    },
    /// The record was overwritten or removed while it was read. Reading it again gives the new value.
    #[error("the record changed while it was read")]
    RecordChanged,
    /// The node refused.
    #[error(transparent)]
    Refused(#[from] Box<Problem>),
    /// The write may have reached a node, and no answer came back.
    #[error("the outcome of the write is not known: no answer came from {endpoint}")]
    OutcomeUnknown {
        /// The endpoint that was tried.
        endpoint: String,
        /// Why no answer arrived.
        #[source]
        source: reqwest::Error,
    },
    /// No endpoint could be reached, or none answered a read. Nothing was written.
    #[error("no endpoint answers; the last one tried was {endpoint}")]
    Unreachable {
        /// The last one tried.
        endpoint: String,
        /// Why it failed.
        #[source]
        source: reqwest::Error,
    },
    /// The node reports success in a form that this client does not understand.
    #[error("the answer of {endpoint} is not understood")]
    Protocol {
        /// The endpoint that answered.
        endpoint: String,
    },
}

impl ClientError {
    /// The problem document, if there is one.
    #[must_use]
    pub fn problem(&self) -> Option<&Problem> {
        match self {
            Self::Refused(problem) => Some(problem),
            _ => None,
        }
    }

    /// Whether the same call may succeed later and is safe to repeat.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Stalled { .. } | Self::RecordChanged)
            || self.problem().is_some_and(|problem| problem.retryable)
    }

    /// Whether a write may or may not have taken effect.
    #[must_use]
    pub fn is_outcome_unknown(&self) -> bool {
        matches!(self, Self::OutcomeUnknown { .. })
            || self.problem().is_some_and(|problem| problem.kind == ProblemType::OutcomeUnknown)
    }

    /// Whether the key, collection or node does not exist.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.problem().is_some_and(|problem| problem.status == 404)
    }
}
