//! Draws operations as bars over time, one row per client.
//!
//! The axis is not to scale: it has a column for each time of a call or return, as wide as the texts need.

use std::{
    collections::BTreeMap,
    fmt::{self, Display, Formatter},
};

use crate::operation::{Operation, Outcome};

/// Maximum operations drawn as bars. More are listed one per line.
const BARS_MAX: usize = 60;
/// Maximum operations listed; earlier ones are omitted.
const LINES_MAX: usize = 200;

/// Displays operations as a timeline: `├ put x "1" ┤` from invocation to return; `┄` where the outcome is
/// unknown.
#[derive(Debug, Clone, Copy)]
pub struct Timeline<'a> {
    operations: &'a [Operation],
    until: u64,
}

/// One operation on its row.
struct Bar {
    call: usize,
    /// `None`: the bar is open at its right end.
    ret: Option<usize>,
    text: String,
}

impl<'a> Timeline<'a> {
    /// A timeline of these operations.
    #[must_use]
    pub fn new(operations: &'a [Operation]) -> Self {
        Self { operations, until: u64::MAX }
    }

    /// Ends the timeline at this time: later returns are not shown.
    #[must_use]
    pub fn until(self, until: u64) -> Self {
        Self { until, ..self }
    }

    fn ret(&self, operation: &Operation) -> Option<u64> {
        operation.ret.filter(|ret| *ret <= self.until && operation.outcome != Outcome::Unknown)
    }

    /// The columns of all times of calls and returns.
    fn columns(&self) -> BTreeMap<u64, usize> {
        let mut ends: BTreeMap<u64, Vec<&Operation>> = BTreeMap::new();
        for operation in self.operations {
            ends.entry(operation.call).or_default();
            if let Some(ret) = self.ret(operation) {
                ends.entry(ret).or_default().push(operation);
            }
        }
        let mut columns: BTreeMap<u64, usize> = BTreeMap::new();
        let mut free = 0;
        for (time, returning) in &ends {
            let mut column = free;
            for operation in returning {
                let width = operation.to_string().chars().count() + 3;
                column = column.max(columns.get(&operation.call).copied().unwrap_or(column) + width);
            }
            columns.insert(*time, column);
            // Labels on the axis must not overlap.
            free = column + time.to_string().len() + 1;
        }
        columns
    }

    /// Rows of bars that do not overlap, in order of clients; a client that pipelines has several rows.
    fn rows(&self, columns: &BTreeMap<u64, usize>) -> Vec<(u64, Vec<Bar>)> {
        let mut by_client: BTreeMap<u64, Vec<&Operation>> = BTreeMap::new();
        for operation in self.operations {
            by_client.entry(operation.client).or_default().push(operation);
        }
        let mut rows = Vec::new();
        for (client, mut operations) in by_client {
            operations.sort_by_key(|operation| operation.call);
            let first = rows.len();
            for operation in operations {
                let text = operation.to_string();
                let ret = self.ret(operation).and_then(|ret| columns.get(&ret).copied());
                let bar = Bar { call: columns.get(&operation.call).copied().unwrap_or_default(), ret, text };
                let free = rows[first..].iter_mut().find(|(_, bars): &&mut (u64, Vec<Bar>)| {
                    bars.last().is_none_or(|last| last.ret.is_some_and(|ret| ret < bar.call))
                });
                match free {
                    Some((_, bars)) => bars.push(bar),
                    None => rows.push((client, vec![bar])),
                }
            }
        }
        rows
    }

    fn list(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let mut operations: Vec<&Operation> = self.operations.iter().collect();
        operations.sort_by_key(|operation| operation.call);
        let hidden = operations.len().saturating_sub(LINES_MAX);
        if hidden > 0 {
            writeln!(f, "({hidden} operations before these)")?;
        }
        for operation in &operations[hidden..] {
            let ret = self.ret(operation).map_or("…".to_owned(), |ret| ret.to_string());
            writeln!(f, "client {:<4} {:>10} – {ret:<10} {operation}", operation.client, operation.call)?;
        }
        Ok(())
    }
}

impl Display for Timeline<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if self.operations.len() > BARS_MAX {
            return self.list(f);
        }
        let columns = self.columns();
        let rows = self.rows(&columns);
        let open = rows.iter().flat_map(|(_, bars)| bars).filter(|bar| bar.ret.is_none());
        let end = open.map(|bar| bar.call + bar.text.chars().count() + 4);
        let end = end.chain(columns.values().map(|column| column + 1)).max().unwrap_or_default();
        let title = |client: &u64| format!("client {client}");
        let margin = rows.iter().map(|(client, _)| title(client).len()).max().unwrap_or_default();
        let mut before = None;
        for (client, bars) in &rows {
            let shown = if before == Some(client) { String::new() } else { title(client) };
            before = Some(client);
            write!(f, "{shown:<margin$}  ")?;
            let mut at = 0;
            for bar in bars {
                write!(f, "{:pad$}", "", pad = bar.call.saturating_sub(at))?;
                let (fill, stop) = if bar.ret.is_some() { ('─', "┤") } else { ('┄', "┄") };
                let until = bar.ret.unwrap_or(end);
                let text = bar.text.chars().count();
                write!(f, "├ {} ", bar.text)?;
                for _ in bar.call + text + 3..until {
                    write!(f, "{fill}")?;
                }
                f.write_str(stop)?;
                at = until + 1;
            }
            writeln!(f)?;
        }
        write!(f, "{:margin$}  ", "")?;
        let mut at = 0;
        for (time, column) in &columns {
            write!(f, "{:pad$}{time}", "", pad = column.saturating_sub(at))?;
            at = column.max(&at) + time.to_string().len();
        }
        writeln!(f)
    }
}
