//! `shard move`: begins a move, and follows it to its end.

use std::time::{Duration, Instant};

use clap::Args;
use flotilla_api::{MoveShard, OperationInfo};
use flotilla_client::Client;
use flotilla_types::{NodeId, OperationPhase, ShardId};
use indicatif::ProgressBar;

use super::super::{
    failure::{Failure, is_passing},
    operations,
    output::{Output, progress},
};

/// How often the move is looked at while the verb waits.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How long no node may answer while the verb waits.
const SILENCE_MAX: Duration = Duration::from_secs(60);

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The shard, as shown by `flotilla shards`
    shard: ShardId,
    /// The node whose replica moves
    #[arg(long, value_name = "NODE")]
    from: NodeId,
    /// The node that gets it
    #[arg(long, value_name = "NODE")]
    to: NodeId,
    /// Wait until the move has ended or is paused
    #[arg(long)]
    wait: bool,
}

pub(super) async fn run(arguments: &Arguments, client: &Client, output: Output) -> Result<(), Failure> {
    let &Arguments { shard, from, to, wait } = arguments;
    let mut operation = client.move_shard(shard, MoveShard { from, to }).await?;
    if wait {
        operation = follow(client, operation).await?;
    }
    output.show(&operation, operations::row)?;
    match operation.phase {
        OperationPhase::Cancelled | OperationPhase::Superseded => {
            Err(Failure::failed(format!("{} did not move the replica", operation.id)))
        }
        _ => Ok(()),
    }
}

/// Looks again until the operation has ended or is paused.
async fn follow(client: &Client, mut operation: OperationInfo) -> Result<OperationInfo, Failure> {
    let bar = progress("{bar:30} {msg}", 1);
    let mut heard = Instant::now();
    while !operation.done && operation.phase != OperationPhase::Paused {
        show(&bar, &operation);
        tokio::time::sleep(LOOK_EVERY).await;
        match client.operation(&operation.id).await {
            Ok(now) => (operation, heard) = (now, Instant::now()),
            Err(error) if is_passing(&error) && heard.elapsed() < SILENCE_MAX => {}
            Err(error) => return Err(error.into()),
        }
    }
    bar.finish_and_clear();
    Ok(operation)
}

fn show(bar: &ProgressBar, operation: &OperationInfo) {
    if let (Some(objects), Some(total)) = (operation.progress.objects, operation.progress.objects_total) {
        bar.set_length(total);
        bar.set_position(objects);
    }
    bar.set_message(operation.state());
}
