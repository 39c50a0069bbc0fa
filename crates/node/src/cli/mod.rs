//! Client and operator verbs: each makes one or a few calls to a running cluster and exits.
//!
//! Data goes to stdout, everything else to stderr. Exit codes: 0 done, 1 failed, 2 usage, 3 not found, 4
//! unavailable. Deliberately absent: anything that starts a node or reads a data folder.

mod authority;
mod cluster;
mod collections;
mod confirm;
mod digests;
mod events;
mod evidence;
mod failure;
mod keys;
mod kv;
mod nodes;
mod operations;
mod output;
mod scrub;
mod settings;
mod shard;
mod tokens;
mod transfer;
mod upgrade;
mod values;

use std::{ffi::OsString, fs, path::PathBuf, process::ExitCode, time::Duration};

use clap::{Args, Subcommand, ValueEnum};
use clap_complete::Shell;
use flotilla_client::Client;

use failure::Failure;
use output::Output;

// Options of every client verb, before or after the verb. No doc comment: clap would show it as the help of
// `flotilla`.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Client options")]
pub(crate) struct ClientOptions {
    /// HTTP endpoints of nodes, comma-separated; the next one is tried if one does not answer
    #[arg(
        long,
        global = true,
        env = "FLOTILLA_ADDR",
        value_name = "URL,…",
        value_delimiter = ',',
        default_value = "http://127.0.0.1:7111"
    )]
    addr: Vec<String>,
    /// Client key, if the cluster needs one
    // Some verbs have an argument `key`.
    #[arg(
        id = "client_key",
        long = "key",
        global = true,
        env = "FLOTILLA_KEY",
        value_name = "KEY",
        hide_env_values = true
    )]
    key: Option<String>,
    /// The authority that signed the nodes' certificates (PEM): `ca.pem` in the data folder of any node
    #[arg(long, global = true, env = "FLOTILLA_CA", value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Output format
    #[arg(short, long, global = true, value_enum, default_value_t)]
    output: Format,
    /// Timeout of one call to the cluster, at most 60s
    #[arg(long, global = true, value_name = "DURATION", value_parser = humantime::parse_duration, default_value = "5s")]
    timeout: Duration,
}

impl ClientOptions {
    /// The options of a client of these endpoints.
    fn for_endpoints(&self, endpoints: Vec<String>) -> Result<flotilla_client::ClientOptions, Failure> {
        let read = |path: &PathBuf| fs::read(path).map_err(|error| Failure::io(path.display(), &error));
        Ok(flotilla_client::ClientOptions {
            key: self.key.clone(),
            authority: self.ca.as_ref().map(read).transpose()?,
            timeout: self.timeout,
            ..flotilla_client::ClientOptions::new(endpoints)
        })
    }
}

/// The output format.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Human-readable tables
    #[default]
    Table,
    /// JSON
    Json,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub(crate) enum ClientCommand {
    /// Show the cluster's status as one node sees it; works without a quorum
    Status,
    /// List the nodes
    Nodes,
    /// List the shards with their leaders and replicas
    Shards,
    /// Whether the replicas of each shard are equal, by comparisons that their leaders make all the time. Exit
    /// code 0: equal; 1: two differ; 4: inconclusive
    Digests(digests::Arguments),
    /// Read and write records
    #[command(subcommand)]
    Kv(kv::KvCommand),
    /// Create, list and drop collections
    #[command(subcommand)]
    Collection(collections::CollectionCommand),
    /// Create, list and revoke join tokens
    #[command(subcommand)]
    Token(tokens::TokenCommand),
    /// Create, list and revoke client keys
    #[command(subcommand)]
    Key(keys::KeyCommand),
    /// Show and change settings of the whole cluster
    #[command(subcommand)]
    Setting(settings::SettingCommand),
    /// Drain nodes, let them leave, remove them
    #[command(subcommand)]
    Node(nodes::NodeCommand),
    /// Split shards, move their replicas, explain where they are, have that planned anew, and show what was decided
    #[command(subcommand)]
    Shard(shard::ShardCommand),
    /// Show what changes shards now, pause or resume moves of replicas and splits, and cancel moves
    #[command(subcommand)]
    Operation(operations::OperationCommand),
    /// Show how the nodes read their stored objects again to find damage, or begin a pass now
    Scrub(scrub::Arguments),
    /// Show and raise the cluster version, after all nodes run a new binary
    #[command(subcommand)]
    Upgrade(upgrade::UpgradeCommand),
    /// Show and replace the authority that certifies the nodes
    #[command(subcommand)]
    Authority(authority::AuthorityCommand),
    /// Show recent events of the cluster as one node saw them
    Events(events::Arguments),
    /// Show and remove the records of replicas that a node of this machine gave up because they differ from others
    Evidence(evidence::Arguments),
    /// Show who changed the cluster through one node, and which tries were refused
    Audit(events::Arguments),
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
        return exit(Output::new(options.output).bytes(&script), options.output);
    }
    let done = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("cannot start the runtime: {error}")))
        .and_then(|runtime| runtime.block_on(dispatch(command, options)));
    exit(done, options.output)
}

fn exit(done: Result<(), Failure>, format: Format) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(format),
    }
}

/// Ends the process because the command line cannot be used; help and version are no such case. As other
/// failures, it is JSON if that was asked for, as far as a command line that does not parse says so.
pub(crate) fn refuse(error: &clap::Error, arguments: impl Iterator<Item = OsString>) -> ExitCode {
    if !error.use_stderr() || !asks_for_json(arguments) {
        error.exit();
    }
    let text = error.to_string();
    Failure::usage(text.trim_end().trim_start_matches("error: ")).report(Format::Json)
}

fn asks_for_json(arguments: impl Iterator<Item = OsString>) -> bool {
    let mut is_format = false;
    arguments.skip(1).any(|argument| {
        let argument = argument.to_string_lossy().into_owned();
        let is_value = std::mem::replace(&mut is_format, matches!(argument.as_str(), "-o" | "--output"));
        is_value && argument == "json" || matches!(argument.as_str(), "-ojson" | "-o=json" | "--output=json")
    })
}

async fn dispatch(command: ClientCommand, options: &ClientOptions) -> Result<(), Failure> {
    let output = Output::new(options.output);
    let client = Client::new(options.for_endpoints(options.addr.clone())?)?;
    match command {
        ClientCommand::Status => cluster::status(&client, output).await,
        ClientCommand::Nodes => cluster::nodes(&client, output).await,
        ClientCommand::Shards => cluster::shards(&client, output).await,
        ClientCommand::Digests(arguments) => digests::run(&arguments, &client, options, output).await,
        ClientCommand::Evidence(arguments) => evidence::run(&arguments, output),
        ClientCommand::Kv(command) => kv::run(command, &client, output).await,
        ClientCommand::Collection(command) => collections::run(command, &client, output).await,
        ClientCommand::Token(command) => tokens::run(command, &client, output).await,
        ClientCommand::Key(command) => keys::run(command, &client, output).await,
        ClientCommand::Setting(command) => settings::run(command, &client, output).await,
        ClientCommand::Node(command) => nodes::run(command, &client, options, output).await,
        ClientCommand::Shard(command) => shard::run(command, &client, output).await,
        ClientCommand::Operation(command) => operations::run(command, &client, output).await,
        ClientCommand::Scrub(arguments) => scrub::run(&arguments, &client, output).await,
        ClientCommand::Upgrade(command) => upgrade::run(command, &client, output).await,
        ClientCommand::Authority(command) => authority::run(command, &client, output).await,
        ClientCommand::Events(arguments) => events::run(events::Log::Events, &arguments, &client, output).await,
        ClientCommand::Audit(arguments) => events::run(events::Log::Audit, &arguments, &client, output).await,
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
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn endpoints_and_format_are_accepted_before_and_after_the_verb() {
        for line in ["flotilla --addr a:1,b:2 -o json kv get k", "flotilla kv get k --addr a:1,b:2 -o json"] {
            let cli = Cli::try_parse_from(line.split(' ')).expect(line);
            assert_eq!(
                (&cli.options.addr[..], cli.options.output),
                (&["a:1".to_owned(), "b:2".to_owned()][..], Format::Json)
            );
        }
    }

    #[test]
    fn json_is_asked_for_in_every_form_of_the_option() {
        for (line, asks) in [
            ("flotilla -o json nope", true),
            ("flotilla nope --output json", true),
            ("flotilla nope --output=json", true),
            ("flotilla -ojson nope", true),
            ("flotilla kv put json -o table", false),
            ("flotilla -o", false),
            ("json", false),
        ] {
            assert_eq!(asks_for_json(line.split(' ').map(OsString::from)), asks, "{line}");
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
