//! Judges a history in JSON lines: `flotilla-check [--steps N] [history.jsonl]`, or standard input.
//!
//! Exit codes: 0 linearizable, 1 not, 2 usage or a malformed history, 3 unknown because the steps were used up.

use std::{
    fmt::Display,
    fs::File,
    io::{self, BufReader, Write},
    process::ExitCode,
};

use flotilla_checker::{Budget, Operation, ReadError, Verdict, check, read_json_lines};

const USAGE: &str = "usage: flotilla-check [--steps N] [history.jsonl]";

fn main() -> ExitCode {
    match judge(std::env::args_os().skip(1)) {
        Ok((text, code)) => {
            // Whoever closed the pipe has read enough; the exit code still tells.
            let _ = writeln!(io::stdout(), "{text}");
            ExitCode::from(code)
        }
        Err(text) => {
            let _ = writeln!(io::stderr(), "flotilla-check: {text}");
            ExitCode::from(2)
        }
    }
}

fn judge(arguments: impl Iterator<Item = std::ffi::OsString>) -> Result<(String, u8), String> {
    let mut budget = Budget::default();
    let mut path = None;
    let mut arguments = arguments;
    while let Some(argument) = arguments.next() {
        if argument == "--steps" {
            let steps = arguments.next().and_then(|steps| steps.to_str()?.parse().ok());
            budget.steps = steps.ok_or(USAGE)?;
        } else if argument == "--help" {
            return Ok((USAGE.to_owned(), 0));
        } else if argument.to_string_lossy().starts_with("--") || path.replace(argument).is_some() {
            return Err(USAGE.to_owned());
        }
    }
    let history = match &path {
        Some(path) => {
            let file = File::open(path).map_err(|error| format!("{}: {error}", path.display()))?;
            read(BufReader::new(file))?
        }
        None => read(io::stdin().lock())?,
    };
    let judged = history.len();
    Ok(match check(&history, &budget).map_err(text)? {
        Verdict::Linearizable => (format!("linearizable: {judged} operations"), 0),
        Verdict::NotLinearizable(witness) => (format!("not linearizable: {judged} operations\n\n{witness}"), 1),
        Verdict::Unknown => (format!("unknown: {} steps were not enough for {judged} operations", budget.steps), 3),
    })
}

fn read(source: impl io::BufRead) -> Result<Vec<Operation>, String> {
    read_json_lines(source).map_err(|error: ReadError| text(error))
}

fn text(error: impl Display) -> String {
    error.to_string()
}
