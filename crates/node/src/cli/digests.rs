//! `digests`: whether the replicas of each shard hold the same records. Every endpoint is asked for its own
//! replicas, because a node knows only the digests of its own.

use std::collections::BTreeMap;

use flotilla_api::DigestList;
use flotilla_client::{Client, ClientOptions};

use super::{
    failure::Failure,
    output::{Output, or_dash, table},
};

/// Digits of a digest in a table; JSON contains all.
const DIGITS: usize = 16;

pub(super) async fn run(options: &super::ClientOptions, output: Output) -> Result<(), Failure> {
    let mut lists = Vec::new();
    for endpoint in &options.addr {
        let client = Client::new(ClientOptions { endpoints: vec![endpoint.clone()], timeout: options.timeout })?;
        lists.push(client.digests().await?);
    }
    output.show(&lists, |lists| digest_table(lists))?;
    match difference(&lists) {
        Some(difference) => Err(Failure::failed(difference)),
        None => Ok(()),
    }
}

fn digest_table(lists: &[DigestList]) -> String {
    let mut rows = Vec::new();
    for list in lists {
        for replica in &list.replicas {
            let held = replica.held.as_ref();
            rows.push([
                replica.shard.to_string(),
                list.node.to_string(),
                replica.replica.to_string(),
                or_dash(held.map(|held| held.applied)),
                or_dash(held.map(|held| held.records)),
                held.map_or_else(
                    || replica.reason.clone().unwrap_or_default(),
                    |held| held.digest.chars().take(DIGITS).collect(),
                ),
            ]);
        }
    }
    // Groups the replicas of a shard.
    rows.sort_by_key(|row| (row[0].trim_start_matches('s').parse::<u64>().unwrap_or(u64::MAX), row[1].clone()));
    table(["SHARD", "NODE", "REPLICA", "APPLIED", "RECORDS", "DIGEST"], rows)
}

/// Describes the first two replicas of a shard that have applied the same entries and hold different records.
fn difference(lists: &[DigestList]) -> Option<String> {
    let mut seen = BTreeMap::new();
    for list in lists {
        for replica in &list.replicas {
            let Some(held) = &replica.held else { continue };
            let (node, first) = seen.entry((replica.shard, held.applied)).or_insert((list.node, &held.digest));
            if *first != &held.digest {
                let shard = replica.shard;
                return Some(format!("{shard} differs on {node} and {} after entry {}", list.node, held.applied));
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(node: u64, applied: u64, digest: &str) -> DigestList {
        let text = format!(
            r#"{{"node":{node},"replicas":[{{"shard":7,"replica":{node},"held":{{"applied":{applied},"records":1,"digest":"{digest}"}}}},
                {{"shard":8,"replica":9,"reason":"the replica takes writes"}}]}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn only_replicas_at_the_same_entry_are_compared() {
        assert_eq!(difference(&[list(1, 5, "aa"), list(2, 6, "bb"), list(3, 5, "aa")]), None);
        let differs = difference(&[list(1, 5, "aa"), list(2, 6, "bb"), list(3, 6, "cc")]).unwrap();
        assert_eq!(differs, "s7 differs on n2 and n3 after entry 6");
        assert!(digest_table(&[list(1, 5, "aa")]).contains("takes writes"));
    }
}
