//! Histories as JSON lines: one operation per line. The README has the format.
//!
//! The reader rejects unknown fields and fields that the operation does not have: a misspelt condition would
//! otherwise be ignored. Empty lines are skipped. No content of a file causes a panic.

mod line;

use std::io::{self, BufRead, Write};

use crate::{json::line::Line, operation::Operation};

/// Bytes of one line, the end of line not counted.
pub const LINE_BYTES_MAX: usize = 16 << 20;

/// A history cannot be read. Lines count from 1.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The source itself failed.
    #[error("line {line} cannot be read")]
    Io {
        /// The line that was being read.
        line: usize,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A line is longer than [`LINE_BYTES_MAX`].
    #[error("line {line} is longer than {LINE_BYTES_MAX} bytes")]
    LineTooLong {
        /// Which one.
        line: usize,
    },
    /// A line is not JSON, or has a field of the wrong type or one that is not known.
    #[error("line {line} is not an operation: {source}")]
    Json {
        /// Which one.
        line: usize,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
    /// A line is not a valid operation.
    #[error("line {line}: {problem}")]
    Operation {
        /// Which one.
        line: usize,
        /// What is wrong.
        problem: Problem,
    },
}

/// What is wrong with an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// A required field is missing.
    #[error("the field `{0}` is missing")]
    Missing(&'static str),
    /// It has a field that the operation does not have.
    #[error("this operation has no field `{0}`")]
    Misplaced(&'static str),
    /// Bytes that are not base64.
    #[error("the field `{0}` is not base64")]
    NotBase64(&'static str),
    /// A batch may only put, delete, add and append.
    #[error("a batch cannot contain this operation")]
    NotAWrite,
    /// The operation cannot have this outcome.
    #[error("the outcome does not fit the operation")]
    Outcome,
    /// It returns before it is invoked.
    #[error("`ret` is before `call`")]
    ReturnsBeforeCall,
    /// It has an outcome but no time of return.
    #[error("the outcome is known but `ret` is missing")]
    NeverReturns,
}

/// Reads a history from JSON lines.
///
/// # Errors
///
/// At the first line that cannot be read; those before it are lost.
pub fn read_json_lines(mut source: impl BufRead) -> Result<Vec<Operation>, ReadError> {
    let mut operations = Vec::new();
    let mut bytes = Vec::new();
    for line in 1.. {
        bytes.clear();
        // One byte more for the end of line, and one to detect a line that is too long.
        let mut limited = io::Read::take(&mut source, LINE_BYTES_MAX as u64 + 2);
        let read = limited.read_until(b'\n', &mut bytes).map_err(|source| ReadError::Io { line, source })?;
        if read == 0 {
            break;
        }
        let text = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
        if text.len() > LINE_BYTES_MAX {
            return Err(ReadError::LineTooLong { line });
        }
        if text.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let parsed: Line = serde_json::from_slice(text).map_err(|source| ReadError::Json { line, source })?;
        operations.push(parsed.into_operation().map_err(|problem| ReadError::Operation { line, problem })?);
    }
    Ok(operations)
}

/// Writes a history as JSON lines, which [`read_json_lines`] reads as the same history if its operations are
/// valid.
///
/// # Errors
///
/// When the sink fails; it may have taken some lines, and a part of one.
pub fn write_json_lines(history: &[Operation], mut sink: impl Write) -> io::Result<()> {
    for operation in history {
        serde_json::to_writer(&mut sink, &Line::from_operation(operation))?;
        sink.write_all(b"\n")?;
    }
    sink.flush()
}
