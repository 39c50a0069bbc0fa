//! `operation list|show|pause|resume|cancel`: what changes shards now, moves of replicas, splits and merges of shards.

use std::time::{SystemTime, UNIX_EPOCH};

use clap::Subcommand;
use flotilla_api::{OperationInfo, OperationList, OperationVerb};
use flotilla_client::Client;
use flotilla_types::OperationId;

use super::{
    failure::Failure,
    output::{Output, cell, or_dash, table},
};

#[derive(Debug, Subcommand)]
pub(crate) enum OperationCommand {
    /// List what changes shards now, in the whole cluster
    List,
    /// Show one operation: one that is under way, or a move, split or merge that ended a short while ago; exit code 3
    /// if there is none
    Show {
        /// Its id, as shown by `operation list`
        id: String,
    },
    /// Pause a move: nothing of it is transferred, and no replica changes, until it is resumed; or a split
    Pause {
        /// Its id, such as `op7`
        id: OperationId,
    },
    /// Resume a move or a split
    Resume {
        /// Its id, such as `op7`
        id: OperationId,
    },
    /// Cancel a move: the shard keeps the replica that was to go. Refused once the new replica votes, and for splits. Or a
    /// merge, unless the shards are merged already
    Cancel {
        /// Its id, such as `op7`
        id: OperationId,
    },
}

pub(super) async fn run(command: OperationCommand, client: &Client, output: Output) -> Result<(), Failure> {
    let change = async |id: OperationId, verb| output.show(&client.change_operation(&id.to_string(), verb).await?, row);
    match command {
        OperationCommand::Pause { id } => change(id, OperationVerb::Pause).await,
        OperationCommand::Resume { id } => change(id, OperationVerb::Resume).await,
        OperationCommand::Cancel { id } => change(id, OperationVerb::Cancel).await,
        OperationCommand::List => output.show(&client.operations().await?, text),
        OperationCommand::Show { id } => output.show(&client.operation(&id).await?, row),
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

pub(super) fn row(operation: &OperationInfo) -> String {
    rows(std::slice::from_ref(operation))
}

fn rows(operations: &[OperationInfo]) -> String {
    let rows = operations.iter().map(|operation| {
        [
            operation.id.clone(),
            operation.shard.to_string(),
            nodes(operation),
            operation.state(),
            since(operation.since_ms),
            operation.reason.clone(),
        ]
    });
    table(["ID", "SHARD", "NODE", "PHASE", "SINCE", "REASON"], rows)
}

/// The node of the replica, and the one that it comes from. Of a split, the new shard; of a merge, the one that goes.
fn nodes(operation: &OperationInfo) -> String {
    if let Some(right) = operation.right {
        return format!("takes {right}");
    }
    match (operation.from, operation.child) {
        (Some(from), _) => format!("{from} → {}", or_dash(operation.node)),
        (None, Some(_)) => divided(operation),
        (None, None) => or_dash(operation.node),
    }
}

/// What a split leaves where: the new shard, and where it begins.
pub(super) fn divided(operation: &OperationInfo) -> String {
    let key = operation.at.as_deref().filter(|at| !at.is_empty()).map(|at| cell(at.as_bytes()));
    let bucket = operation.bucket.map(|bucket| format!("bucket {bucket}"));
    let at = match (key, bucket) {
        (Some(key), Some(bucket)) => format!(" at {key} of {bucket}"),
        (Some(at), None) | (None, Some(at)) => format!(" at {at}"),
        (None, None) => String::new(),
    };
    format!("new {}{at}", or_dash(operation.child))
}

/// How long ago a phase began, by this machine's clock.
pub(super) fn since(since_ms: u64) -> String {
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_millis() as u64);
    format!("{} s", now_ms.saturating_sub(since_ms) / 1_000)
}
