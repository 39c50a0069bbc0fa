//! The verdicts of the leaders' own comparisons, as text and as exit codes.

use flotilla_api::{ConsistencyReport, ShardConsistency};

use super::word;
use crate::cli::{
    failure::Failure,
    output::{or_dash, table, time},
};

pub(super) fn conclude(report: &ConsistencyReport) -> Result<(), Failure> {
    let because = report.reasons.first().map_or("no shard was compared", String::as_str);
    let hint = "Shards are compared within seconds of a change; try again, or compare all records with --records.";
    super::conclude(report.verdict, because, hint)
}

pub(super) fn text(report: &ConsistencyReport) -> String {
    let ConsistencyReport { equal, different, inconclusive, single, .. } = report;
    let rows = report.shards.iter().map(|shard: &ShardConsistency| {
        [
            shard.shard.to_string(),
            word(shard.verdict).to_owned(),
            shard.leader.to_string(),
            or_dash(shard.index),
            or_dash(shard.fold),
            or_dash(shard.at_ms.map(time)),
            shard.reason.clone().unwrap_or_default(),
        ]
    });
    let mut lines = vec![table(["SHARD", "VERDICT", "LEADER", "ENTRY", "FOLD", "COMPARED", "REASON"], rows)];
    lines.push(String::new());
    lines.push(format!(
        "Verdict: {} ({equal} shards equal, {different} different, {inconclusive} inconclusive, {single} with one replica)",
        word(report.verdict)
    ));
    lines.extend(report.reasons.iter().map(|reason| format!("  - {reason}")));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use flotilla_api::Verdict;
    use serde_json::json;

    use super::*;

    fn report(verdict: Verdict) -> ConsistencyReport {
        serde_json::from_value(json!({
            "verdict": verdict, "reasons": ["s7: the reason"],
            "equal": 1, "different": 0, "inconclusive": 1, "single": 0,
            "shards": [
                { "shard": 7, "leader": 1, "verdict": "inconclusive", "since_ms": 5, "reason": "the reason" },
                { "shard": 10, "leader": 2, "verdict": "equal", "index": 3, "fold": 2, "at_ms": 5, "since_ms": 5 },
            ],
        }))
        .expect("a report")
    }

    #[test]
    fn only_equal_is_a_pass_and_each_verdict_has_its_exit_code() {
        assert_eq!(conclude(&report(Verdict::Equal)), Ok(()));
        let code = |verdict| conclude(&report(verdict)).map_err(|failure| failure.code());
        assert_eq!(code(Verdict::Different), Err(1));
        assert_eq!(code(Verdict::Inconclusive), Err(4));
        assert_eq!(conclude(&ConsistencyReport::default()).map_err(|failure| failure.code()), Err(4));
    }

    #[test]
    fn the_table_names_verdict_entry_and_reason_of_each_shard() {
        let text = text(&report(Verdict::Inconclusive));
        for part in ["s7", "the reason", "Verdict: inconclusive (1 shards equal, 0 different, 1 inconclusive, 0 with"] {
            assert!(text.contains(part), "{part} is missing in\n{text}");
        }
    }
}
