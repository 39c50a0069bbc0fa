//! Failures of verbs: an exit code, a message, and a hint what to do next.

use std::{error::Error, io, process::ExitCode};

use flotilla_api::ProblemType;
use flotilla_client::ClientError;

use super::output::lines_escaped;

/// A verb's failure.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Failure {
    kind: Kind,
    message: String,
    hint: Option<&'static str>,
}

/// The kind of a failure, which decides the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The reader of stdout closed the pipe (`… | head`), which is no error.
    OutputClosed,
    Failed,
    Usage,
    NotFound,
    Unavailable,
}

impl Failure {
    pub(super) fn failed(message: impl Into<String>) -> Self {
        Self { kind: Kind::Failed, message: message.into(), hint: None }
    }

    pub(super) fn usage(message: impl Into<String>) -> Self {
        Self { kind: Kind::Usage, message: message.into(), hint: None }
    }

    pub(super) fn not_found(message: impl Into<String>) -> Self {
        Self { kind: Kind::NotFound, message: message.into(), hint: None }
    }

    pub(super) fn unavailable(message: impl Into<String>) -> Self {
        Self { kind: Kind::Unavailable, message: message.into(), hint: None }
    }

    pub(super) fn hint(self, hint: &'static str) -> Self {
        Self { hint: Some(hint), ..self }
    }

    /// Reading or writing a file or stdin failed.
    pub(super) fn io(what: impl std::fmt::Display, error: &io::Error) -> Self {
        Self::failed(format!("{what}: {error}"))
    }

    /// Writing to stdout failed.
    pub(super) fn stdout(error: &io::Error) -> Self {
        let kind = if error.kind() == io::ErrorKind::BrokenPipe { Kind::OutputClosed } else { Kind::Failed };
        Self { kind, ..Self::io("cannot write to stdout", error) }
    }

    pub(super) fn code(&self) -> u8 {
        match self.kind {
            Kind::OutputClosed => 0,
            Kind::Failed => 1,
            Kind::Usage => 2,
            Kind::NotFound => 3,
            Kind::Unavailable => 4,
        }
    }

    /// Prints the failure to stderr and returns its exit code.
    pub(super) fn report(&self) -> ExitCode {
        if self.kind != Kind::OutputClosed {
            eprintln!("error: {}", lines_escaped(&self.message));
            if let Some(hint) = self.hint {
                eprintln!("  {hint}");
            }
        }
        ExitCode::from(self.code())
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let message = describe(&error);
        let hint = hint(&error);
        let kind = match &error {
            ClientError::NoEndpoint
            | ClientError::InvalidEndpoint(_)
            | ClientError::MalformedKey
            | ClientError::MalformedAuthority => Kind::Usage,
            _ if error.is_not_found() => Kind::NotFound,
            _ if error.is_retryable() => Kind::Unavailable,
            _ => Kind::Failed,
        };
        Self { kind, message, hint }
    }
}

/// Formats an error with its root cause.
pub(super) fn describe(error: &ClientError) -> String {
    if let Some(problem) = error.problem() {
        return format!("{} ({})", problem.detail, problem.kind);
    }
    let mut text = error.to_string();
    let mut source = error.source();
    // The last cause is the specific one ("connection refused").
    while let Some(cause) = source {
        source = cause.source();
        if source.is_none() {
            text = format!("{text}: {cause}");
        }
    }
    text
}

fn hint(error: &ClientError) -> Option<&'static str> {
    if error.is_outcome_unknown() {
        return Some("Read the record to see whether the write took effect before you retry.");
    }
    match error.problem().map(|problem| problem.kind) {
        None if error.is_retryable() => {
            Some("Check that the node is running, and give its HTTP endpoint in --addr or FLOTILLA_ADDR.")
        }
        Some(ProblemType::CollectionNotFound) => {
            Some("`flotilla collection list` shows the collections; `collection create` adds one.")
        }
        Some(ProblemType::NodeNotFound) => Some("`flotilla nodes` shows the ids."),
        Some(ProblemType::SettingNotFound) => Some("`flotilla setting list` shows the settings."),
        Some(ProblemType::TokenNotFound) => Some("`flotilla token list` shows the ids."),
        Some(ProblemType::CrossShard) => Some("Give the keys a common {tag}, so that they are in one shard."),
        Some(ProblemType::ConditionFailed) => Some("Read the record again and use its current version."),
        Some(ProblemType::Unavailable | ProblemType::DeadlineExceeded) => {
            Some("`flotilla status` shows what is down; nothing was written, so try again.")
        }
        Some(ProblemType::Busy | ProblemType::Draining) => Some("Nothing was written; try again, or another node."),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use flotilla_api::Problem;

    use super::*;

    #[test]
    fn exit_codes_distinguish_missing_unavailable_and_failed() {
        let code = |kind| Failure::from(ClientError::Refused(Box::new(Problem::new(kind, "x")))).code();
        assert_eq!(code(ProblemType::CollectionNotFound), 3);
        assert_eq!(code(ProblemType::Unavailable), 4);
        assert_eq!(code(ProblemType::Busy), 4);
        assert_eq!(code(ProblemType::OutcomeUnknown), 1, "must not be retried blindly");
        assert_eq!(code(ProblemType::ConditionFailed), 1);
        assert_eq!(Failure::from(ClientError::NoEndpoint).code(), 2);
        assert_eq!(Failure::stdout(&io::ErrorKind::BrokenPipe.into()).code(), 0);
    }
}
