//! `flotilla`: a distributed, replicated store in one binary.

mod start;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// A distributed, replicated key-value store.
#[derive(Debug, Parser)]
#[command(name = "flotilla", version, about, long_about = None, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a node until SIGTERM or Ctrl-C
    Start(Box<start::StartArgs>),
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Start(args) => start::run(*args),
    }
}
