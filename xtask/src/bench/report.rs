//! The figures, as a table and as JSON.

use std::thread;

use anyhow::Result;
use comfy_table::{CellAlignment, Table, presets::NOTHING};
use serde::Serialize;

use super::load::{Operation, Outcome, Shape};

/// All rows of one run.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    cores: usize,
    connections: usize,
    in_flight: usize,
    value_bytes: usize,
    keys: u64,
    seconds: f64,
    rows: Vec<Row>,
    notes: Vec<String>,
}

/// One server, one operation. Latencies are in microseconds.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    server: String,
    protocol: &'static str,
    operation: &'static str,
    per_second: f64,
    p50_us: u64,
    p99_us: u64,
    p999_us: u64,
    max_us: u64,
    refused: u64,
    first_refusal: Option<String>,
}

impl Row {
    pub(super) fn new(server: &str, protocol: &'static str, operation: Operation, outcome: &Outcome) -> Self {
        let latencies = &outcome.latencies;
        Self {
            server: server.to_owned(),
            protocol,
            operation: operation.name(),
            per_second: latencies.len() as f64 / outcome.elapsed.as_secs_f64(),
            p50_us: latencies.value_at_quantile(0.5),
            p99_us: latencies.value_at_quantile(0.99),
            p999_us: latencies.value_at_quantile(0.999),
            max_us: latencies.max(),
            refused: outcome.refused,
            first_refusal: outcome.first_refusal.clone(),
        }
    }
}

impl Report {
    pub(super) fn new(shape: &Shape) -> Self {
        Self {
            cores: thread::available_parallelism().map_or(0, usize::from),
            connections: shape.connections,
            in_flight: shape.in_flight,
            value_bytes: shape.value_bytes,
            keys: shape.keys,
            seconds: shape.time.as_secs_f64(),
            rows: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// Adds a row, and shows it at once: a run takes a while.
    pub(super) fn add(&mut self, row: Row) {
        println!("{} {} {}: {:.0}/s", row.server, row.protocol, row.operation, row.per_second);
        self.rows.push(row);
    }

    pub(super) fn note(&mut self, note: &str) {
        self.notes.push(note.to_owned());
    }

    pub(super) fn print(&self) {
        let Self { cores, connections, in_flight, value_bytes, keys, seconds, .. } = self;
        println!(
            "\n{connections} connections × {in_flight} in flight, {value_bytes}-byte values, {keys} keys, {seconds} s per row, load and servers on the same {cores} cores\n"
        );
        let mut table = Table::new();
        table.load_style(NOTHING);
        table.set_header(["SERVER", "PROTOCOL", "OPERATION", "PER SECOND", "P50", "P99", "P99.9", "MAX", "REFUSED"]);
        for row in &self.rows {
            table.add_row([
                row.server.clone(),
                row.protocol.to_owned(),
                row.operation.to_owned(),
                format!("{:.0}", row.per_second),
                milliseconds(row.p50_us),
                milliseconds(row.p99_us),
                milliseconds(row.p999_us),
                milliseconds(row.max_us),
                row.refused.to_string(),
            ]);
        }
        for column in table.column_iter_mut().skip(3) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        println!("{}", table.trim_fmt());
        for (row, other) in self.pairs() {
            let ratio = row.per_second / other.per_second;
            println!("{} {} over {}: {ratio:.2}", row.server, row.operation, other.server);
        }
        for row in &self.rows {
            if let Some(refusal) = &row.first_refusal {
                println!("{} {} refused: {refusal}", row.server, row.operation);
            }
        }
        for note in &self.notes {
            println!("{note}");
        }
    }

    /// What Flotilla does over the Redis protocol, and the same operation elsewhere.
    fn pairs(&self) -> impl Iterator<Item = (&Row, &Row)> {
        let own = self.rows.iter().filter(|row| row.server.starts_with("flotilla") && row.protocol == "redis");
        own.flat_map(|row| {
            let same = move |other: &&Row| other.operation == row.operation && !other.server.starts_with("flotilla");
            self.rows.iter().filter(same).map(move |other| (row, other))
        })
    }

    pub(super) fn to_json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }
}

fn milliseconds(us: u64) -> String {
    format!("{:.2} ms", us as f64 / 1_000.0)
}
