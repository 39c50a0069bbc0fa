//! `upgrade status|finish`.

use clap::Subcommand;
use flotilla_api::{UpgradeStatus, Versions};
use flotilla_client::Client;

use super::{
    failure::Failure,
    output::{Output, table},
};

#[derive(Debug, Subcommand)]
pub(crate) enum UpgradeCommand {
    /// Show the cluster version and which nodes are ready for the next one
    Status,
    /// Put the next cluster version in force; refused until every node runs a binary that supports it
    Finish,
}

pub(super) async fn run(command: UpgradeCommand, client: &Client, output: Output) -> Result<(), Failure> {
    let status = match command {
        UpgradeCommand::Status => client.upgrade_status().await?,
        UpgradeCommand::Finish => client.finish_upgrade().await?,
    };
    output.show(&status, summary)
}

fn summary(status: &UpgradeStatus) -> String {
    let next = match (status.next, status.ready) {
        (None, _) => "This node's binary supports no later version.".to_owned(),
        (Some(next), true) => format!("Every node is ready for version {next}: run `flotilla upgrade finish`."),
        (Some(next), false) => {
            format!("Not every node is ready for version {next}: start each with a binary that supports it.")
        }
    };
    let rows = status.nodes.iter().map(|node| {
        let ready = if status.next.is_none() {
            "-"
        } else if node.ready {
            "yes"
        } else {
            "no"
        };
        [node.node.to_string(), node.name.clone(), range(node.versions), ready.to_owned()]
    });
    let nodes = table(["ID", "NAME", "VERSIONS", "READY"], rows);
    format!("Cluster version: {}\n{next}\n\n{nodes}", status.cluster_version)
}

/// A range of versions, for a column of a table.
pub(super) fn range(versions: Option<Versions>) -> String {
    match versions {
        None => "-".to_owned(),
        Some(Versions { min, max }) if min == max => min.to_string(),
        Some(Versions { min, max }) => format!("{min}-{max}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_names_the_next_step_and_the_nodes_in_the_way() {
        let text = r#"{"cluster_version":1,"next":2,"ready":false,"nodes":[
            {"node":1,"name":"a","versions":{"min":1,"max":2},"ready":true},{"node":2,"name":"b","ready":false}]}"#;
        let mut status: UpgradeStatus = serde_json::from_str(text).expect("a status");
        let shown = summary(&status);
        for part in ["Cluster version: 1", "Not every node is ready for version 2", "1-2", "yes", "no"] {
            assert!(shown.contains(part), "{part} is missing in\n{shown}");
        }
        status.ready = true;
        assert!(summary(&status).contains("flotilla upgrade finish"));
    }
}
