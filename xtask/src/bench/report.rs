//! The results: printed as they arrive, as tables, and as JSON.

use std::{fmt::Write, thread};

use anyhow::Result;
use comfy_table::{CellAlignment, Table, presets::NOTHING};
use hdrhistogram::Histogram;
use serde::Serialize;

use super::{
    measure::{Concurrency, Family, Outcome, System},
    plan::Case,
    ratios,
    workload::Workload,
};

/// Significant digits of latencies in the JSON's histograms.
const HISTOGRAM_DIGITS: u8 = 1;
const MIB: f64 = (1 << 20) as f64;
const MILLION: f64 = 1e6;

/// All rows of one run.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) rows: Vec<Row>,
    notes: Vec<String>,
    value_bytes: usize,
    seconds: f64,
}

/// The result of one case on one system. Latencies are in microseconds.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    pub(super) system: String,
    #[serde(skip)]
    pub(super) family: Family,
    pub(super) protocol: &'static str,
    #[serde(skip)]
    pub(super) case: Case,
    workload: Workload,
    keys: u64,
    popularity: &'static str,
    connections: usize,
    in_flight: usize,
    pub(super) per_second: f64,
    pub(super) p50_us: u64,
    pub(super) p99_us: u64,
    p999_us: u64,
    max_us: u64,
    refused: u64,
    first_refusal: Option<String>,
    /// CPU seconds per million responses, of each server process.
    server_cpu_seconds_per_million: Vec<f64>,
    /// CPU seconds per million responses, of the load generator.
    load_cpu_seconds_per_million: f64,
    /// Share of the machine's CPU time that other processes used: a row with a large share is unreliable.
    others_percent: f64,
    /// Peak memory of each server process since its start.
    peak_bytes: Vec<u64>,
    /// Write amplification: bytes that all servers wrote to disks per byte of a value; for rows that only
    /// write.
    written_per_stored: Option<f64>,
    /// Pairs of a latency in microseconds and its number of responses.
    histogram: Vec<(u64, u64)>,
}

impl Row {
    pub(super) fn new(system: &System, case: Case, value_bytes: usize, outcome: &Outcome) -> Self {
        let (latencies, answers) = (&outcome.latencies, outcome.latencies.len());
        let per_million = |seconds: f64| seconds * MILLION / answers.max(1) as f64;
        let stored = answers as f64 * value_bytes as f64;
        let written: u64 = outcome.servers.iter().map(|server| server.written_bytes).sum();
        let is_write_only = case.workload == Workload::Set && answers > 0 && !outcome.servers.is_empty();
        Self {
            system: system.name.clone(),
            family: system.family,
            protocol: system.wire.name(),
            case,
            workload: case.workload,
            keys: case.keys,
            popularity: case.popularity.name(),
            connections: case.concurrency.connections,
            in_flight: case.concurrency.in_flight,
            per_second: answers as f64 / outcome.elapsed.as_secs_f64(),
            p50_us: latencies.value_at_quantile(0.5),
            p99_us: latencies.value_at_quantile(0.99),
            p999_us: latencies.value_at_quantile(0.999),
            max_us: latencies.max(),
            refused: outcome.refused,
            first_refusal: outcome.first_refusal.clone(),
            server_cpu_seconds_per_million: outcome
                .servers
                .iter()
                .map(|server| per_million(server.cpu.as_secs_f64()))
                .collect(),
            load_cpu_seconds_per_million: per_million(outcome.load_cpu.as_secs_f64()),
            others_percent: 100.0 * outcome.others_cpu.as_secs_f64()
                / outcome.elapsed.as_secs_f64()
                / cores().max(1) as f64,
            peak_bytes: outcome.servers.iter().map(|server| server.peak_bytes).collect(),
            written_per_stored: is_write_only.then(|| written as f64 / stored),
            histogram: compact(latencies).unwrap_or_default(),
        }
    }

    pub(super) const fn concurrency(&self) -> Concurrency {
        self.case.concurrency
    }

    /// Connections × requests in flight on each.
    pub(super) fn concurrency_name(&self) -> String {
        format!("{} × {}", self.connections, self.in_flight)
    }

    fn cells(&self) -> [String; 15] {
        let cpu: f64 = self.server_cpu_seconds_per_million.iter().sum();
        let each: Vec<_> = self.server_cpu_seconds_per_million.iter().map(|cpu| format!("{cpu:.1}")).collect();
        let peak: u64 = self.peak_bytes.iter().sum();
        let known = |text: String| if self.peak_bytes.is_empty() { "–".to_owned() } else { text };
        [
            self.system.clone(),
            self.protocol.to_owned(),
            self.workload.name().to_owned(),
            format!("{} {}", thousands(self.keys), &self.popularity[..4]),
            self.concurrency_name(),
            thousands(self.per_second.round() as u64),
            milliseconds(self.p50_us),
            milliseconds(self.p99_us),
            milliseconds(self.p999_us),
            milliseconds(self.max_us),
            known(if each.len() > 1 { format!("{cpu:.1} = {}", each.join(" + ")) } else { format!("{cpu:.1}") }),
            format!("{:.1}", self.load_cpu_seconds_per_million),
            known(format!("{:.0} %", self.others_percent)),
            known(format!("{:.0}", peak as f64 / MIB)),
            self.written_per_stored.map_or_else(|| "–".to_owned(), |written| format!("{written:.1}")),
        ]
    }
}

fn compact(latencies: &Histogram<u64>) -> Result<Vec<(u64, u64)>> {
    let mut coarse = Histogram::<u64>::new_with_bounds(1, latencies.high(), HISTOGRAM_DIGITS)?;
    coarse.add(latencies)?;
    Ok(coarse.iter_recorded().map(|at| (at.value_iterated_to(), at.count_since_last_iteration())).collect())
}

impl Report {
    pub(super) const fn new(value_bytes: usize, seconds: f64) -> Self {
        Self { rows: Vec::new(), notes: Vec::new(), value_bytes, seconds }
    }

    /// Adds a row, and prints its throughput at once: a run takes a while.
    pub(super) fn add(&mut self, row: Row) {
        let (concurrency, rate) = (row.concurrency_name(), thousands(row.per_second.round() as u64));
        println!("{} {} {} {concurrency}: {rate}/s", row.system, row.protocol, row.workload.name());
        self.rows.push(row);
    }

    pub(super) fn note(&mut self, note: String) {
        println!("{note}");
        self.notes.push(note);
    }

    pub(super) fn print(&self) {
        if !self.rows.is_empty() {
            self.print_rows();
        }
        for row in self.rows.iter().filter(|row| row.refused > 0) {
            let why = row.first_refusal.as_deref().unwrap_or("");
            let concurrency = row.concurrency_name();
            println!(
                "refused by {}, {} {concurrency}: {} times, first: {why}",
                row.system,
                row.workload.name(),
                row.refused
            );
        }
        ratios::print(&self.rows);
        for note in &self.notes {
            println!("{note}");
        }
    }

    fn print_rows(&self) {
        let (bytes, seconds, cores) = (self.value_bytes, self.seconds, cores());
        println!(
            "\n{bytes}-byte values, {seconds} s per row; load and servers share {cores} cores. Latencies in milliseconds, \
             CPU in seconds per million responses, OTHERS is the CPU share of other processes, memory in MiB, \
             WRITTEN in bytes per byte of a value.\n"
        );
        let mut table = table(&[
            "SYSTEM",
            "PROTOCOL",
            "WORKLOAD",
            "KEYS",
            "IN FLIGHT",
            "PER SECOND",
            "P50",
            "P99",
            "P99.9",
            "MAX",
            "CPU",
            "LOAD CPU",
            "OTHERS",
            "PEAK",
            "WRITTEN",
        ]);
        for row in &self.rows {
            table.add_row(row.cells());
        }
        println!("{}", aligned(&mut table, 4));
    }

    /// The report as JSON, one row per line.
    pub(super) fn to_json(&self) -> Result<String> {
        let (value_bytes, seconds, cores) = (self.value_bytes, self.seconds, cores());
        let mut json = format!("{{\"cores\":{cores},\"value_bytes\":{value_bytes},\"seconds\":{seconds},\"rows\":[");
        for (i, row) in self.rows.iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            write!(json, "{comma}\n{}", serde_json::to_string(row)?)?;
        }
        writeln!(json, "\n],\"notes\":{}}}", serde_json::to_string(&self.notes)?)?;
        Ok(json)
    }
}

fn cores() -> usize {
    thread::available_parallelism().map_or(0, usize::from)
}

/// An empty table in the common style.
pub(super) fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING);
    table.set_header(header);
    table
}

/// The table as text, with its columns from `first` on right-aligned.
pub(super) fn aligned(table: &mut Table, first: usize) -> String {
    for column in table.column_iter_mut().skip(first) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.trim_fmt()
}

fn milliseconds(us: u64) -> String {
    format!("{:.2}", us as f64 / 1_000.0)
}

/// A number with thousands separators.
pub(super) fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_separated() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(thousands), ["0", "999", "1,000", "1,234,567"]);
    }

    #[test]
    fn a_compact_histogram_loses_no_response() {
        let mut latencies = Histogram::new_with_bounds(1, 60_000_000, 3).expect("bounds");
        for us in 1..10_000 {
            latencies.saturating_record(us);
        }
        let compact = compact(&latencies).expect("narrower bounds");
        assert_eq!(compact.iter().map(|(_, count)| count).sum::<u64>(), 9_999);
        assert!(compact.len() < 200 && compact.is_sorted(), "{} buckets", compact.len());
    }
}
