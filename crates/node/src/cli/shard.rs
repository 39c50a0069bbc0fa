//! `shard move|split|merge|explain|rebalance|decisions|top`: where shards and their replicas are, and why.

mod follow;
mod merges;
mod moves;
mod splits;
mod top;

use clap::Subcommand;
use flotilla_api::{
    Alternative, DECISIONS_DEFAULT, DECISIONS_MAX, DecisionInfo, DecisionList, PlacementAction, ReplicaVerdict,
    ShardExplanation,
};
use flotilla_client::Client;
use flotilla_types::ShardId;

use super::{
    failure::Failure,
    output::{Output, or_dash, table, time},
};

/// Alternatives that a line of the log of decisions names.
const ALTERNATIVES_SHOWN_MAX: usize = 4;

#[derive(Debug, Subcommand)]
pub(crate) enum ShardCommand {
    /// Move a replica of a shard from one node to another while both serve
    Move(moves::Arguments),
    /// Split a shard in two while it serves: the new one gets the keys from one on, on the same nodes
    Split(splits::Arguments),
    /// Merge a shard's right neighbour into it; both need replicas on the same nodes
    Merge(merges::Arguments),
    /// Explain why each replica of a shard is where it is, or where it goes, and why no other node gets it
    Explain {
        /// Id of the shard, such as s4
        shard: ShardId,
    },
    /// Plan at once where replicas should be, and show what was decided, or why nothing was
    Rebalance {
        /// Only show what would be done
        #[arg(long)]
        dry_run: bool,
    },
    /// Show what placement decided lately and what it left as it is, with reasons, the newest first
    Decisions {
        /// Show so many at most
        #[arg(long, value_name = "N", default_value_t = DECISIONS_DEFAULT as u16,
            value_parser = clap::value_parser!(u16).range(1..=DECISIONS_MAX as i64))]
        limit: u16,
    },
    /// Show the shards that are the most work now, with the nodes that lead them
    Top(top::Arguments),
}

pub(super) async fn run(command: ShardCommand, client: &Client, output: Output) -> Result<(), Failure> {
    match command {
        ShardCommand::Move(arguments) => moves::run(&arguments, client, output).await,
        ShardCommand::Split(arguments) => splits::run(arguments, client, output).await,
        ShardCommand::Merge(arguments) => merges::run(&arguments, client, output).await,
        ShardCommand::Explain { shard } => output.show(&client.explain_shard(shard).await?, explanation),
        ShardCommand::Rebalance { dry_run } => output.show(&client.rebalance(dry_run).await?, rebalancing),
        ShardCommand::Top(arguments) => top::run(arguments, client, output).await,
        ShardCommand::Decisions { limit } => output.show(&client.decisions(limit.into()).await?, decisions),
    }
}

fn explanation(found: &ShardExplanation) -> String {
    let ShardExplanation { shard, decided_by, desired_replicas, .. } = found;
    let mut lines = vec![format!("{shard} should have {desired_replicas} replicas, as {decided_by} decides")];
    if found.too_few_nodes {
        lines.push("It has fewer, and there is no node for another one".to_owned());
    }
    for replica in &found.replicas {
        let verdict = match replica.verdict {
            ReplicaVerdict::Stays => "stays",
            ReplicaVerdict::Goes => "goes",
            ReplicaVerdict::Stuck => "STUCK",
        };
        lines.push(format!(
            "\n{} on {} {verdict}: {}",
            replica.replica,
            replica.node,
            without(verdict, &replica.detail)
        ));
        lines.extend(replica.alternatives.iter().map(|other| format!("  {}", alternative(other))));
    }
    for addition in &found.additions {
        lines.push(format!("\nadded on {}: {}", or_dash(addition.to), addition.detail));
        lines.extend(addition.alternatives.iter().map(|other| format!("  {}", alternative(other))));
    }
    if !found.undecided.is_empty() {
        lines.push(String::new());
        lines.extend(found.undecided.iter().map(undecided));
    }
    lines.join("\n")
}

/// The words without a verdict that stands before them already.
fn without<'a>(verdict: &str, words: &'a str) -> &'a str {
    words.strip_prefix(verdict).map_or(words, |words| words.trim_start_matches([':', ' ']))
}

fn alternative(other: &Alternative) -> String {
    format!("node {}: {}", other.node, other.detail)
}

fn undecided(entry: &DecisionInfo) -> String {
    match entry.shards_total {
        Some(total) => format!("{} ({})", entry.detail, shards(entry, total)),
        None => entry.detail.clone(),
    }
}

fn shards(entry: &DecisionInfo, total: u64) -> String {
    let named: Vec<_> = entry.shards.iter().map(ShardId::to_string).collect();
    let more = total.saturating_sub(entry.shards.len() as u64);
    if more > 0 { format!("{} and {more} more", named.join(", ")) } else { named.join(", ") }
}

fn rebalancing(list: &DecisionList) -> String {
    let (decided, left): (Vec<_>, Vec<_>) =
        list.decisions.iter().partition(|entry| entry.action != PlacementAction::None);
    let mut lines = Vec::new();
    if decided.is_empty() {
        lines.push(if list.dry_run == Some(true) { "nothing would be done" } else { "nothing to do" }.to_owned());
    } else {
        let rows = decided.iter().map(|entry| {
            let [action, shard, from, to] = change(entry);
            [action, shard, from, to, entry.detail.clone(), alternatives(entry)]
        });
        lines.push(table(["ACTION", "SHARD", "FROM", "TO", "REASON", "NOT CHOSEN"], rows));
    }
    lines.extend(left.into_iter().map(undecided));
    lines.join("\n")
}

fn decisions(list: &DecisionList) -> String {
    if list.decisions.is_empty() && list.silent.is_empty() {
        return "nothing was decided since the nodes started".to_owned();
    }
    let rows = list.decisions.iter().map(|entry| {
        let [action, shard, from, to] = change(entry);
        let reason = if entry.action == PlacementAction::None { undecided(entry) } else { entry.detail.clone() };
        let (since, last) = (time(entry.at_ms), time(entry.last_ms));
        let (times, by) = (entry.count.to_string(), entry.decided_by.to_string());
        [since, last, times, by, action, shard, from, to, reason, alternatives(entry)]
    });
    let rows = table(["SINCE", "LAST", "TIMES", "BY", "ACTION", "SHARD", "FROM", "TO", "REASON", "NOT CHOSEN"], rows);
    if list.silent.is_empty() {
        return rows;
    }
    let silent: Vec<_> = list.silent.iter().map(ToString::to_string).collect();
    format!("{rows}\nno report from: {}", silent.join(", "))
}

fn change(entry: &DecisionInfo) -> [String; 4] {
    let action = match entry.action {
        PlacementAction::Add => "add",
        PlacementAction::Move => "move",
        PlacementAction::Remove => "remove",
        PlacementAction::None => "none",
    };
    [action.to_owned(), or_dash(entry.shard), or_dash(entry.from), or_dash(entry.to)]
}

fn alternatives(entry: &DecisionInfo) -> String {
    let shown = entry.alternatives.iter().take(ALTERNATIVES_SHOWN_MAX);
    let mut shown: Vec<_> = shown.map(|other| format!("{}: {}", other.node, other.reason.replace('_', " "))).collect();
    let more = entry.alternatives.len().saturating_sub(ALTERNATIVES_SHOWN_MAX);
    if more > 0 {
        shown.push(format!("{more} more"));
    }
    if shown.is_empty() { "-".to_owned() } else { shown.join(", ") }
}

#[cfg(test)]
mod tests {
    use flotilla_types::{NodeId, ReplicaId};
    use serde_json::json;

    use super::*;

    fn entry(json: &serde_json::Value) -> DecisionInfo {
        let mut whole =
            json!({ "at_ms": 0, "last_ms": 1_000, "count": 3, "decided_by": "n2", "reason": "r", "detail": "because" });
        for (name, value) in json.as_object().expect("an object") {
            whole[name] = value.clone();
        }
        serde_json::from_value(whole).expect("an entry")
    }

    #[test]
    fn a_dry_run_shows_moves_with_what_was_not_chosen_or_why_there_is_none() {
        let fuller = |node: u64| json!({ "node": node, "reason": "fuller", "detail": "d" });
        let moved = entry(&json!({ "action": "move", "shard": "s4", "replica": "r7", "from": "n1", "to": "n3",
            "alternatives": (5..=10).map(fuller).collect::<Vec<_>>() }));
        let left = entry(&json!({ "action": "none", "detail": "waits", "shards": ["s5", "s6"], "shards_total": 9 }));
        let list = |decisions: &[&DecisionInfo]| DecisionList {
            dry_run: Some(true),
            decisions: decisions.iter().copied().cloned().collect(),
            silent: Vec::new(),
        };
        let shown = rebalancing(&list(&[&moved]));
        for part in ["move", "s4", "n1", "n3", "because", "n5: fuller", "2 more"] {
            assert!(shown.contains(part), "{part} is missing in\n{shown}");
        }
        assert_eq!(rebalancing(&list(&[&left])), "nothing would be done\nwaits (s5, s6 and 7 more)");
        let shown = decisions(&list(&[&moved, &left]));
        assert!(shown.contains("1970-01-01T00:00:01Z") && shown.contains("none"), "{shown}");
        assert!(decisions(&list(&[])).contains("nothing was decided"));
        let lacking = DecisionList { silent: vec![NodeId(7)], ..list(&[&left]) };
        assert!(decisions(&lacking).ends_with("no report from: n7"), "{}", decisions(&lacking));
    }

    #[test]
    fn an_explanation_names_each_replica_and_what_speaks_against_the_other_nodes() {
        let json = json!({
            "shard": "s4", "decided_by": "n2", "desired_replicas": 3, "additions": [],
            "undecided": [{ "at_ms": 0, "last_ms": 0, "count": 1, "decided_by": "n2", "action": "none", "reason": "off", "detail": "off" }],
            "replicas": [{
                "replica": "r7", "node": "n1", "node_status": "live", "node_replicas": 5, "node_share": 4.5,
                "phase": "in_place", "verdict": "stays", "detail": "stays: n1 is live",
                "alternatives": [{ "node": "n4", "reason": "closer", "detail": "would bring replicas closer (zone=a, as n2)" }],
            }],
        });
        let found: ShardExplanation = serde_json::from_value(json).expect("an explanation");
        assert_eq!(found.replicas[0].replica, ReplicaId(7));
        let expected = "s4 should have 3 replicas, as n2 decides\n\nr7 on n1 stays: n1 is live\n  node n4: would bring \
                        replicas closer (zone=a, as n2)\n\noff";
        assert_eq!(explanation(&found), expected);
    }
}
