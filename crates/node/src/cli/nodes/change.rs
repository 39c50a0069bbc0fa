//! Changes of nodes that take time: what they will do, and how far they are.

use std::{
    collections::BTreeMap,
    io::{self, IsTerminal as _},
    time::{Duration, Instant},
};

use clap::Args;
use flotilla_api::{Blocker, ClusterStatus, NodeChange, NodeInfo, NodeState, NodeVerb};
use flotilla_client::Client;
use flotilla_types::{NodeId, ShardId};
use serde_json::json;

use super::{ClientOptions, resolve};
use crate::cli::{
    confirm::Confirmation,
    failure::{Failure, is_passing},
    output::{Output, table},
};

/// Interval between two looks at the progress.
const LOOK_EVERY: Duration = Duration::from_millis(500);

// No doc comment: clap would show it as the help of the verb.
#[derive(Debug, Args)]
pub(crate) struct ChangeArguments {
    /// Ids (such as n4) or names of nodes; what looks like an id is an id
    #[arg(required = true, value_name = "NODE")]
    nodes: Vec<String>,
    /// Do it also where other nodes cannot take over everything
    #[arg(long)]
    force: bool,
    /// Wait until it is done; show the progress on a terminal
    #[arg(long)]
    wait: bool,
    /// How long --wait waits at most
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, default_value = "10m")]
    within: Duration,
    #[command(flatten)]
    confirmation: Confirmation,
}

pub(super) async fn run(
    verb: NodeVerb,
    arguments: ChangeArguments,
    client: &Client,
    options: &ClientOptions,
    output: Output,
) -> Result<(), Failure> {
    let status = client.status().await?;
    let mut nodes = BTreeMap::new();
    for text in &arguments.nodes {
        let node = resolve(&status.nodes, text)?;
        nodes.insert(node.id, node);
    }
    // Nodes that leave together take nothing from each other.
    let others = |id: NodeId| nodes.keys().copied().filter(|other| *other != id).collect::<Vec<_>>();
    let mut plans = Vec::new();
    for id in nodes.keys() {
        plans.push(client.change_node_with(*id, &others(*id), verb, arguments.force, true).await?);
    }
    let text: Vec<_> = plans.iter().map(|plan| describe(plan, nodes[&plan.node])).collect();
    let text = [text.join("\n"), blockers(&plans)].join("\n");
    if arguments.confirmation.is_dry_run() {
        output.show(&json!({ "nodes": plans }), |_| text.trim_end().to_owned())?;
    }
    let refused = plans.iter().find(|plan| plan.refusal.is_some() && !(arguments.force && plan.force_helps));
    if let Some(NodeChange { refusal: Some(refusal), .. }) = refused {
        return Err(Failure::failed(format!("{refusal}\nnothing was done")));
    }
    if arguments.confirmation.is_dry_run() {
        return Ok(());
    }
    // Only what cannot be taken back asks.
    if verb == NodeVerb::Leave && !arguments.confirmation.ask(text.trim_end())? {
        return Ok(());
    }
    let mut done = Vec::new();
    for id in nodes.keys() {
        done.push(client.change_node_with(*id, &others(*id), verb, arguments.force, false).await?);
    }
    if arguments.wait {
        let others = Client::new(options.for_endpoints(endpoints(options, &status, &nodes))?)?;
        let deadline = Instant::now() + arguments.within;
        for change in &mut done {
            *change = wait(&others, change.clone(), deadline).await?;
        }
    }
    let summary = |done: &[NodeChange]| done.iter().map(outcome).collect::<Vec<_>>().join("\n");
    output.show(&json!({ "nodes": done }), |_| summary(&done))
}

/// The replicas that speak against it, which are the same in each of the plans.
fn blockers(plans: &[NodeChange]) -> String {
    let Some(plan) = plans.iter().find(|plan| !plan.blockers.is_empty()) else { return String::new() };
    let rows = plan.blockers.iter().map(|blocker| {
        let Blocker { shard, replica, node, why, detail } = blocker;
        [shard.to_string(), replica.to_string(), node.to_string(), why.clone(), detail.clone()]
    });
    let more = plan.blockers_total.saturating_sub(plan.blockers.len() as u64);
    let more = if more > 0 { format!("\nand {more} more") } else { String::new() };
    format!("{}{more}", table(["SHARD", "REPLICA", "NODE", "BLOCKED BY", "WHY"], rows))
}

/// The given endpoints, and those of the nodes that stay: a node that leaves stops answering.
fn endpoints(options: &ClientOptions, status: &ClusterStatus, changed: &BTreeMap<NodeId, &NodeInfo>) -> Vec<String> {
    let scheme = options.addr.first().and_then(|addr| addr.split_once("://"));
    let scheme = scheme.map(|(scheme, _)| format!("{scheme}://")).unwrap_or_default();
    let staying = status.nodes.iter().filter(|node| !node.http.is_empty() && !changed.contains_key(&node.id));
    options.addr.iter().cloned().chain(staying.map(|node| format!("{scheme}{}", node.http))).collect()
}

/// What a verb will do.
fn describe(plan: &NodeChange, node: &NodeInfo) -> String {
    let NodeChange { node: id, replicas, leaders, .. } = plan;
    let name = node.name.escape_debug();
    let what = match plan.verb {
        NodeVerb::Drain => {
            format!(
                "Drains {id} (\"{name}\"): its leaderships ({leaders}) move to other nodes, its replicas ({replicas}) stay."
            )
        }
        NodeVerb::Decommission => {
            let moves = plan.moves.unwrap_or(0);
            let bytes = plan.move_bytes.map(|bytes| format!(", {bytes} bytes")).unwrap_or_default();
            format!("Moves {moves} of the replicas ({replicas}{bytes}) of {id} (\"{name}\") to other nodes; it stays.")
        }
        NodeVerb::Leave => format!(
            "Lets {id} (\"{name}\") leave for good: its replicas ({replicas}) are replaced on other nodes while it \
             serves, then it is removed and its process ends. Until then `flotilla node undrain {id}` takes it back."
        ),
        NodeVerb::Undrain | NodeVerb::Recommission => format!("Puts {id} (\"{name}\") into service again."),
        NodeVerb::Remove => format!("Removes {id} (\"{name}\") for good."),
    };
    match &plan.refusal {
        Some(refusal) => format!("{what}\n{refusal}"),
        None => what,
    }
}

/// What was done, and what is still to be done.
fn outcome(change: &NodeChange) -> String {
    let NodeChange { node, remaining, .. } = change;
    let stays = match change.stuck_total {
        0 => String::new(),
        total => {
            let named: Vec<_> = change.stuck.iter().map(ShardId::to_string).collect();
            format!("; shards that no other node can take: {total} ({})", named.join(", "))
        }
    };
    match (change.verb, change.state, remaining) {
        (NodeVerb::Drain, _, 0) => format!("{node} is drained{stays}"),
        (NodeVerb::Drain, ..) => format!("{node} drains: leaderships still to move: {remaining}{stays}"),
        (NodeVerb::Leave | NodeVerb::Remove, NodeState::Removed, _) => format!("{node} has left the cluster"),
        (NodeVerb::Leave, ..) => format!("{node} is leaving: replicas still to be replaced: {remaining}{stays}"),
        (NodeVerb::Decommission, _, 0) => format!("{node} holds no replicas any more"),
        (NodeVerb::Decommission, ..) => {
            format!("{node} is decommissioned: replicas still to move: {remaining}{stays}")
        }
        (NodeVerb::Undrain | NodeVerb::Recommission | NodeVerb::Remove, ..) => {
            format!("{node} is {}", change.state)
        }
    }
}

fn is_done(change: &NodeChange) -> bool {
    match change.verb {
        NodeVerb::Leave => change.state == NodeState::Removed,
        _ => change.remaining == 0,
    }
}

/// Looks again until the change is done.
async fn wait(client: &Client, mut change: NodeChange, deadline: Instant) -> Result<NodeChange, Failure> {
    let mut shown = None;
    while !is_done(&change) {
        if io::stderr().is_terminal() && shown.replace(change.remaining) != Some(change.remaining) {
            eprintln!("{}", outcome(&change));
        }
        if Instant::now() >= deadline {
            return Err(Failure::unavailable(format!("{}; it goes on without this command", outcome(&change))));
        }
        tokio::time::sleep(LOOK_EVERY).await;
        match client.change_node(change.node, change.verb, false, true).await {
            Ok(now) => {
                let taken_back = matches!(now.state, NodeState::Active) && !matches!(change.state, NodeState::Active);
                if taken_back {
                    return Err(Failure::failed(format!("{} was taken back", change.node)));
                }
                change = now;
            }
            // Removed long enough ago to be forgotten.
            Err(error) if error.is_not_found() => change.state = NodeState::Removed,
            // A node that ends, or an election: the deadline bounds it.
            Err(error) if is_passing(&error) => {}
            Err(error) => return Err(error.into()),
        }
    }
    change.dry_run = false;
    Ok(change)
}

#[cfg(test)]
mod tests {
    use flotilla_types::ReplicaId;

    use super::*;

    fn change(verb: NodeVerb, state: NodeState, remaining: u32) -> NodeChange {
        let (node, refusal) = (NodeId(4), None);
        let (replicas, leaders, stuck_total) = (9, 3, 0);
        NodeChange {
            node,
            verb,
            dry_run: false,
            state,
            replicas,
            leaders,
            remaining,
            stuck: Vec::new(),
            stuck_total,
            moves: None,
            move_bytes: None,
            blockers: Vec::new(),
            blockers_total: 0,
            refusal,
            force_helps: false,
        }
    }

    #[test]
    fn a_leave_is_done_only_when_the_node_is_removed() {
        assert!(!is_done(&change(NodeVerb::Leave, NodeState::Leaving, 0)), "its process has not left yet");
        assert!(is_done(&change(NodeVerb::Leave, NodeState::Removed, 0)));
        assert!(!is_done(&change(NodeVerb::Drain, NodeState::Draining, 2)));
        assert!(is_done(&change(NodeVerb::Drain, NodeState::Draining, 0)), "nobody else can lead the rest");
        assert!(is_done(&change(NodeVerb::Undrain, NodeState::Active, 0)));
    }

    #[test]
    fn blockers_are_named_once_for_nodes_that_leave_together() {
        let blocker = Blocker {
            shard: ShardId(7),
            replica: ReplicaId(9),
            node: NodeId(4),
            why: "no_node".to_owned(),
            detail: "no other node can take it".to_owned(),
        };
        let mut plan = change(NodeVerb::Decommission, NodeState::Active, 2);
        assert_eq!(blockers(std::slice::from_ref(&plan)), "");
        (plan.blockers, plan.blockers_total) = (vec![blocker], 3);
        let text = blockers(&[plan.clone(), plan]);
        assert_eq!(text.matches("no_node").count(), 1, "{text}");
        assert!(["s7", "r9", "n4", "and 2 more"].iter().all(|part| text.contains(part)), "{text}");
    }

    #[test]
    fn what_stays_behind_is_named() {
        let mut stuck = change(NodeVerb::Drain, NodeState::Draining, 0);
        (stuck.stuck, stuck.stuck_total) = (vec![ShardId(7)], 1);
        let text = outcome(&stuck);
        assert!(text.contains("n4") && text.contains("s7"), "{text}");
        assert_eq!(outcome(&change(NodeVerb::Leave, NodeState::Removed, 0)), "n4 has left the cluster");
    }
}
