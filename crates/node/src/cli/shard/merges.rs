//! `shard merge`: begins a merge, and follows it to its end.

use clap::Args;
use flotilla_api::MergeShards;
use flotilla_client::Client;
use flotilla_types::{OperationPhase, ShardId};

use super::{
    super::{failure::Failure, operations, output::Output},
    follow::follow,
};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The shard that stays, as shown by `flotilla shards`
    left: ShardId,
    /// The shard whose keys follow, which becomes part of it
    right: ShardId,
    /// Wait until the merge has ended
    #[arg(long)]
    wait: bool,
}

pub(super) async fn run(arguments: &Arguments, client: &Client, output: Output) -> Result<(), Failure> {
    let Arguments { left, right, wait } = *arguments;
    let mut operation = client.merge_shards(left, MergeShards { right }).await?;
    if wait {
        operation = follow(client, operation).await?;
    }
    output.show(&operation, operations::row)?;
    match operation.phase {
        OperationPhase::Cancelled | OperationPhase::Superseded => {
            Err(Failure::failed(format!("{} did not merge the shards", operation.id)))
        }
        _ => Ok(()),
    }
}
