//! The comparisons of replicas that all nodes make, for operators.

use std::collections::BTreeSet;

use flotilla_api::{ConsistencyReport, ShardConsistency as ApiShard, Verdict};
use flotilla_control::{Comparison, Comparisons, INCONCLUSIVE_MS_MAX, ShardConsistency};
use flotilla_types::{NodeId, ShardId};

/// Shards that the status and the reasons of a report name; of more, only the number.
const NAMED_MAX: usize = 8;

/// What an operator can do when no majority says who is right.
const ADVICE: &str = "nothing was given up: compare what the nodes have with `flotilla digests --records`, and drain \
                      the node that is wrong; its replicas are then made anew from the others";

/// Joins the reports of nodes. `shards` are those of the metadata: one that no node has reported is inconclusive.
pub(super) fn report(
    reports: Vec<(NodeId, Option<Comparisons>)>,
    shards: impl IntoIterator<Item = ShardId>,
) -> ConsistencyReport {
    let mut joined = ConsistencyReport::default();
    let mut listed = BTreeSet::new();
    let mut is_complete = true;
    for (node, comparisons) in reports {
        let Some(comparisons) = comparisons else {
            joined.silent.push(node);
            continue;
        };
        joined.equal += comparisons.count(ShardConsistency::Equal);
        joined.different += comparisons.count(ShardConsistency::Different);
        joined.inconclusive += comparisons.count(ShardConsistency::Inconclusive);
        joined.single += comparisons.count(ShardConsistency::Single);
        is_complete &= comparisons.counts.values().sum::<u64>() == comparisons.shards.len() as u64;
        for (shard, comparison) in comparisons.shards {
            listed.insert(shard);
            joined.shards.push(describe(shard, node, comparison));
        }
    }
    // Nodes list a part of very many shards only; then those that nobody compares cannot be told from the others.
    let missing: Vec<_> = shards.into_iter().filter(|shard| is_complete && !listed.contains(shard)).collect();
    joined.inconclusive += missing.len() as u64;
    joined.shards.sort_by_key(|shard| (rank(shard.verdict), shard.shard));
    joined.reasons = reasons(&joined, &missing);
    joined.verdict = match &joined {
        report if report.different > 0 => Verdict::Different,
        report if report.inconclusive > 0 || report.single > 0 || !report.silent.is_empty() => Verdict::Inconclusive,
        report if report.equal == 0 => Verdict::Inconclusive,
        _ => Verdict::Equal,
    };
    joined
}

fn rank(verdict: Verdict) -> u8 {
    match verdict {
        Verdict::Different => 0,
        Verdict::Inconclusive => 1,
        Verdict::Equal => 2,
    }
}

fn describe(shard: ShardId, leader: NodeId, comparison: Comparison) -> ApiShard {
    let Comparison { verdict, index, fold, at_ms, since_ms, reason, .. } = comparison;
    ApiShard {
        shard,
        leader,
        verdict: match verdict {
            ShardConsistency::Equal => Verdict::Equal,
            ShardConsistency::Different => Verdict::Different,
            ShardConsistency::Inconclusive | ShardConsistency::Single => Verdict::Inconclusive,
        },
        index: index.map(|index| index.0),
        fold: fold.map(|fold| fold.0),
        at_ms,
        since_ms,
        reason: (!reason.is_empty()).then_some(reason),
    }
}

fn reasons(report: &ConsistencyReport, missing: &[ShardId]) -> Vec<String> {
    let of = |shard: &ApiShard| format!("{}: {}", shard.shard, shard.reason.as_deref().unwrap_or_default());
    let mut reasons: Vec<_> =
        report.shards.iter().filter(|shard| shard.verdict != Verdict::Equal).take(NAMED_MAX).map(of).collect();
    if !missing.is_empty() {
        let named: Vec<_> = missing.iter().take(NAMED_MAX).map(ToString::to_string).collect();
        reasons.push(format!("no leader reports {} shards, among them {}", missing.len(), named.join(", ")));
    }
    if !report.silent.is_empty() {
        let silent: Vec<_> = report.silent.iter().take(NAMED_MAX).map(ToString::to_string).collect();
        reasons.push(format!("no report from {}", silent.join(", ")));
    }
    reasons
}

/// What is wrong with the shards that this node leads.
pub(super) fn problems(here: &Comparisons, wall_ms: u64) -> Vec<String> {
    let is_late = |comparison: &Comparison| comparison.since_ms + INCONCLUSIVE_MS_MAX <= wall_ms;
    let describe = |(shard, comparison): &(ShardId, Comparison)| match comparison.verdict {
        ShardConsistency::Different if comparison.is_seen_to => {
            Some(format!("replicas of shard {shard} have different states: {}", comparison.reason))
        }
        ShardConsistency::Different => {
            Some(format!("replicas of shard {shard} have different states: {}. {ADVICE}", comparison.reason))
        }
        ShardConsistency::Inconclusive if is_late(comparison) => {
            Some(format!("replicas of shard {shard} could not be compared for an hour: {}", comparison.reason))
        }
        _ => None,
    };
    let mut problems: Vec<_> = here.shards.iter().filter_map(describe).collect();
    let more = problems.len().saturating_sub(NAMED_MAX);
    problems.truncate(NAMED_MAX);
    problems.extend((more > 0).then(|| format!("replicas of {more} more shards differ or could not be compared")));
    problems
}

#[cfg(test)]
mod tests {
    use flotilla_types::LogIndex;

    use super::*;

    fn comparisons(verdicts: &[(u64, ShardConsistency)]) -> Comparisons {
        let mut comparisons = Comparisons::default();
        for (shard, verdict) in verdicts {
            *comparisons.counts.entry(*verdict).or_default() += 1;
            let reason = if *verdict == ShardConsistency::Equal { "" } else { "the reason" };
            let (index, fold, at_ms) = (Some(LogIndex(9)), None, Some(50));
            let (is_seen_to, since_ms, reason) = (false, 40, reason.to_owned());
            let comparison = Comparison { verdict: *verdict, index, fold, at_ms, since_ms, is_seen_to, reason };
            comparisons.shards.push((ShardId(*shard), comparison));
        }
        comparisons
    }

    #[test]
    fn only_a_cluster_whose_every_shard_is_equal_is_equal() {
        let equal = || comparisons(&[(1, ShardConsistency::Equal)]);
        let of = |reports: Vec<(NodeId, Option<Comparisons>)>| report(reports, [1, 2].map(ShardId));
        let two = || comparisons(&[(2, ShardConsistency::Equal)]);
        let all = of(vec![(NodeId(1), Some(equal())), (NodeId(2), Some(two()))]);
        assert_eq!((all.verdict, all.equal, all.reasons.len()), (Verdict::Equal, 2, 0));
        let silent = of(vec![(NodeId(1), Some(equal())), (NodeId(2), Some(two())), (NodeId(3), None)]);
        assert_eq!((silent.verdict, &silent.reasons[0][..]), (Verdict::Inconclusive, "no report from n3"));
        let missing = of(vec![(NodeId(1), Some(equal()))]);
        assert_eq!((missing.verdict, missing.inconclusive), (Verdict::Inconclusive, 1));
        assert!(missing.reasons[0].contains("s2"), "{:?}", missing.reasons);
        for (other, verdict) in [
            (ShardConsistency::Inconclusive, Verdict::Inconclusive),
            (ShardConsistency::Single, Verdict::Inconclusive),
            (ShardConsistency::Different, Verdict::Different),
        ] {
            let found = of(vec![(NodeId(1), Some(equal())), (NodeId(2), Some(comparisons(&[(2, other)])))]);
            assert_eq!((found.verdict, &found.reasons[0][..]), (verdict, "s2: the reason"));
            assert_eq!(found.shards[0].shard, ShardId(2), "first");
        }
        assert_eq!(report(Vec::new(), []).verdict, Verdict::Inconclusive, "nothing was compared");
    }

    #[test]
    fn the_status_names_differences_at_once_and_what_is_inconclusive_after_an_hour() {
        let here = comparisons(&[
            (1, ShardConsistency::Different),
            (2, ShardConsistency::Inconclusive),
            (3, ShardConsistency::Single),
            (4, ShardConsistency::Equal),
        ]);
        let soon = problems(&here, 1_000);
        assert_eq!(soon.len(), 1, "{soon:?}");
        assert!(soon[0].contains("shard s1 have different states: the reason. nothing was given up"), "{soon:?}");
        let later = problems(&here, 40 + INCONCLUSIVE_MS_MAX);
        assert!(later[1].contains("shard s2 could not be compared"), "{later:?}");
        let many: Vec<_> = (0..20).map(|shard| (shard, ShardConsistency::Different)).collect();
        assert_eq!(problems(&comparisons(&many), 0).len(), NAMED_MAX + 1);
    }
}
