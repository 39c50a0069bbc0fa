//! Failures of verbs: an exit code, a message, and a hint what to do next.
//!
//! With `-o json` a failure is one problem document on stderr, with the members that the HTTP interface uses,
//! and besides them `hint` and `exit_code`.

use std::{error::Error, io, process::ExitCode};

use flotilla_api::{Problem, ProblemType};
use flotilla_client::ClientError;
use serde::Serialize;

use super::{
    Format,
    output::{json_escaped, lines_escaped},
};

/// A verb's failure.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Failure {
    kind: Kind,
    message: String,
    hint: Option<&'static str>,
    /// What a node answered.
    problem: Option<Box<Problem>>,
}

/// A failure as JSON.
#[derive(Serialize)]
struct Document<'a> {
    #[serde(flatten)]
    facts: Facts<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<&'static str>,
    exit_code: u8,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Facts<'a> {
    Answered(&'a Problem),
    Local {
        #[serde(rename = "type")]
        kind: &'static str,
        title: &'static str,
        detail: &'a str,
        retryable: bool,
    },
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

/// Whether a verb that waits should ask again: a node ends, or a leader is elected.
pub(super) fn is_passing(error: &ClientError) -> bool {
    error.is_retryable() || error.problem().is_none()
}

impl Failure {
    fn new(kind: Kind, message: String) -> Self {
        Self { kind, message, hint: None, problem: None }
    }

    pub(super) fn failed(message: impl Into<String>) -> Self {
        Self::new(Kind::Failed, message.into())
    }

    pub(super) fn usage(message: impl Into<String>) -> Self {
        Self::new(Kind::Usage, message.into())
    }

    pub(super) fn not_found(message: impl Into<String>) -> Self {
        Self::new(Kind::NotFound, message.into())
    }

    pub(super) fn unavailable(message: impl Into<String>) -> Self {
        Self::new(Kind::Unavailable, message.into())
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
    pub(super) fn report(&self, format: Format) -> ExitCode {
        match (self.kind, format) {
            (Kind::OutputClosed, _) => {}
            (_, Format::Json) => eprintln!("{}", self.json()),
            (_, Format::Table) => {
                eprintln!("error: {}", lines_escaped(&self.message));
                if let Some(hint) = self.hint {
                    eprintln!("  {hint}");
                }
            }
        }
        ExitCode::from(self.code())
    }

    fn json(&self) -> String {
        let (kind, title) = match self.kind {
            Kind::OutputClosed | Kind::Failed => ("failed", "Failed"),
            Kind::Usage => ("usage", "Wrong use of the command"),
            Kind::NotFound => ("not_found", "Not found"),
            Kind::Unavailable => ("unavailable", "Not available"),
        };
        let local = Facts::Local { kind, title, detail: &self.message, retryable: self.kind == Kind::Unavailable };
        let facts = self.problem.as_deref().map_or(local, Facts::Answered);
        let document = Document { facts, hint: self.hint, exit_code: self.code() };
        json_escaped(&serde_json::to_string(&document).unwrap_or_default())
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
            | ClientError::MalformedAuthority
            | ClientError::InvalidMediaType(_) => Kind::Usage,
            _ if error.is_not_found() => Kind::NotFound,
            _ if error.is_retryable() => Kind::Unavailable,
            _ => Kind::Failed,
        };
        Self { hint, problem: error.problem().cloned().map(Box::new), ..Self::new(kind, message) }
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
        Some(ProblemType::ShardNotFound) => Some("`flotilla shards` shows the ids."),
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
        assert_eq!(Failure::from(ClientError::InvalidMediaType("\n".to_owned())).code(), 2);
        assert_eq!(Failure::from(ClientError::RecordChanged).code(), 4, "the next read gives the new value");
        assert_eq!(Failure::stdout(&io::ErrorKind::BrokenPipe.into()).code(), 0);
    }

    #[test]
    fn a_failure_in_json_is_a_problem_document_on_one_line() {
        let parsed = |failure: Failure| -> serde_json::Value {
            let text = failure.json();
            assert_eq!(text.lines().count(), 1, "{text}");
            serde_json::from_str(&text).expect("JSON")
        };
        let mut problem = Problem::new(ProblemType::ConditionFailed, "changed\u{1b}[2J");
        problem.operation = Some(2);
        let answered = parsed(ClientError::Refused(Box::new(problem)).into());
        assert_eq!((&answered["type"], &answered["operation"]), (&"condition_failed".into(), &2.into()));
        assert_eq!((&answered["status"], &answered["exit_code"]), (&412.into(), &1.into()));
        assert!(answered["hint"].is_string() && answered["detail"] == "changed\u{1b}[2J");
        let local = parsed(Failure::usage("two\nlines"));
        assert_eq!((&local["type"], &local["detail"]), (&"usage".into(), &"two\nlines".into()));
        assert_eq!((&local["retryable"], &local["exit_code"]), (&false.into(), &2.into()));
        assert!(local.get("hint").is_none());
    }
}
