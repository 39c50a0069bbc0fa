//! `shard split`: begins a split, and follows it to its end.

use std::{ffi::OsString, os::unix::ffi::OsStringExt as _};

use clap::Args;
use flotilla_api::{Encoding, SplitShard};
use flotilla_client::Client;
use flotilla_types::{OperationPhase, ShardId};

use super::{
    super::{failure::Failure, operations, output::Output},
    follow::follow,
};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The shard, as shown by `flotilla shards`
    shard: ShardId,
    /// The first key of the new shard [default: the middle, between two buckets or else of the keys]
    #[arg(long, value_name = "KEY")]
    at: Option<OsString>,
    /// Wait until the split has ended or is paused
    #[arg(long)]
    wait: bool,
}

pub(super) async fn run(arguments: Arguments, client: &Client, output: Output) -> Result<(), Failure> {
    let Arguments { shard, at, wait } = arguments;
    let request = at.map_or_else(|| Ok(SplitShard::default()), |key| request_at(&key.into_vec()))?;
    let mut operation = client.split_shard(shard, &request).await?;
    if wait {
        operation = follow(client, operation).await?;
    }
    output.show(&operation, operations::row)?;
    match operation.phase {
        OperationPhase::Cancelled | OperationPhase::Superseded => {
            Err(Failure::failed(format!("{} did not split the shard", operation.id)))
        }
        _ => Ok(()),
    }
}

/// The request to split at a key, whose bytes need not be text.
fn request_at(key: &[u8]) -> Result<SplitShard, Failure> {
    let encoding = if str::from_utf8(key).is_ok() { Encoding::Utf8 } else { Encoding::Base64 };
    let at = encoding.encode(key).map_err(|error| Failure::failed(error.to_string()))?;
    Ok(SplitShard { at: Some(at), encoding })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_is_no_text_is_sent_in_base64() {
        let request = |key: &[u8]| request_at(key).map(|request| (request.at, request.encoding)).expect("a request");
        assert_eq!(request(b"key"), (Some("key".to_owned()), Encoding::Utf8));
        assert_eq!(request(b"\xff"), (Some("/w==".to_owned()), Encoding::Base64));
    }
}
