//! The account of a transfer, and its progress on a terminal.

use std::io::{IsTerminal as _, stderr};

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::cli::{failure::Failure, output::Output};

/// How many refused records are named; all are counted.
const NAMED_MAX: usize = 1_000;

/// What became of everything.
#[derive(Debug, Default, Serialize)]
pub(super) struct Report {
    /// Records written.
    pub(super) done: u64,
    /// Bytes of their values.
    pub(super) bytes: u64,
    /// Records that were there already.
    pub(super) unchanged: u64,
    /// Records whose time was over.
    pub(super) expired: u64,
    /// Links that were not followed.
    pub(super) links: u64,
    /// Records that did not go.
    pub(super) refused: u64,
    /// The first of them.
    pub(super) refusals: Vec<Refusal>,
    /// Whether the transfer stopped because the cluster stayed away.
    pub(super) gave_up: bool,
}

/// A record that did not go.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Refusal {
    /// What it is called.
    pub(super) name: String,
    /// Why not.
    pub(super) reason: String,
}

impl Report {
    pub(super) fn refuse(&mut self, name: String, reason: String) {
        self.refused += 1;
        if self.refusals.len() < NAMED_MAX {
            self.refusals.push(Refusal { name, reason });
        }
    }

    /// Lists what did not go, prints the account, and fails when there is something to fix. `quiet`: the data went to
    /// stdout, so the account goes to stderr.
    pub(super) fn finish(&self, verb: &str, quiet: bool, output: Output) -> Result<(), Failure> {
        for Refusal { name, reason } in &self.refusals {
            eprintln!("refused: {name}: {reason}");
        }
        let unnamed = self.refused.saturating_sub(self.refusals.len() as u64);
        if unnamed > 0 {
            eprintln!("refused: {unnamed} more");
        }
        if quiet {
            eprintln!("{}", self.summary(verb));
        } else {
            output.show(self, |report| report.summary(verb))?;
        }
        if self.gave_up {
            return Err(Failure::unavailable("the cluster did not answer for too long, so the transfer stopped")
                .hint("Run it again when `flotilla status` is well: an import goes on where it stopped."));
        }
        if self.refused > 0 {
            return Err(Failure::failed(format!(
                "{} of the records were refused; they are listed above",
                self.refused
            )));
        }
        Ok(())
    }

    fn summary(&self, verb: &str) -> String {
        let mut parts = vec![format!("{verb} {} records ({} bytes)", self.done, self.bytes)];
        let mut count = |number: u64, what: &str| {
            if number > 0 {
                parts.push(format!("{number} {what}"));
            }
        };
        count(self.unchanged, "already there, skipped");
        count(self.expired, "expired, skipped");
        count(self.links, "symbolic links, not followed");
        count(self.refused, "refused");
        parts.join("; ")
    }
}

/// A counter on stderr when that is a terminal, else nothing.
pub(super) fn progress() -> ProgressBar {
    let style = ProgressStyle::with_template("{spinner} {pos} records in {elapsed} ({per_sec})");
    match style {
        Ok(style) if stderr().is_terminal() => ProgressBar::new_spinner().with_style(style),
        Ok(_) | Err(_) => ProgressBar::hidden(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_refusals_are_counted_and_the_first_are_named() {
        let mut report = Report { done: 5, bytes: 10, unchanged: 2, ..Report::default() };
        for number in 0..NAMED_MAX as u64 + 7 {
            report.refuse(number.to_string(), "why".to_owned());
        }
        assert_eq!(report.refusals.len(), NAMED_MAX);
        assert_eq!(report.summary("stored"), "stored 5 records (10 bytes); 2 already there, skipped; 1007 refused");
    }
}
