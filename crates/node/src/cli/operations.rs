//! `operation list|show`: what changes shards now.

use std::time::{SystemTime, UNIX_EPOCH};

use clap::Subcommand;
use flotilla_api::{OperationInfo, OperationList};
use flotilla_client::Client;

use super::{
    failure::Failure,
    output::{Output, table},
};

#[derive(Debug, Subcommand)]
pub(crate) enum OperationCommand {
    /// List what changes shards now, in the whole cluster
    List,
    /// Show one operation; exit code 3 if it is not under way
    Show {
        /// Its id, as shown by `operation list`
        id: String,
    },
}

pub(super) async fn run(command: OperationCommand, client: &Client, output: Output) -> Result<(), Failure> {
    match command {
        OperationCommand::List => output.show(&client.operations().await?, text),
        OperationCommand::Show { id } => {
            output.show(&client.operation(&id).await?, |operation| rows(std::slice::from_ref(operation)))
        }
    }
}

fn text(list: &OperationList) -> String {
    let mut lines = vec![if list.operations.is_empty() { "no operation".to_owned() } else { rows(&list.operations) }];
    if list.more > 0 {
        lines.push(format!("and {} more", list.more));
    }
    if !list.silent.is_empty() {
        let silent: Vec<_> = list.silent.iter().map(ToString::to_string).collect();
        lines.push(format!("no report from: {}", silent.join(", ")));
    }
    lines.join("\n")
}

fn rows(operations: &[OperationInfo]) -> String {
    let rows = operations.iter().map(|operation| {
        [
            operation.id.clone(),
            operation.shard.to_string(),
            operation.node.to_string(),
            operation.state(),
            since(operation.since_ms),
            operation.reason.clone(),
        ]
    });
    table(["ID", "SHARD", "NODE", "PHASE", "SINCE", "REASON"], rows)
}

/// How long ago a phase began, by this machine's clock.
pub(super) fn since(since_ms: u64) -> String {
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_millis() as u64);
    format!("{} s", now_ms.saturating_sub(since_ms) / 1_000)
}
