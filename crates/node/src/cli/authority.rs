//! `authority status|rotate`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Subcommand;
use flotilla_api::{AuthorityStatus, NodeCertification};
use flotilla_client::Client;

use super::{
    confirm::Confirmation,
    failure::Failure,
    output::{Output, table},
};

#[derive(Debug, Subcommand)]
pub(crate) enum AuthorityCommand {
    /// Show the authority that certifies the nodes, and how far its rotation is
    Status,
    /// Replace the authority; the last one is trusted until every node has a certificate of the new one
    Rotate {
        #[command(flatten)]
        confirmation: Confirmation,
    },
}

pub(super) async fn run(command: AuthorityCommand, client: &Client, output: Output) -> Result<(), Failure> {
    let status = match command {
        AuthorityCommand::Status => client.authority_status().await?,
        AuthorityCommand::Rotate { confirmation } => {
            if !confirmation.ask(&plan(&client.authority_status().await?))? {
                return Ok(());
            }
            client.rotate_authority().await?
        }
    };
    output.show(&status, summary)
}

/// What a rotation does, and what it costs.
fn plan(status: &AuthorityStatus) -> String {
    let nodes = status.nodes.len();
    format!(
        "This replaces the authority {} by a new one.\n\
         - All nodes of the metadata group must be up: they take the new key. The old key is deleted.\n\
         - Each of the {nodes} nodes gets a new certificate without a restart. The rotation ends when all have one:\n  \
           a node that is down keeps it from ending until it is back or removed.\n\
         - Join tokens that exist stop working.\n\
         - Clients that trust a copy of ca.pem go on; give them the new ca.pem from any node's data folder\n  \
           before the next rotation.",
        short(&status.fingerprint)
    )
}

fn short(fingerprint: &str) -> &str {
    fingerprint.get(..16).unwrap_or(fingerprint)
}

fn summary(status: &AuthorityStatus) -> String {
    let waits_for: Vec<&NodeCertification> = status.nodes.iter().filter(|node| !node.certified).collect();
    let state = if status.rotating {
        format!(
            "Rotation in progress: {} of {} nodes have a certificate of the new authority.",
            status.nodes.len() - waits_for.len(),
            status.nodes.len()
        )
    } else {
        "No rotation is in progress.".to_owned()
    };
    let rows = status
        .nodes
        .iter()
        .map(|node| [node.node.to_string(), node.name.clone(), if node.certified { "yes" } else { "no" }.to_owned()]);
    let nodes = table(["ID", "NAME", "CERTIFIED"], rows);
    let expires = UNIX_EPOCH + Duration::from_millis(status.certificate.expires_at_ms);
    let left = expires.duration_since(SystemTime::now()).unwrap_or_default();
    let left = humantime::format_duration(Duration::from_secs(left.as_secs()));
    format!(
        "Authority: {} (replaced {} times)\n{state}\nThe certificate of the answering node ends in {left}.\n\n{nodes}",
        status.fingerprint, status.serial
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_names_the_nodes_that_a_rotation_waits_for() {
        let text = r#"{"serial":1,"fingerprint":"00112233445566778899","rotating":true,"holds_key":true,
            "certificate":{"issued_at_ms":1,"expires_at_ms":2},
            "nodes":[{"node":1,"name":"a","certified":true},{"node":2,"name":"b","certified":false}]}"#;
        let mut status: AuthorityStatus = serde_json::from_str(text).expect("a status");
        let shown = summary(&status);
        for part in ["00112233445566778899", "1 of 2 nodes", "yes", "no"] {
            assert!(shown.contains(part), "{part} is missing in\n{shown}");
        }
        status.rotating = false;
        assert!(summary(&status).contains("No rotation is in progress"));
        assert!(plan(&status).contains("0011223344556677 by a new one"));
    }
}
