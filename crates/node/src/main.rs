//! The binary `flotilla`: `start` runs a node, the other verbs are clients of a running cluster.

mod cli;
mod evidence;
mod start;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};

/// A distributed, replicated key-value store
#[derive(Debug, Parser)]
#[command(name = "flotilla", version, arg_required_else_help = true)]
struct Cli {
    #[command(flatten)]
    options: cli::ClientOptions,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a node until SIGTERM, SIGHUP or Ctrl-C
    #[command(after_help = start::EXIT_CODES_HELP)]
    Start(Box<start::StartArgs>),
    #[command(flatten)]
    Client(cli::ClientCommand),
}

/// The global allocator. Writes make many small allocations that another thread frees, for which the system's
/// allocator takes locks. Tests use an allocator that counts.
#[cfg(not(test))]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let Cli { options, command } = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return cli::refuse(&error, std::env::args_os()),
    };
    match command {
        Command::Start(args) => start::run(*args),
        Command::Client(command) => cli::run(command, &options, Cli::command()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_opens_with_a_sentence_for_users() {
        let mut cli = Cli::command();
        assert!(cli.render_long_help().to_string().starts_with("A distributed, replicated key-value store\n"));
        let start = cli.find_subcommand_mut("start").expect("the subcommand");
        assert!(start.render_help().to_string().contains("77  it was removed from the cluster"));
        assert!(start.render_long_help().to_string().starts_with("Run a node until SIGTERM, SIGHUP or Ctrl-C\n"));
    }
}
