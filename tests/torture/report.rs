//! The report of a run: a line per step, a table, a Markdown file for people and a JSON file for programs.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use flotilla_tests::{crashes::Row, scenario::Report};
use serde_json::{Value, json};

/// The results so far.
pub(crate) struct Outcome {
    name: &'static str,
    header: &'static str,
    lines: Vec<String>,
    details: Vec<Value>,
    passed: usize,
    skipped: usize,
    failed: usize,
}

impl Outcome {
    fn new(name: &'static str, header: &'static str) -> Self {
        Self { name, header, lines: Vec::new(), details: Vec::new(), passed: 0, skipped: 0, failed: 0 }
    }

    pub(crate) fn scenarios() -> Self {
        Self::new(
            "scenarios",
            "| scenario | seed | result | operations | completed | replicas equal after | memory | took |\n|---|---|---|---|---|---|---|---|",
        )
    }

    pub(crate) fn failpoints() -> Self {
        Self::new("failpoints", "| place | crashes | tries | operations | took | result |\n|---|---|---|---|---|---|")
    }

    /// Adds the result of a scenario; returns its line of the table.
    pub(crate) fn add_scenario(&mut self, name: &str, seed: u64, run: anyhow::Result<Report>) -> String {
        let (line, detail) = match run {
            Ok(report) => {
                let line = match &report.skipped {
                    Some(reason) => {
                        self.skipped += 1;
                        format!("| {name} | {seed} | skipped: {reason} | | | | | |")
                    }
                    None => {
                        self.passed += 1;
                        format!(
                            "| {name} | {seed} | passed | {} | {} | {} ms | {} MiB | {} s |",
                            report.operations,
                            report.completed,
                            report.equal_after_ms,
                            report.memory_mib,
                            report.took_ms / 1_000
                        )
                    }
                };
                (line, json!(report))
            }
            Err(error) => {
                self.failed += 1;
                let summary = one_line(&format!("{error:#}"));
                (
                    format!("| {name} | {seed} | **failed**: {summary} | | | | | |"),
                    json!({ "scenario": name, "seed": seed, "error": format!("{error:#}") }),
                )
            }
        };
        self.details.push(detail);
        self.lines.push(line.clone());
        line
    }

    /// Adds the result of a failpoint; returns its line of the table.
    pub(crate) fn add_row(&mut self, row: Row) -> String {
        let result = match &row.error {
            None => "passed".to_owned(),
            Some(error) => format!("**failed**: {}", one_line(error)),
        };
        if row.error.is_none() {
            self.passed += 1;
        } else {
            self.failed += 1;
        }
        let Row { place, crashes, tries, operations, took_ms, .. } = &row;
        let line = format!("| {place} | {crashes} | {tries} | {operations} | {} s | {result} |", took_ms / 1_000);
        self.lines.push(line.clone());
        self.details.push(json!(row));
        line
    }

    pub(crate) fn all_passed(&self) -> bool {
        self.failed == 0
    }

    pub(crate) fn table(&self) -> String {
        let sum = format!("{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped);
        format!("{}\n{}\n\n{sum}\n", self.header, self.lines.join("\n"))
    }

    /// Writes both files and returns their paths.
    pub(crate) fn save(&self, folder: &Path) -> anyhow::Result<(PathBuf, PathBuf)> {
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        let markdown = folder.join(format!("{}.md", self.name));
        let json = folder.join(format!("{}.json", self.name));
        fs::write(&markdown, self.table())?;
        fs::write(&json, serde_json::to_vec_pretty(&self.details)?)?;
        Ok((markdown, json))
    }
}

/// The start of an error message, escaped for a table cell.
fn one_line(error: &str) -> String {
    const SHOWN: usize = 200;
    let line: String = error.chars().map(|it| if it == '\n' || it == '|' { ' ' } else { it }).take(SHOWN).collect();
    line.trim().to_owned()
}
