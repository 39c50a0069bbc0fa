//! `scrub [--now] [--wait]`: reading all stored objects again to find damage.

use std::{
    collections::BTreeMap,
    io::{IsTerminal as _, stderr},
    time::{Duration, Instant},
};

use clap::Args;
use flotilla_api::{NodeScrub, ScrubReport, ScrubState};
use flotilla_client::{Client, ClientError};
use flotilla_types::NodeId;
use indicatif::ProgressBar;

use super::{
    failure::Failure,
    output::{Output, or_dash, progress, table, time},
};

/// How often the nodes are asked while the verb waits.
const ASK_EVERY: Duration = Duration::from_millis(200);
/// How long a node may be silent while the verb waits.
const SILENCE_MAX: Duration = Duration::from_secs(60);

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Begin a pass on every node now, and wait for its end if stderr is a terminal
    #[arg(long)]
    now: bool,
    /// With --now: wait for the end, whatever stderr is
    #[arg(long, requires = "now")]
    wait: bool,
}

pub(super) async fn run(arguments: &Arguments, client: &Client, output: Output) -> Result<(), Failure> {
    if !arguments.now {
        return output.show(&client.scrub().await?, text);
    }
    let before = client.scrub().await?;
    let started = client.start_scrub().await?;
    if !arguments.wait && !stderr().is_terminal() {
        return output.show(&started, text);
    }
    let report = wait(client, &Goal::of(&before)).await?;
    output.show(&report, text)
}

/// The passes after which every object has been read since the verb began: one that was under way does not
/// count, because it had read some before.
struct Goal(BTreeMap<NodeId, u64>);

impl Goal {
    fn of(before: &ScrubReport) -> Self {
        let passes = |node: &NodeScrub| node.passes + 1 + u64::from(node.state == ScrubState::Running);
        Self(before.nodes.iter().map(|node| (node.node, passes(node))).collect())
    }

    /// Nodes that are not done. One that has started again in the meantime counts anew, and is left alone.
    fn waits_for(&self, report: &ScrubReport) -> Vec<NodeId> {
        let is_done = |node: NodeId, goal: u64| {
            report
                .nodes
                .iter()
                .find(|now| now.node == node)
                .is_some_and(|now| now.passes >= goal || now.passes + 2 < goal)
        };
        self.0.iter().filter(|(node, goal)| !is_done(**node, **goal)).map(|(node, _)| *node).collect()
    }
}

async fn wait(client: &Client, goal: &Goal) -> Result<ScrubReport, Failure> {
    let bar = progress("{bar:30} {bytes} of {total_bytes}, {msg}", 0);
    let mut heard = Instant::now();
    loop {
        let waits_for = match client.scrub().await {
            Ok(report) => {
                let waits_for = goal.waits_for(&report);
                if waits_for.is_empty() {
                    bar.finish_and_clear();
                    return Ok(report);
                }
                show(&bar, &report);
                if !waits_for.iter().all(|node| report.silent.contains(node)) {
                    heard = Instant::now();
                }
                waits_for
            }
            Err(ClientError::Unreachable { .. }) => Vec::new(),
            Err(ClientError::Refused(problem)) if problem.retryable => Vec::new(),
            Err(error) => return Err(error.into()),
        };
        if heard.elapsed() > SILENCE_MAX {
            let nodes: Vec<_> = waits_for.iter().map(ToString::to_string).collect();
            return Err(Failure::unavailable(format!("no answer about the scrub from: {}", nodes.join(", "))));
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
}

fn show(bar: &ProgressBar, report: &ScrubReport) {
    bar.set_length(report.nodes.iter().map(|node| node.bytes_total).sum());
    bar.set_position(report.nodes.iter().map(|node| node.bytes).sum());
    let damaged: u64 = report.nodes.iter().map(|node| node.objects_damaged).sum();
    bar.set_message(format!("{damaged} objects damaged"));
}

fn text(report: &ScrubReport) -> String {
    let rows = report.nodes.iter().map(|node| {
        [
            node.node.to_string(),
            node.state.name().replace('_', " "),
            format!("{} B/s", node.bytes_per_second),
            format!("{} of {}", node.bytes, node.bytes_total),
            node.objects_damaged.to_string(),
            node.objects_unreadable.to_string(),
            or_dash(node.began_ms.map(time)),
            or_dash(node.ended_ms.map(time)),
            or_dash(node.next_ms.map(time)),
        ]
    });
    let header = ["NODE", "STATE", "RATE", "BYTES", "DAMAGED", "UNREADABLE", "BEGAN", "ENDED", "NEXT"];
    let mut lines = vec![table(header, rows)];
    for node in &report.nodes {
        lines.extend(node.damaged.iter().map(|damaged| {
            let what = if damaged.repairable { "it is being replaced" } else { "there is no other copy" };
            format!("{} of {} on {} has damaged objects: {what}", damaged.replica, damaged.shard, node.node)
        }));
    }
    if !report.silent.is_empty() {
        let silent: Vec<_> = report.silent.iter().map(ToString::to_string).collect();
        lines.push(format!("no report from: {}", silent.join(", ")));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(nodes: &[(u64, &str, u64)]) -> ScrubReport {
        let node = |(node, state, passes): &(u64, &str, u64)| {
            format!(
                r#"{{"node":"n{node}","state":"{state}","bytes_per_second":5000000,"bytes":7,"bytes_total":9,
                "passes":{passes},"objects":3,"objects_damaged":1,"objects_unreadable":0,"began_ms":1000,
                "ended_ms":null,"next_ms":null,"damaged":[{{"shard":"s4","replica":"r6","repairable":false}}]}}"#
            )
        };
        let nodes: Vec<_> = nodes.iter().map(node).collect();
        let text = format!(r#"{{"nodes":[{}],"silent":["n9"]}}"#, nodes.join(","));
        serde_json::from_str(&text).expect("a report")
    }

    #[test]
    fn a_pass_that_was_under_way_does_not_count_and_a_node_that_restarts_is_not_waited_for() {
        let goal = Goal::of(&report(&[(1, "waiting", 4), (2, "running", 4), (3, "waiting", 7)]));
        let waits_for = |nodes: &[_]| goal.waits_for(&report(nodes)).iter().map(|node| node.0).collect::<Vec<_>>();
        assert_eq!(waits_for(&[(1, "running", 4), (2, "running", 5), (3, "running", 7)]), [1, 2, 3]);
        assert_eq!(waits_for(&[(1, "waiting", 5), (2, "waiting", 6), (3, "running", 0)]), [0; 0]);
        assert_eq!(waits_for(&[(1, "waiting", 5), (3, "waiting", 8)]), [2], "it is silent");
    }

    #[test]
    fn the_table_shows_progress_damage_and_who_is_silent() {
        let shown = text(&report(&[(1, "on_demand", 4)]));
        for part in ["n1", "on demand", "7 of 9", "1970-01-01T00:00:01Z", "r6 of s4", "no other copy", "n9"] {
            assert!(shown.contains(part), "{part} is missing in\n{shown}");
        }
    }
}
