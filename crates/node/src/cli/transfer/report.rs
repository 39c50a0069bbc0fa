//! The report of a transfer, and its progress on a terminal.

use std::{
    io::{IsTerminal as _, stderr},
    ops::AddAssign,
};

use flotilla_client::Transfer;
use flotilla_types::escape_hidden;
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
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
    /// What it took, of which those that existed already are no part.
    pub(super) transfer: Moved,
    /// Records that existed already.
    pub(super) unchanged: u64,
    /// Records that had expired.
    pub(super) expired: u64,
    /// Records that were exported as they are now, because they changed after the moment of the export.
    pub(super) newer: u64,
    /// Links that were not followed.
    pub(super) links: u64,
    /// Archives that were taken apart.
    pub(super) unpacked: u64,
    /// Archives that were stored as they are, because they could not be taken apart.
    pub(super) kept_whole: u64,
    /// Records that were refused.
    pub(super) refused: u64,
    /// The first [`REFUSALS_LISTED_MAX`] of them.
    pub(super) refusals: Vec<Refusal>,
    /// Whether the transfer stopped because the cluster stayed unavailable.
    pub(super) gave_up: bool,
}

/// What moved between here and the cluster.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Moved {
    /// Bytes of the values.
    value_bytes: u64,
    /// Bytes in requests.
    sent_bytes: u64,
    /// Bytes in answers.
    received_bytes: u64,
    /// Bytes of values that did not travel, because the other side had them or because they were compressed.
    saved_bytes: u64,
    /// Parts of values that were sent or fetched.
    objects_moved: u64,
    /// Parts of values that were there already.
    objects_here: u64,
}

impl From<Transfer> for Moved {
    fn from(transfer: Transfer) -> Self {
        let Transfer { value_bytes, sent_bytes, received_bytes, objects_moved, objects_here } = transfer;
        let saved_bytes = transfer.saved_bytes();
        Self { value_bytes, sent_bytes, received_bytes, saved_bytes, objects_moved, objects_here }
    }
}

impl AddAssign for Moved {
    fn add_assign(&mut self, other: Self) {
        self.value_bytes += other.value_bytes;
        self.sent_bytes += other.sent_bytes;
        self.received_bytes += other.received_bytes;
        self.saved_bytes += other.saved_bytes;
        self.objects_moved += other.objects_moved;
        self.objects_here += other.objects_here;
    }
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
        let Moved { sent_bytes, received_bytes, saved_bytes, .. } = self.transfer;
        let moved = match (sent_bytes, received_bytes) {
            (0, 0) => String::new(),
            (sent, received) if received > sent => format!("; {received} fetched, {saved_bytes} saved"),
            (sent, _) => format!("; {sent} sent, {saved_bytes} saved"),
        };
        let mut parts = vec![format!("{verb} {} records ({} bytes{moved})", self.done, self.bytes)];
        let mut count = |number: u64, what: &str| {
            if number > 0 {
                parts.push(format!("{number} {what}"));
            }
        };
        count(self.unchanged, "already there, skipped");
        count(self.expired, "expired, skipped");
        count(self.newer, "changed meanwhile, exported as they are now");
        count(self.links, "symbolic links, not followed");
        count(self.unpacked, "archives taken apart");
        count(self.kept_whole, "archives stored as they are");
        count(self.refused, "refused");
        parts.join("; ")
    }
}

/// Progress on stderr, hidden if stderr is not a terminal.
#[derive(Debug)]
pub(super) struct Progress(ProgressBar);

impl Progress {
    pub(super) fn new() -> Self {
        let style = ProgressStyle::with_template("{spinner} {pos} records in {elapsed} ({per_sec}){msg}");
        Self(match style {
            Ok(style) if stderr().is_terminal() => ProgressBar::new_spinner().with_style(style),
            Ok(_) | Err(_) => ProgressBar::hidden(),
        })
    }

    /// Counts a record that is done, and shows what moved.
    pub(super) fn count(&self, report: &Report) {
        let Moved { sent_bytes, received_bytes, saved_bytes, .. } = report.transfer;
        let (values, moved) = (HumanBytes(report.bytes), HumanBytes(sent_bytes.max(received_bytes)));
        self.0.set_message(format!(", {values}: {moved} moved, {} saved", HumanBytes(saved_bytes)));
        self.0.inc(1);
    }

    pub(super) fn finish(&self) {
        self.0.finish_and_clear();
    }

    /// Prints a line above the progress.
    pub(super) fn note(&self, line: &str) {
        self.0.suspend(|| eprintln!("{}", escape_hidden(line)));
    }
}

/// How far one value has come, on stderr; hidden if that is not a terminal, and for a value that takes no time.
#[derive(Debug)]
pub(crate) struct Bar(ProgressBar);

impl Bar {
    /// For a value of this length, if it is known.
    pub(crate) fn new(value_bytes: Option<u64>) -> Self {
        /// Shorter values take no time worth a bar.
        const BYTES_MIN: u64 = 1 << 20;
        let style = ProgressStyle::with_template("{wide_bar} {bytes} of {total_bytes} in {elapsed}");
        Self(match (style, value_bytes) {
            (Ok(style), Some(bytes)) if bytes >= BYTES_MIN && stderr().is_terminal() => {
                ProgressBar::new(bytes).with_style(style)
            }
            _ => ProgressBar::hidden(),
        })
    }

    pub(crate) fn set(&self, bytes: u64) {
        self.0.set_position(bytes);
    }

    pub(crate) fn finish(&self) {
        self.0.finish_and_clear();
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

    #[test]
    fn the_summary_says_what_travelled() {
        let transfer = Transfer { value_bytes: 100, sent_bytes: 30, received_bytes: 4, ..Transfer::default() };
        let mut report = Report { done: 1, bytes: 100, transfer: transfer.into(), ..Report::default() };
        assert_eq!(report.summary("stored"), "stored 1 records (100 bytes; 30 sent, 70 saved)");
        report.transfer += Transfer { value_bytes: 200, received_bytes: 150, ..Transfer::default() }.into();
        assert_eq!(report.summary("exported"), "exported 1 records (100 bytes; 154 fetched, 120 saved)");
    }
}
