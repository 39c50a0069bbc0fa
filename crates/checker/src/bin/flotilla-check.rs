//! Checks a history in JSON lines and draws the witness.
//!
//! The exit code is 0 only when an order was found: neither an unknown verdict nor an unreadable file is a
//! pass.

use std::{
    error::Error,
    fs::File,
    io::{self, BufReader, Write},
    path::PathBuf,
    process::ExitCode,
};

use clap::Parser;
use flotilla_checker::{Budget, Verdict, check, read_json_lines};

const LINEARIZABLE: u8 = 0;
const NOT_LINEARIZABLE: u8 = 1;
/// Also the exit code of the command-line parser.
const UNKNOWN: u8 = 2;

/// Check whether a recorded history is linearizable
#[derive(Parser)]
#[command(after_help = "Exit codes: 0 linearizable; 1 not linearizable; 2 unknown because the budget was used up, \
                        or the history is unreadable or invalid")]
struct Arguments {
    /// The history: one operation per line, as JSON; `-` is standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Steps of the search before giving up
    #[arg(long, value_name = "N", default_value_t = Budget::default().steps)]
    steps: u64,
}

fn main() -> ExitCode {
    match judge(&Arguments::parse()) {
        Ok((text, code)) => {
            // A closed pipe is not an error; the exit code still has the verdict.
            let _ = writeln!(io::stdout(), "{text}");
            ExitCode::from(code)
        }
        Err(error) => {
            let _ = writeln!(io::stderr(), "flotilla-check: {error}");
            ExitCode::from(UNKNOWN)
        }
    }
}

fn judge(arguments: &Arguments) -> Result<(String, u8), Box<dyn Error>> {
    let history = if arguments.file.as_os_str() == "-" {
        read_json_lines(io::stdin().lock())?
    } else {
        let file = File::open(&arguments.file).map_err(|error| format!("{}: {error}", arguments.file.display()))?;
        read_json_lines(BufReader::new(file))?
    };
    let (judged, budget) = (history.len(), Budget { steps: arguments.steps, ..Budget::default() });
    Ok(match check(&history, &budget)? {
        Verdict::Linearizable => (format!("linearizable: {judged} operations"), LINEARIZABLE),
        Verdict::NotLinearizable(witness) => {
            (format!("not linearizable: {judged} operations\n\n{witness}"), NOT_LINEARIZABLE)
        }
        Verdict::Unknown => (format!("unknown: the budget was used up with {judged} operations"), UNKNOWN),
    })
}
