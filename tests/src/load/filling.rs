//! Bytes that make every shard checkpoint and truncate its log.

use bytes::Bytes;
use flotilla_client::{Client, ClientOptions, PutOptions};
use tokio::task::JoinSet;

/// Records of one filling: enough for each shard to get some, always the same keys.
const RECORDS: usize = 64;
/// Bytes of each.
const RECORD_BYTES: usize = 8 << 10;
/// Puts on their way at a time: with memtables as small as these, more are refused.
const PARALLEL: usize = 8;

/// Puts half a MiB through these nodes, as well as they take it. Nothing is said of what became of it, and nobody reads it.
pub async fn fill(nodes: &[String], round: u32) {
    let mut puts = JoinSet::new();
    for lane in 0..PARALLEL {
        let endpoint = nodes[lane % nodes.len()].clone();
        puts.spawn(async move {
            let Ok(client) = Client::new(ClientOptions::new([endpoint])) else { return };
            for number in (lane..RECORDS).step_by(PARALLEL) {
                let key = format!("filling/{number}");
                let value: Bytes = format!("{round}/{key}/").bytes().cycle().take(RECORD_BYTES).collect();
                // Refused or not: the next filling comes.
                let _ = client.put("default", key.as_bytes(), value, &PutOptions::default()).await;
            }
        });
    }
    while puts.join_next().await.is_some() {}
}
