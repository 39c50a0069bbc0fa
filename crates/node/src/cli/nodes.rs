//! `node drain`, `node undrain`, `node leave`, `node remove` and their kind.

mod change;

use clap::Subcommand;
use flotilla_api::{Liveness, NodeInfo, NodeVerb, ShardInfo};
use flotilla_client::Client;
use flotilla_types::{NodeId, ReplicaRole, ShardId};
use serde_json::json;

use super::{ClientOptions, confirm::Confirmation, failure::Failure, output::Output};
use change::ChangeArguments;

/// Shards that a plan names.
const SHARDS_SHOWN_MAX: usize = 10;

#[derive(Debug, Subcommand)]
pub(crate) enum NodeCommand {
    /// Prepare nodes for a stop: their leaderships move to other nodes and do not come back, nothing new is
    /// placed there, and load balancers are told to use other nodes. Their replicas stay
    Drain(ChangeArguments),
    /// Put drained or decommissioned nodes into service again, or take back an unfinished leave
    Undrain(ChangeArguments),
    /// Move all replicas to other nodes; the nodes stay members
    Decommission(ChangeArguments),
    /// The same as undrain
    Recommission(ChangeArguments),
    /// Let nodes leave for good: their replicas are replaced on other nodes while they still serve, then they
    /// are removed and their processes end
    Leave(ChangeArguments),
    /// Remove a node at once and permanently; `leave` is the graceful way
    Remove {
        /// Id (such as n4) or name of the node; what looks like an id is an id
        node: String,
        /// Remove it even if it is alive or holds replicas, also at the cost of a quorum
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        confirmation: Confirmation,
    },
}

pub(super) async fn run(
    command: NodeCommand,
    client: &Client,
    options: &ClientOptions,
    output: Output,
) -> Result<(), Failure> {
    let change = async |verb, arguments| change::run(verb, arguments, client, options, output).await;
    match command {
        NodeCommand::Drain(arguments) => change(NodeVerb::Drain, arguments).await,
        NodeCommand::Undrain(arguments) => change(NodeVerb::Undrain, arguments).await,
        NodeCommand::Decommission(arguments) => change(NodeVerb::Decommission, arguments).await,
        NodeCommand::Recommission(arguments) => change(NodeVerb::Recommission, arguments).await,
        NodeCommand::Leave(arguments) => change(NodeVerb::Leave, arguments).await,
        NodeCommand::Remove { node, force, confirmation } => {
            let status = client.status().await?;
            let removal = Removal::of(&status.nodes, &status.shards, resolve(&status.nodes, &node)?);
            if !force && !removal.loses_quorum.is_empty() {
                return Err(Failure::failed(format!("{}\nnothing was done", removal.plan()))
                    .hint("Restore redundancy first (`flotilla status`), or accept the loss with --force."));
            }
            if !confirmation.ask(&removal.plan())? {
                return Ok(());
            }
            client.remove_node(removal.node.id, force).await?;
            output.show(&json!({ "removed": removal.node.id }), |_| format!("removed {}", removal.node.id))
        }
    }
}

/// Finds a node. A text that looks like an id is an id, never a name: another node may be named like it.
fn resolve<'a>(nodes: &'a [NodeInfo], text: &str) -> Result<&'a NodeInfo, Failure> {
    let missing = || Failure::not_found(format!("there is no node `{text}`")).hint("`flotilla nodes` shows them.");
    if NodeId::is_written_as(text) {
        let id: NodeId = text.parse().map_err(|_| missing())?;
        return nodes.iter().find(|node| node.id == id).ok_or_else(missing);
    }
    let mut named = nodes.iter().filter(|node| node.name == text);
    match (named.next(), named.next()) {
        (Some(node), None) => Ok(node),
        (Some(_), Some(_)) => Err(Failure::usage(format!("several nodes have the name `{text}`"))
            .hint("Give the id, which `flotilla nodes` shows.")),
        (None, _) => Err(missing()),
    }
}

/// What the removal of a node does.
struct Removal<'a> {
    node: &'a NodeInfo,
    /// Shards of which it holds a voter.
    voter_of: usize,
    /// Shards that the other live voters cannot serve.
    loses_quorum: Vec<ShardId>,
}

impl<'a> Removal<'a> {
    fn of(nodes: &[NodeInfo], shards: &[ShardInfo], node: &'a NodeInfo) -> Self {
        let lives = |id| nodes.iter().any(|other| other.id == id && other.liveness == Liveness::Alive);
        let mut removal = Self { node, voter_of: 0, loses_quorum: Vec::new() };
        for shard in shards {
            let voters = || shard.replicas.iter().filter(|replica| replica.role == ReplicaRole::Voter);
            if !voters().any(|voter| voter.node == node.id) {
                continue;
            }
            removal.voter_of += 1;
            let others = voters().filter(|voter| voter.node != node.id && lives(voter.node)).count();
            if 2 * others <= voters().count() {
                removal.loses_quorum.push(shard.id);
            }
        }
        removal
    }

    fn plan(&self) -> String {
        let NodeInfo { id, name, http, .. } = self.node;
        let state = if self.node.liveness == Liveness::Alive { "ALIVE" } else { "not alive" };
        let mut text = format!(
            "Removes {id} for good: the name is \"{}\", HTTP at {http}, {state}, voter of {} shards. It can never \
             come back.",
            name.escape_debug(),
            self.voter_of
        );
        if !self.loses_quorum.is_empty() {
            let shown: Vec<_> = self.loses_quorum.iter().take(SHARDS_SHOWN_MAX).map(ShardId::to_string).collect();
            let more = self.loses_quorum.len().saturating_sub(SHARDS_SHOWN_MAX);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            text.push_str(&format!(
                "\n{} shards lose their quorum and stop serving, acknowledged writes included: {}{more}",
                self.loses_quorum.len(),
                shown.join(", ")
            ));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use flotilla_api::ReplicaInfo;
    use flotilla_types::ReplicaId;

    use super::*;

    fn node(id: u64, name: &str, liveness: Liveness) -> NodeInfo {
        let json = json!({
            "id": id, "name": name, "quic": "", "http": "h:1", "redis": "", "locality": {}, "state": "active",
            "liveness": "alive", "is_self": false, "metadata_role": "none", "replicas": 0, "leaders": 0,
        });
        NodeInfo { liveness, ..serde_json::from_value(json).expect("a node") }
    }

    #[test]
    fn what_looks_like_an_id_is_never_a_name() {
        let nodes = [
            node(1, "n2", Liveness::Alive),
            node(2, "b", Liveness::Alive),
            node(3, "c", Liveness::Alive),
            node(4, "c", Liveness::Alive),
        ];
        let found = |text| resolve(&nodes, text).map(|node| node.id);
        assert_eq!(found("n2"), Ok(NodeId(2)), "node 1 is named n2");
        assert_eq!(found("b"), Ok(NodeId(2)));
        assert_eq!(found("n9").map_err(|failure| failure.code()), Err(3));
        assert_eq!(found("c").map_err(|failure| failure.code()), Err(2));
        assert_eq!(found("2").map_err(|failure| failure.code()), Err(3), "a bare number is neither");
    }

    #[test]
    fn a_removal_names_the_shards_that_lose_their_quorum() {
        let nodes = vec![node(1, "a", Liveness::Alive), node(2, "b", Liveness::Alive), node(3, "c", Liveness::Down)];
        let replica = |id| ReplicaInfo { replica: ReplicaId(id), node: NodeId(id), role: ReplicaRole::Voter };
        let json = json!({
            "id": 5, "collection": "default", "range": "", "leader": 1, "replicas": [], "epoch": {"range": 1, "config": 1},
            "desired_replicas": 3, "healthy": true, "available": true, "fully_replicated": true, "failures_survivable": 1,
        });
        let mut shard: ShardInfo = serde_json::from_value(json).expect("a shard");
        shard.replicas = (1..=3).map(replica).collect();
        let shards = [shard];
        let alive = Removal::of(&nodes, &shards, &nodes[0]);
        assert_eq!((alive.voter_of, &alive.loses_quorum[..]), (1, &[ShardId(5)][..]));
        assert!(alive.plan().contains("ALIVE") && alive.plan().contains("s5"), "{}", alive.plan());
        let dead = Removal::of(&nodes, &shards, &nodes[2]);
        assert!(dead.loses_quorum.is_empty() && dead.plan().contains("not alive"));
    }
}
