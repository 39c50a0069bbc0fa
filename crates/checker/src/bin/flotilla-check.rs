//! Judges a history in JSON lines and draws the part that fails.
//!
//! Only a history for which an order was found exits with 0: neither an unknown verdict nor an unreadable file is a pass.

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
/// Also what the command line's parser exits with.
const UNKNOWN: u8 = 2;

/// Judge whether a recorded history is linearizable
#[derive(Parser)]
#[command(after_help = "Exit codes: 0 linearizable; 1 not linearizable; 2 unknown because the bounds were reached, \
                        or the history is unreadable or makes no sense")]
struct Arguments {
    /// The history: one operation per line, as JSON; `-` is standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Operations to look at before giving up
    #[arg(long, value_name = "N", default_value_t = Budget::default().steps)]
    steps: u64,
}

fn main() -> ExitCode {
    match judge(&Arguments::parse()) {
        Ok((text, code)) => {
            // Whoever closed the pipe has read enough; the exit code still tells.
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
        Verdict::Unknown => (format!("unknown: the bounds were reached with {judged} operations"), UNKNOWN),
    })
}
