//! Asks before something is destroyed.

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};

use clap::Args;

use super::{failure::Failure, output::lines_escaped};

// Options of destructive verbs. No doc comment: clap would show it as the help of the verb.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Confirmation {
    /// Do not ask; needed where there is no terminal
    #[arg(long)]
    yes: bool,
    /// Only show what would be done
    #[arg(long)]
    dry_run: bool,
}

impl Confirmation {
    pub(super) fn is_dry_run(self) -> bool {
        self.dry_run
    }

    /// Shows what will be done, and asks on a terminal. Returns whether to go on.
    ///
    /// # Errors
    /// There is no terminal and no `--yes`.
    pub(super) fn ask(self, plan: &str) -> Result<bool, Failure> {
        if self.yes && !self.dry_run {
            return Ok(true);
        }
        eprintln!("{}", lines_escaped(plan));
        if self.dry_run {
            return Ok(false);
        }
        if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
            return Err(Failure::usage("this needs a confirmation, and there is no terminal to ask on")
                .hint("Read the plan above, then repeat with --yes."));
        }
        eprint!("Go on? [y/N] ");
        let _ = io::stderr().flush();
        let mut answer = String::new();
        io::stdin().lock().read_line(&mut answer).map_err(|error| Failure::io("cannot read the answer", &error))?;
        if matches!(answer.trim(), "y" | "Y" | "yes") { Ok(true) } else { Err(Failure::failed("nothing was done")) }
    }
}
