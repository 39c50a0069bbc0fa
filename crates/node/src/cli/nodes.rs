//! `node drain`, `node remove`.

use clap::Subcommand;
use flotilla_client::Client;
use flotilla_types::NodeId;
use serde_json::json;

use super::{failure::Failure, output::Output};

#[derive(Debug, Subcommand)]
pub(crate) enum NodeCommand {
    /// Drain the node at --addr: its leaderships move to other nodes and it reports itself as not ready
    Drain,
    /// Remove a node permanently
    Remove {
        /// Id or name of the node
        node: String,
        /// Remove it even if it is alive or holds replicas
        #[arg(long)]
        force: bool,
    },
}

pub(super) async fn run(command: NodeCommand, client: &Client, addr: &[String], output: Output) -> Result<(), Failure> {
    match command {
        NodeCommand::Drain => {
            let [addr] = addr else {
                return Err(Failure::usage("give exactly one --addr: the node to drain"));
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

/// Finds a node by name or id. Names take precedence, because a node named `n1` may have another id.
async fn resolve(client: &Client, text: &str) -> Result<NodeId, Failure> {
    let nodes = client.status().await?.nodes;
    let mut named = nodes.iter().filter(|node| node.name == text);
    match (named.next(), named.next()) {
        (Some(node), None) => Ok(node.id),
        (Some(_), Some(_)) => {
            Err(Failure::usage(format!("several nodes have the name `{text}`; give the id as a number")))
        }
        (None, _) => text
            .parse()
            .map_err(|_| Failure::not_found(format!("there is no node `{text}`")).hint("`flotilla nodes` shows them.")),
    }
}
