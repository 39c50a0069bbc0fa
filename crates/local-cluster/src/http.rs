//! The few questions that are asked over HTTP while a cluster comes up.

use std::{collections::BTreeSet, time::Duration};

use serde::Deserialize;

use crate::error::ClusterError;

/// How long one answer may take. Nodes are on this machine.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);
/// How long tokens from [`token`] are good for.
pub const TOKEN_TTL: Duration = Duration::from_secs(3_600);

/// What `GET /v1/cluster/status` says, as far as it matters here. Unknown fields are ignored.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Status {
    /// All shards that the node knows of.
    #[serde(default)]
    pub shards: Vec<ShardStatus>,
}

/// One shard.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct ShardStatus {
    /// Who leads it, in whatever form the node writes it.
    #[serde(default)]
    pub leader: Option<serde_json::Value>,
    /// Its replicas, likewise.
    #[serde(default)]
    pub replicas: Vec<serde_json::Value>,
}

impl Status {
    /// Whether there are shards, each with a leader and `replicas` voting replicas.
    #[must_use]
    pub fn is_whole(&self, replicas: usize) -> bool {
        let whole = |shard: &ShardStatus| shard.leader.is_some() && shard.voters() >= replicas;
        !self.shards.is_empty() && self.shards.iter().all(whole)
    }
}

impl ShardStatus {
    /// Replicas that vote; where the node does not say what they are, all.
    fn voters(&self) -> usize {
        let is_voter = |replica: &&serde_json::Value| replica.get("role").is_none_or(|role| role == "voter");
        let voters: BTreeSet<String> = self.replicas.iter().filter(is_voter).map(ToString::to_string).collect();
        voters.len()
    }
}

/// Whether the node at `http` (`http://…`) says that it is ready. No answer is a no.
pub async fn is_ready(http: &str) -> bool {
    let answer = async { client()?.get(format!("{http}/readyz")).send().await };
    answer.await.is_ok_and(|answer| answer.status().is_success())
}

/// Asks the node at `http` how the cluster is.
///
/// # Errors
/// No answer, or not one that is understood.
pub async fn status(http: &str) -> Result<Status, ClusterError> {
    let answer = client()?.get(format!("{http}/v1/cluster/status")).send().await?;
    Ok(answer.error_for_status()?.json().await?)
}

/// Asks the node at `http` for a token that `uses` nodes can join with, good for [`TOKEN_TTL`].
///
/// # Errors
/// No answer, or a refusal (no quorum, say).
pub async fn token(http: &str, uses: usize) -> Result<String, ClusterError> {
    #[derive(Deserialize)]
    struct Answer {
        token: String,
    }
    let body = serde_json::json!({"ttl_ms": TOKEN_TTL.as_millis() as u64, "uses": uses});
    let answer = client()?.post(format!("{http}/v1/cluster/tokens")).json(&body).send().await?;
    let answer: Answer = answer.error_for_status()?.json().await?;
    Ok(answer.token)
}

fn client() -> Result<reqwest::Client, reqwest::Error> {
    // No connection is kept: the node may be another process the next time.
    reqwest::Client::builder().no_proxy().timeout(ANSWER_WITHIN).pool_max_idle_per_host(0).build()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(text: &str) -> Status {
        serde_json::from_str(text).expect("JSON")
    }

    #[test]
    fn a_cluster_is_whole_when_each_shard_is() {
        assert!(!status("{}").is_whole(1), "no shards is not a cluster");
        let one = r#"{"node":1,"role":"voter"}"#;
        let two = r#"{"node":2,"role":"learner"}"#;
        let led = |replicas: &str| status(&format!(r#"{{"shards":[{{"leader":1,"replicas":[{replicas}]}}]}}"#));
        assert!(led(one).is_whole(1));
        assert!(!led(&format!("{one},{two}")).is_whole(2), "a learner does not count");
        assert!(led("1,2,3").is_whole(3));
        assert!(!status(r#"{"shards":[{"leader":null,"replicas":[1,2,3]}]}"#).is_whole(3));
    }
}
