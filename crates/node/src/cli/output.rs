//! Output to stdout: aligned tables without lines or colours, or JSON.

use std::{
    io::{self, IsTerminal as _, Write as _},
    time::{Duration, UNIX_EPOCH},
};

use comfy_table::{Table, presets::NOTHING};
use flotilla_types::{escape_hidden, is_printable};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::{Format, failure::Failure};

/// Longest table cell, in characters.
const CELL_CHARS_MAX: usize = 60;

/// Where and how a verb prints its data.
#[derive(Debug, Clone, Copy)]
pub(super) struct Output {
    format: Format,
}

impl Output {
    pub(super) fn new(format: Format) -> Self {
        Self { format }
    }

    /// Whether the format is JSON.
    pub(super) fn is_json(self) -> bool {
        self.format == Format::Json
    }

    /// Whether stdout is a terminal.
    pub(super) fn is_terminal(self) -> bool {
        io::stdout().is_terminal()
    }

    /// Prints JSON, or the text that `text` makes of the value.
    pub(super) fn show<T: Serialize>(self, value: &T, text: impl FnOnce(&T) -> String) -> Result<(), Failure> {
        if self.is_json() { self.json(value) } else { self.line(&text(value)) }
    }

    /// Prints indented JSON.
    pub(super) fn json(self, value: &impl Serialize) -> Result<(), Failure> {
        let text = serde_json::to_string_pretty(value).map_err(|error| Failure::failed(error.to_string()))?;
        self.line(&json_escaped(&text))
    }

    /// Prints JSON on one line, for streams.
    pub(super) fn json_line(self, value: &impl Serialize) -> Result<(), Failure> {
        let text = serde_json::to_string(value).map_err(|error| Failure::failed(error.to_string()))?;
        self.line(&json_escaped(&text))
    }

    /// Prints one or more lines. Other control characters are escaped: names and messages were written by
    /// others.
    pub(super) fn line(self, text: &str) -> Result<(), Failure> {
        let mut lines = lines_escaped(text);
        lines.push('\n');
        self.bytes(lines.as_bytes())
    }

    /// Writes raw bytes.
    pub(super) fn bytes(self, bytes: &[u8]) -> Result<(), Failure> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(bytes).and_then(|()| stdout.flush()).map_err(|error| Failure::stdout(&error))
    }
}

/// A progress bar on stderr, in the format of `indicatif`; hidden if stderr is not a terminal.
pub(super) fn progress(template: &str, length: u64) -> ProgressBar {
    match ProgressStyle::with_template(template) {
        Ok(style) if io::stderr().is_terminal() => ProgressBar::new(length).with_style(style),
        Ok(_) | Err(_) => ProgressBar::hidden(),
    }
}

/// Formats an aligned table.
pub(super) fn table<const N: usize>(header: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(header);
    for row in rows {
        table.add_row(row.map(|cell| escape_hidden(&cell)));
    }
    table.trim_fmt()
}

/// Text as it may be printed: every control character but the ends of lines escaped.
pub(super) fn lines_escaped(text: &str) -> String {
    text.split('\n').map(escape_hidden).collect::<Vec<_>>().join("\n")
}

/// JSON as it may be printed: control characters that JSON allows in strings escaped as JSON does it.
pub(super) fn json_escaped(json: &str) -> String {
    let mut escaped = String::with_capacity(json.len());
    for char in json.chars() {
        if char == '\n' || is_printable(char.encode_utf8(&mut [0; 4])) {
            escaped.push(char);
        } else {
            escaped.push_str(&format!("\\u{:04x}", u32::from(char)));
        }
    }
    escaped
}

/// Formats bytes as a table cell: control characters escaped, long text truncated.
pub(super) fn cell(bytes: &[u8]) -> String {
    let head = &bytes[..bytes.len().min(4 * CELL_CHARS_MAX)];
    let escaped: String = String::from_utf8_lossy(head)
        .chars()
        .flat_map(|char| if char.is_control() { char.escape_default().collect() } else { vec![char] })
        .collect();
    if escaped.chars().count() <= CELL_CHARS_MAX && head.len() == bytes.len() {
        return escaped;
    }
    escaped.chars().take(CELL_CHARS_MAX - 1).chain(['…']).collect()
}

/// Formats an optional value; `-` if there is none.
pub(super) fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// Formats a time; `never` for one that the format cannot express.
pub(super) fn time(unix_ms: u64) -> String {
    /// The last second of the year 9999, the last that the format can express.
    const LAST_MS: u64 = 253_402_300_799_000;
    match UNIX_EPOCH.checked_add(Duration::from_millis(unix_ms)) {
        Some(time) if unix_ms <= LAST_MS => humantime::format_rfc3339_seconds(time).to_string(),
        _ => "never".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_escaped() {
        assert_eq!(cell(b"a\x1b[2Jb\n"), "a\\u{1b}[2Jb\\n");
        assert_eq!(cell("ü".as_bytes()), "ü");
    }

    #[test]
    fn nothing_that_others_wrote_is_obeyed_by_the_terminal() {
        let name = "n1\u{1b}]0;x\u{7}\n\u{9b}2J\u{202e}";
        let rows = table(["NAME"], [[name.to_owned()]]);
        assert!(rows.lines().count() == 2 && rows.lines().all(is_printable), "{rows:?}");
        assert!(lines_escaped(&format!("{name}\nnext")).lines().all(is_printable));
        let json = json_escaped(&serde_json::to_string(name).expect("JSON"));
        assert!(is_printable(&json), "{json:?}");
        assert_eq!(serde_json::from_str::<String>(&json).expect("JSON"), name);
    }

    #[test]
    fn a_long_value_is_truncated() {
        let cut = cell(&[b'x'; 5_000]);
        assert_eq!(cut.chars().count(), CELL_CHARS_MAX);
        assert!(cut.ends_with('…'));
    }
}
