//! `shard move`: begins a move, and follows it to its end.

use clap::Args;
use flotilla_api::MoveShard;
use flotilla_client::Client;
use flotilla_types::{NodeId, OperationPhase, ShardId};

use super::{
    super::{failure::Failure, operations, output::Output},
    follow::follow,
};

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
