//! `digests`: whether the replicas of each shard are equal, with a verdict.
//!
//! The leaders of the shards compare their replicas all the time; any node joins what they say. With `--records`
//! all records are read and compared now. Every endpoint is then asked for its own replicas, because a node knows
//! only the digests of its own.
//!
//! Replicas are compared at the same applied entry. While some were read at different ones, the shards
//! without a verdict are read again, for a bounded time. What could not be compared by then is
//! `inconclusive`, which is not a pass.

mod consistency;

use std::time::{Duration, Instant};

use clap::Args;
use flotilla_api::{
    ClusterStatus, DIGEST_SHARDS_MAX, DigestComparison, DigestList, DigestReport, ShardVerdict, Verdict,
};
use flotilla_client::{Client, ClientError};
use flotilla_types::ShardId;
use futures_util::future::join_all;

use super::{
    failure::{Failure, describe},
    output::{Output, or_dash, table},
};

/// Digits of a digest in a table; JSON contains all.
const DIGITS: usize = 16;
/// Pause before shards are read again: some heartbeats, so that followers learn what is committed.
const PAUSE: Duration = Duration::from_millis(200);

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Read and compare all records now, on the nodes in --addr, and do not only ask what the leaders of the
    /// shards have found
    #[arg(long)]
    records: bool,
    /// With --records: how long to read again while replicas were read at different entries
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, default_value = "10s")]
    wait: Duration,
}

pub(super) async fn run(
    arguments: &Arguments,
    client: &Client,
    options: &super::ClientOptions,
    output: Output,
) -> Result<(), Failure> {
    if arguments.records {
        return compare_records(arguments, options, output).await;
    }
    let report = client.consistency().await?;
    output.show(&report, consistency::text)?;
    consistency::conclude(&report)
}

async fn compare_records(arguments: &Arguments, options: &super::ClientOptions, output: Output) -> Result<(), Failure> {
    let mut nodes = Vec::new();
    for endpoint in &options.addr {
        let options = options.for_endpoints(vec![endpoint.clone()])?;
        nodes.push((endpoint.as_str(), Client::new(options)?));
    }
    let mut comparison = DigestComparison::default();
    let began = Instant::now();
    read(&nodes, None, &mut comparison).await;
    loop {
        let undecided = comparison.undecided();
        if undecided.is_empty() || began.elapsed() + PAUSE >= arguments.wait {
            break;
        }
        tokio::time::sleep(PAUSE).await;
        for shards in undecided.chunks(DIGEST_SHARDS_MAX) {
            if began.elapsed() < arguments.wait {
                read(&nodes, Some(shards), &mut comparison).await;
            }
        }
    }
    let report = comparison.report();
    output.show(&report, text)?;
    conclude_records(&report)
}

/// Asks all nodes at once, so that replicas are read at nearly the same time.
async fn read(nodes: &[(&str, Client)], shards: Option<&[ShardId]>, comparison: &mut DigestComparison) {
    let answers = join_all(nodes.iter().map(|(_, client)| answer(client, shards))).await;
    for ((endpoint, _), answer) in nodes.iter().zip(answers) {
        match answer {
            Ok((status, digests)) => comparison.add(endpoint, &status, digests),
            Err(error) => comparison.add_silent(endpoint, describe(&error)),
        }
    }
}

async fn answer(client: &Client, shards: Option<&[ShardId]>) -> Result<(ClusterStatus, DigestList), ClientError> {
    let status = client.status().await?;
    let digests = match shards {
        Some(shards) => client.digests_of(shards).await?,
        None => client.digests().await?,
    };
    Ok((status, digests))
}

fn conclude_records(report: &DigestReport) -> Result<(), Failure> {
    let because = report.reasons.first().map_or("", String::as_str);
    let hint = "List every node in --addr; while clients write, use a longer --wait or try again later.";
    conclude(report.verdict, because, hint)
}

/// The outcome of the verb. `hint` is for a verdict that is none.
fn conclude(verdict: Verdict, because: &str, hint: &'static str) -> Result<(), Failure> {
    match verdict {
        Verdict::Equal => Ok(()),
        Verdict::Different => Err(Failure::failed(format!("replicas are different: {because}"))),
        Verdict::Inconclusive => Err(Failure::unavailable(format!("inconclusive: {because}")).hint(hint)),
    }
}

fn text(report: &DigestReport) -> String {
    let count = |verdict| report.shards.iter().filter(|shard| shard.verdict == verdict).count();
    let mut lines = vec![digest_table(report), String::new()];
    lines.push(format!(
        "Verdict: {} ({} shards equal, {} different, {} inconclusive)",
        word(report.verdict),
        count(Verdict::Equal),
        count(Verdict::Different),
        count(Verdict::Inconclusive)
    ));
    lines.extend(report.reasons.iter().map(|reason| format!("  - {reason}")));
    lines.join("\n")
}

fn digest_table(report: &DigestReport) -> String {
    let verdict_of = |id: ShardId| {
        let at = report.shards.binary_search_by_key(&id, |shard: &ShardVerdict| shard.shard).ok()?;
        Some(word(report.shards[at].verdict))
    };
    let mut rows = Vec::new();
    for list in &report.nodes {
        for replica in &list.replicas {
            let held = replica.held.as_ref();
            let cells = [
                replica.shard.to_string(),
                verdict_of(replica.shard).unwrap_or("-").to_owned(),
                list.node.to_string(),
                replica.replica.to_string(),
                or_dash(held.map(|held| held.applied)),
                or_dash(held.map(|held| held.records)),
                held.map_or_else(
                    || replica.reason.clone().unwrap_or_default(),
                    |held| held.digest.chars().take(DIGITS).collect(),
                ),
            ];
            rows.push(((replica.shard, list.node, replica.replica), cells));
        }
    }
    // Groups the replicas of a shard.
    rows.sort_by_key(|(order, _)| *order);
    let header = ["SHARD", "VERDICT", "NODE", "REPLICA", "APPLIED", "RECORDS", "DIGEST"];
    table(header, rows.into_iter().map(|(_, cells)| cells))
}

/// The verdict as JSON writes it.
fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Equal => "equal",
        Verdict::Different => "different",
        Verdict::Inconclusive => "inconclusive",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn report(verdict: Verdict) -> DigestReport {
        let reasons = if verdict == Verdict::Equal { json!([]) } else { json!(["s7: the reason"]) };
        serde_json::from_value(json!({
            "verdict": verdict, "reasons": reasons,
            "shards": [{ "shard": 7, "verdict": verdict }, { "shard": 10, "verdict": "equal", "applied": 3 }],
            "nodes": [
                { "node": 1, "replicas": [
                    { "shard": 10, "replica": 3, "reason": "the replica takes writes" },
                    { "shard": 7, "replica": 1, "held": { "applied": 5, "records": 1, "digest": "aa".repeat(32) } },
                ] },
            ],
        }))
        .expect("a report")
    }

    #[test]
    fn only_equal_is_a_pass_and_each_verdict_has_its_exit_code() {
        assert_eq!(conclude_records(&report(Verdict::Equal)), Ok(()));
        let code = |verdict| conclude_records(&report(verdict)).map_err(|failure| failure.code());
        assert_eq!(code(Verdict::Different), Err(1));
        assert_eq!(code(Verdict::Inconclusive), Err(4));
        assert_eq!(
            conclude_records(&DigestReport::default()).map_err(|failure| failure.code()),
            Err(4),
            "nothing was read"
        );
    }

    #[test]
    fn the_table_groups_replicas_and_names_the_verdicts() {
        let text = text(&report(Verdict::Inconclusive));
        for part in
            ["takes writes", "Verdict: inconclusive (1 shards equal, 0 different, 1 incon", "  - s7: the reason"]
        {
            assert!(text.contains(part), "{part} is missing in\n{text}");
        }
        assert!(text.find("s7 ") < text.find("s10 "), "by number, not by text:\n{text}");
        assert!(!text.contains(&"aa".repeat(9)), "{text}");
    }
}
