//! Client and operator verbs: one call or a few to a running cluster, then out.
//!
//! Data goes to stdout, everything else to stderr. Exit codes: 0 done, 1 failed, 2 usage, 3 not found, 4 unavailable.
//! Deliberately absent: anything that starts a node or reads a data folder.

mod cluster;
mod collections;
mod digests;
mod events;
mod failure;
mod kv;
mod nodes;
mod output;
mod settings;
mod tokens;
mod transfer;

use std::{process::ExitCode, time::Duration};

use clap::{Args, Subcommand, ValueEnum};
use clap_complete::Shell;
use flotilla_client::Client;

use failure::Failure;
use output::Output;

/// Where the cluster is and how to print. Goes to the top of the command line; each verb accepts it, too.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Client options")]
pub(crate) struct ClientOptions {
    /// HTTP endpoints of nodes, separated by commas; the next one is asked when one does not answer
    #[arg(
        long,
        global = true,
        env = "FLOTILLA_ADDR",
        value_name = "URL,…",
        value_delimiter = ',',
        default_value = "http://127.0.0.1:7111"
    )]
    addr: Vec<String>,
    /// How to print
    #[arg(short, long, global = true, value_enum, default_value_t)]
    output: Format,
    /// How long the cluster may take for one call, at most 60s
    #[arg(long, global = true, value_name = "DURATION", value_parser = humantime::parse_duration, default_value = "5s")]
    timeout: Duration,
}

/// How to print.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people
    #[default]
    Table,
    /// For programs
    Json,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub(crate) enum ClientCommand {
    /// How the cluster is, as one node sees it; works without a quorum
    Status,
    /// The nodes
    Nodes,
    /// The shards, their leaders and replicas
    Shards,
    /// What the replicas hold, as one number each: name every node with --addr; fails when two differ
    Digests,
    /// Read and write records
    #[command(subcommand)]
    Kv(kv::KvCommand),
    /// Collections of records
    #[command(subcommand)]
    Collection(collections::CollectionCommand),
    /// Tokens that let nodes join
    #[command(subcommand)]
    Token(tokens::TokenCommand),
    /// Settings of the whole cluster
    #[command(subcommand)]
    Setting(settings::SettingCommand),
    /// Drain or remove a node
    #[command(subcommand)]
    Node(nodes::NodeCommand),
    /// What happened in the cluster, as one node saw it
    Events(events::Arguments),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
}

/// Runs a verb. `cli` is the whole command line, for completions.
pub(crate) fn run(command: ClientCommand, options: &ClientOptions, mut cli: clap::Command) -> ExitCode {
    if let ClientCommand::Completions { shell } = command {
        let mut script = Vec::new();
        let name = cli.get_name().to_owned();
        clap_complete::generate(shell, &mut cli, name, &mut script);
        return exit(Output::new(options.output).bytes(&script));
    }
    let done = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("cannot start the runtime: {error}")))
        .and_then(|runtime| runtime.block_on(dispatch(command, options)));
    exit(done)
}

fn exit(done: Result<(), Failure>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

async fn dispatch(command: ClientCommand, options: &ClientOptions) -> Result<(), Failure> {
    let output = Output::new(options.output);
    let client =
        Client::new(flotilla_client::ClientOptions { endpoints: options.addr.clone(), timeout: options.timeout })?;
    match command {
        ClientCommand::Status => cluster::status(&client, output).await,
        ClientCommand::Nodes => cluster::nodes(&client, output).await,
        ClientCommand::Shards => cluster::shards(&client, output).await,
        ClientCommand::Digests => digests::run(options, output).await,
        ClientCommand::Kv(command) => kv::run(command, &client, output).await,
        ClientCommand::Collection(command) => collections::run(command, &client, output).await,
        ClientCommand::Token(command) => tokens::run(command, &client, output).await,
        ClientCommand::Setting(command) => settings::run(command, &client, output).await,
        ClientCommand::Node(command) => nodes::run(command, &client, &options.addr, output).await,
        ClientCommand::Events(arguments) => events::run(&arguments, &client, output).await,
        ClientCommand::Completions { .. } => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory as _, Parser};

    use super::*;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        options: ClientOptions,
        #[command(subcommand)]
        command: ClientCommand,
    }

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn endpoints_and_format_may_stand_before_or_after_the_verb() {
        for line in ["flotilla --addr a:1,b:2 -o json kv get k", "flotilla kv get k --addr a:1,b:2 -o json"] {
            let cli = Cli::try_parse_from(line.split(' ')).expect(line);
            assert_eq!(
                (&cli.options.addr[..], cli.options.output),
                (&["a:1".to_owned(), "b:2".to_owned()][..], Format::Json)
            );
        }
    }

    #[test]
    fn an_import_needs_exactly_one_source() {
        for (line, fits) in [
            ("flotilla kv import --dir d", true),
            ("flotilla kv import f.jsonl --jobs 4", true),
            ("flotilla kv import", false),
            ("flotilla kv import f.jsonl --dir d", false),
            ("flotilla kv import f.jsonl --jobs 0", false),
        ] {
            assert_eq!(Cli::try_parse_from(line.split(' ')).is_ok(), fits, "{line}");
        }
    }
}
