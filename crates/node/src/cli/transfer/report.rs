//! The report of a transfer, and its progress on a terminal.

use std::io::{IsTerminal as _, stderr};

use flotilla_types::escape_hidden;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::cli::{failure::Failure, output::Output};

/// Most refused records that are listed; all are counted.
const REFUSALS_LISTED_MAX: usize = 1_000;

/// The result of a transfer.
#[derive(Debug, Default, Serialize)]
pub(super) struct Report {
    /// Records written.
    pub(super) done: u64,
    /// Bytes of their values.
    pub(super) bytes: u64,
    /// Records that existed already.
    pub(super) unchanged: u64,
    /// Records that had expired.
    pub(super) expired: u64,
    /// Links that were not followed.
    pub(super) links: u64,
    /// Records that were refused.
    pub(super) refused: u64,
    /// The first [`REFUSALS_LISTED_MAX`] of them.
    pub(super) refusals: Vec<Refusal>,
    /// Whether the transfer stopped because the cluster stayed unavailable.
    pub(super) gave_up: bool,
}

/// A refused record.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Refusal {
    /// Its name.
    pub(super) name: String,
    /// Why it was refused.
    pub(super) reason: String,
}

impl Report {
    pub(super) fn refuse(&mut self, name: String, reason: String) {
        self.refused += 1;
        if self.refusals.len() < REFUSALS_LISTED_MAX {
            self.refusals.push(Refusal { name, reason });
        }
    }

    /// Lists the refused records, prints the summary, and fails if a record was refused or the transfer
    /// stopped. `stdout_has_data`: the summary goes to stderr, because stdout contains the records.
    pub(super) fn finish(&self, verb: &str, stdout_has_data: bool, output: Output) -> Result<(), Failure> {
        for Refusal { name, reason } in &self.refusals {
            eprintln!("{}", escape_hidden(&format!("refused: {name}: {reason}")));
        }
        let unlisted = self.refused.saturating_sub(self.refusals.len() as u64);
        if unlisted > 0 {
            eprintln!("refused: {unlisted} more");
        }
        if stdout_has_data {
            eprintln!("{}", self.summary(verb));
        } else {
            output.show(self, |report| report.summary(verb))?;
        }
        if self.gave_up {
            return Err(Failure::unavailable("the transfer stopped because the cluster stayed unavailable").hint(
                "Run it again when `flotilla status` reports no problem; an import continues where it stopped.",
            ));
        }
        if self.refused > 0 {
            return Err(Failure::failed(format!("{} records were refused; they are listed above", self.refused)));
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

/// A progress counter on stderr, hidden if stderr is not a terminal.
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
    fn all_refusals_are_counted_and_the_first_are_listed() {
        let mut report = Report { done: 5, bytes: 10, unchanged: 2, ..Report::default() };
        for number in 0..REFUSALS_LISTED_MAX as u64 + 7 {
            report.refuse(number.to_string(), "why".to_owned());
        }
        assert_eq!(report.refusals.len(), REFUSALS_LISTED_MAX);
        assert_eq!(report.summary("stored"), "stored 5 records (10 bytes); 2 already there, skipped; 1007 refused");
    }
}
