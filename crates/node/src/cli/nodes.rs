//! `token create`, `node drain`, `node remove`.

use std::time::Duration;

use clap::Subcommand;
use flotilla_api::TokenRequest;
use flotilla_client::Client;
use flotilla_types::NodeId;
use serde_json::json;

use super::{failure::Failure, output::Output};

#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Mint a token that lets nodes join; it is shown once
    Create {
        /// How long it is good for
        #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, default_value = "1h")]
        ttl: Duration,
        /// How many nodes may join with it
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
        uses: u32,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum NodeCommand {
    /// Drain the node at --addr: its leaders move away and it asks for no new traffic
    Drain,
    /// Remove a node for ever
    Remove {
        /// Its id or name
        node: String,
        /// Also when it is alive or holds replicas
        #[arg(long)]
        force: bool,
    },
}

pub(super) async fn token(command: TokenCommand, client: &Client, output: Output) -> Result<(), Failure> {
    let TokenCommand::Create { ttl, uses } = command;
    let ttl_ms = u64::try_from(ttl.as_millis()).map_err(|_| Failure::usage("--ttl is too long"))?;
    let reply = client.create_token(&TokenRequest { ttl_ms: Some(ttl_ms), uses: Some(uses) }).await?;
    // The token alone, so that a script can take it as it is.
    output.show(&reply, |reply| reply.token.clone())
}

pub(super) async fn run(command: NodeCommand, client: &Client, addr: &[String], output: Output) -> Result<(), Failure> {
    match command {
        NodeCommand::Drain => {
            let [addr] = addr else {
                return Err(Failure::usage("name exactly one --addr: the node that is to drain"));
            };
            client.drain().await?;
            output.show(&json!({ "draining": addr }), |_| format!("{addr} is draining"))
        }
        NodeCommand::Remove { node, force } => {
            let id = resolve(client, &node).await?;
            client.remove_node(id, force).await?;
            output.show(&json!({ "removed": id }), |_| format!("removed {id}"))
        }
    }
}

/// A node by its name, or by its id. Names come first: the first node is often called `n1`, whatever its id.
async fn resolve(client: &Client, text: &str) -> Result<NodeId, Failure> {
    let nodes = client.status().await?.nodes;
    let mut named = nodes.iter().filter(|node| node.name == text);
    match (named.next(), named.next()) {
        (Some(node), None) => Ok(node.id),
        (Some(_), Some(_)) => {
            Err(Failure::usage(format!("several nodes are called `{text}`; give the id as a number")))
        }
        (None, _) => text
            .parse()
            .map_err(|_| Failure::not_found(format!("there is no node `{text}`")).hint("`flotilla nodes` shows them.")),
    }
}
