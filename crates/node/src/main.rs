//! `flotilla`: a distributed, replicated store in one binary.

mod cli;
mod start;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};

/// A distributed, replicated key-value store
#[derive(Debug, Parser)]
#[command(name = "flotilla", version, about, long_about = None, arg_required_else_help = true)]
struct Cli {
    #[command(flatten)]
    options: cli::ClientOptions,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a node until SIGTERM or Ctrl-C
    Start(Box<start::StartArgs>),
    #[command(flatten)]
    Client(cli::ClientCommand),
}

/// Writes are many small allocations that are freed on another thread, where the system's allocator takes locks.
///
/// Tests bring an allocator that counts.
#[cfg(not(test))]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let Cli { options, command } = Cli::parse();
    match command {
        Command::Start(args) => start::run(*args),
        Command::Client(command) => cli::run(command, &options, Cli::command()),
    }
}
