//! What nodes ask the leader of the metadata group about placement, and its answers, as they tell each other.
//!
//! Invariant: bytes of a peer never cause a panic, and what an answer names is bounded.

use bytes::Bytes;
use flotilla_placement::{
    Decision, Explanation, Fate, Hold, NodeStatus, NonDecision, PlanReplica, Reason, Rejected, Rejection,
    ReplicaExplanation, ReplicaPhase, SHARDS_NAMED_MAX, Shards,
};
use flotilla_types::{NodeId, ReplicaId, ShardId};
use flotilla_wire::{WireError, decode, encode, peer};

use super::journal::{JOURNAL_MAX, JournalEntry, Verdict};

/// Replicas, additions and non-decisions that are taken from an explanation, at most, and nodes of a
/// replica: as many as a cluster has.
const EXPLAINED_MAX: usize = 1_024;

/// A question about placement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlacementQuestion {
    /// Why the replicas of a shard are where they are.
    Explain(ShardId),
    /// What a plan would do now.
    Preview,
    /// Plan now, and say what was decided.
    Rebalance,
    /// What was decided, and what was not: the newest entries, at most [`JOURNAL_MAX`].
    Journal {
        /// How many.
        limit: usize,
    },
}

/// An answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PlacementReport {
    /// Decisions and non-decisions.
    pub entries: Vec<JournalEntry>,
    /// Of the shard that was asked about, if there is one.
    pub explanation: Option<Explanation>,
}

impl PlacementQuestion {
    pub(super) fn to_wire(self) -> peer::AskPlacement {
        let mut ask = peer::AskPlacement::default();
        ask.question = match self {
            Self::Explain(shard) => {
                ask.shard = shard.0;
                0
            }
            Self::Preview => 1,
            Self::Rebalance => 2,
            Self::Journal { limit } => {
                ask.limit = u32::try_from(limit).unwrap_or(u32::MAX);
                3
            }
        };
        ask
    }

    pub(super) fn from_wire(ask: &peer::AskPlacement) -> Option<Self> {
        Some(match ask.question {
            0 => Self::Explain(ShardId(ask.shard)),
            1 => Self::Preview,
            2 => Self::Rebalance,
            3 => Self::Journal { limit: usize::try_from(ask.limit).ok()?.min(JOURNAL_MAX) },
            _ => return None,
        })
    }
}

impl PlacementReport {
    /// As bytes, for a peer.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let entries = self.entries.iter().map(|entry| encode(&entry_to_wire(entry))).collect();
        let explanation = self.explanation.as_ref().map(|found| encode(&explanation_to_wire(found)));
        encode(&peer::PlacementReport { entries, explanation: explanation.unwrap_or_default() })
    }

    /// The output of [`PlacementReport::encode`]. Leaves out what this version does not know, and what is beyond
    /// the bounds.
    ///
    /// # Errors
    /// The bytes are something else.
    pub fn decode(bytes: Bytes) -> Result<Self, WireError> {
        let report: peer::PlacementReport = decode(bytes)?;
        let entries = each(report.entries, JOURNAL_MAX, entry_from_bytes)?;
        let explanation = match report.explanation {
            none if none.is_empty() => None,
            explanation => Some(explanation_from_wire(decode(explanation)?)?),
        };
        Ok(Self { entries, explanation })
    }
}

/// Decodes messages one by one, and leaves out those that are not known.
fn each<T>(
    bytes: Vec<Bytes>,
    max: usize,
    from_bytes: impl Fn(Bytes) -> Result<Option<T>, WireError>,
) -> Result<Vec<T>, WireError> {
    let mut decoded = Vec::new();
    for bytes in bytes.into_iter().take(max) {
        decoded.extend(from_bytes(bytes)?);
    }
    Ok(decoded)
}

fn entry_to_wire(entry: &JournalEntry) -> peer::PlacementEntry {
    let JournalEntry { at_ms, last_ms, count, .. } = *entry;
    let (decision, non_decision) = match &entry.verdict {
        Verdict::Decided(decision) => (encode(&decision_to_wire(decision)), Bytes::new()),
        Verdict::Undecided(undecided) => (Bytes::new(), encode(&non_decision_to_wire(undecided))),
    };
    peer::PlacementEntry { at_ms, last_ms, count, decision, non_decision }
}

fn entry_from_bytes(bytes: Bytes) -> Result<Option<JournalEntry>, WireError> {
    let peer::PlacementEntry { at_ms, last_ms, count, decision, non_decision } = decode(bytes)?;
    let verdict = if decision.is_empty() {
        non_decision_from_bytes(non_decision)?.map(Verdict::Undecided)
    } else {
        decision_from_bytes(decision)?.map(Verdict::Decided)
    };
    Ok(verdict.map(|verdict| JournalEntry { at_ms, last_ms, count, verdict }))
}

fn decision_to_wire(decision: &Decision) -> peer::PlacementDecision {
    let from = decision.from.unwrap_or(PlanReplica { replica: ReplicaId::NONE, node: NodeId::NONE });
    peer::PlacementDecision {
        shard: decision.shard.0,
        replica: from.replica.0,
        from: from.node.0,
        to: decision.to.unwrap_or(NodeId::NONE).0,
        reason: position(&Reason::ALL, &decision.reason),
        rejected: rejected_to_wire(&decision.rejected),
    }
}

fn decision_from_bytes(bytes: Bytes) -> Result<Option<Decision>, WireError> {
    let peer::PlacementDecision { shard, replica, from, to, reason, rejected } = decode(bytes)?;
    let rejected = each(rejected, EXPLAINED_MAX, rejected_from_bytes)?;
    let held = PlanReplica { replica: ReplicaId(replica), node: NodeId(from) };
    Ok(at(&Reason::ALL, reason).map(|reason| Decision {
        shard: ShardId(shard),
        from: (held.replica != ReplicaId::NONE).then_some(held),
        to: node(to),
        reason,
        rejected,
    }))
}

const STATUSES: [NodeStatus; 6] = [
    NodeStatus::Live,
    NodeStatus::Suspect,
    NodeStatus::Dead,
    NodeStatus::Draining,
    NodeStatus::Leaving,
    NodeStatus::Removed,
];

fn rejected_to_wire(rejected: &[Rejected]) -> Vec<Bytes> {
    let to_wire = |rejected: &Rejected| {
        let mut wire = peer::PlacementRejection { node: rejected.node.0, ..Default::default() };
        wire.why = match rejected.why {
            Rejection::HoldsReplica => 0,
            Rejection::Status(status) => {
                wire.status = position(&STATUSES, &status);
                1
            }
            Rejection::NoWeight => 2,
            Rejection::OldReplica => 3,
            Rejection::Closer { with } => {
                wire.with = with.0;
                4
            }
            Rejection::Fuller => 5,
            Rejection::Hash => 6,
            Rejection::WithinThreshold { difference, limit } => {
                (wire.difference, wire.limit) = (difference, limit);
                7
            }
            Rejection::MetadataGroup => 8,
            Rejection::WaitsForNodes => 9,
            Rejection::Later => 10,
            Rejection::PlacedByOperator => 11,
        };
        encode(&wire)
    };
    rejected.iter().map(to_wire).collect()
}

fn rejected_from_bytes(bytes: Bytes) -> Result<Option<Rejected>, WireError> {
    let peer::PlacementRejection { node, why, status, with, difference, limit } = decode(bytes)?;
    let why = match why {
        0 => Some(Rejection::HoldsReplica),
        1 => at(&STATUSES, status).map(Rejection::Status),
        2 => Some(Rejection::NoWeight),
        3 => Some(Rejection::OldReplica),
        4 => Some(Rejection::Closer { with: NodeId(with) }),
        5 => Some(Rejection::Fuller),
        6 => Some(Rejection::Hash),
        7 => Some(Rejection::WithinThreshold { difference, limit }),
        8 => Some(Rejection::MetadataGroup),
        9 => Some(Rejection::WaitsForNodes),
        10 => Some(Rejection::Later),
        11 => Some(Rejection::PlacedByOperator),
        _ => None,
    };
    Ok(why.map(|why| Rejected { node: NodeId(node), why }))
}

fn non_decision_to_wire(undecided: &NonDecision) -> peer::PlacementNonDecision {
    let mut wire = peer::PlacementNonDecision::default();
    let mut set_shards = |shards: &Shards| {
        wire.shards = shards.first.iter().map(|shard| shard.0).collect();
        wire.shards_total = shards.total as u64;
    };
    wire.why = match undecided {
        NonDecision::Stuck { node, reason, shards } => {
            set_shards(shards);
            (wire.node, wire.reason) = (node.0, position(&Reason::ALL, reason));
            0
        }
        NonDecision::Short { shards } => {
            set_shards(shards);
            1
        }
        NonDecision::Unsettled { shards } => {
            set_shards(shards);
            2
        }
        NonDecision::Off => 3,
        NonDecision::Held(Hold::RecentJoin) => 4,
        NonDecision::Held(Hold::Cpu { used_milli }) => {
            wire.used_milli = *used_milli;
            5
        }
        NonDecision::Balanced { difference, limit } => {
            (wire.difference, wire.limit) = (*difference, *limit);
            6
        }
        NonDecision::NoMove { difference, limit } => {
            (wire.difference, wire.limit) = (*difference, *limit);
            7
        }
    };
    wire
}

fn non_decision_from_bytes(bytes: Bytes) -> Result<Option<NonDecision>, WireError> {
    let wire: peer::PlacementNonDecision = decode(bytes)?;
    let peer::PlacementNonDecision { difference, limit, used_milli, .. } = wire;
    let shards = Shards {
        first: wire.shards.into_iter().take(SHARDS_NAMED_MAX).map(ShardId).collect(),
        total: usize::try_from(wire.shards_total).unwrap_or(usize::MAX),
    };
    Ok(match wire.why {
        0 => at(&Reason::ALL, wire.reason).map(|reason| NonDecision::Stuck { node: NodeId(wire.node), reason, shards }),
        1 => Some(NonDecision::Short { shards }),
        2 => Some(NonDecision::Unsettled { shards }),
        3 => Some(NonDecision::Off),
        4 => Some(NonDecision::Held(Hold::RecentJoin)),
        5 => Some(NonDecision::Held(Hold::Cpu { used_milli })),
        6 => Some(NonDecision::Balanced { difference, limit }),
        7 => Some(NonDecision::NoMove { difference, limit }),
        _ => None,
    })
}

fn explanation_to_wire(explanation: &Explanation) -> peer::PlacementExplanation {
    peer::PlacementExplanation {
        shard: explanation.shard.0,
        replicas_desired: explanation.replicas_desired.into(),
        is_short: explanation.is_short,
        replicas: explanation.replicas.iter().map(|replica| encode(&replica_to_wire(replica))).collect(),
        additions: explanation.additions.iter().map(|addition| encode(&decision_to_wire(addition))).collect(),
        undecided: explanation.undecided.iter().map(|undecided| encode(&non_decision_to_wire(undecided))).collect(),
    }
}

fn explanation_from_wire(wire: peer::PlacementExplanation) -> Result<Explanation, WireError> {
    Ok(Explanation {
        shard: ShardId(wire.shard),
        replicas_desired: u8::try_from(wire.replicas_desired).unwrap_or(u8::MAX),
        is_short: wire.is_short,
        replicas: each(wire.replicas, EXPLAINED_MAX, replica_from_bytes)?,
        additions: each(wire.additions, EXPLAINED_MAX, decision_from_bytes)?,
        undecided: each(wire.undecided, EXPLAINED_MAX, non_decision_from_bytes)?,
    })
}

const PHASES: [ReplicaPhase; 3] = [ReplicaPhase::InPlace, ReplicaPhase::Arriving, ReplicaPhase::Departing];

fn replica_to_wire(replica: &ReplicaExplanation) -> peer::PlacedReplica {
    let mut wire = peer::PlacedReplica {
        replica: replica.held.replica.0,
        node: replica.held.node.0,
        status: position(&STATUSES, &replica.status),
        count: replica.count,
        share_milli: replica.share_milli,
        phase: position(&PHASES, &replica.phase),
        rejected: rejected_to_wire(&replica.rejected),
        ..Default::default()
    };
    wire.fate = match replica.fate {
        Fate::Stays => 0,
        Fate::Goes { to, reason } => {
            (wire.to, wire.reason) = (to.unwrap_or(NodeId::NONE).0, position(&Reason::ALL, &reason));
            1
        }
        Fate::Stuck { reason } => {
            wire.reason = position(&Reason::ALL, &reason);
            2
        }
        Fate::Departs => 3,
    };
    wire
}

fn replica_from_bytes(bytes: Bytes) -> Result<Option<ReplicaExplanation>, WireError> {
    let wire: peer::PlacedReplica = decode(bytes)?;
    let rejected = each(wire.rejected, EXPLAINED_MAX, rejected_from_bytes)?;
    let reason = at(&Reason::ALL, wire.reason);
    let fate = match wire.fate {
        0 => Some(Fate::Stays),
        1 => reason.map(|reason| Fate::Goes { to: node(wire.to), reason }),
        2 => reason.map(|reason| Fate::Stuck { reason }),
        3 => Some(Fate::Departs),
        _ => None,
    };
    let known = fate.zip(at(&STATUSES, wire.status)).zip(at(&PHASES, wire.phase));
    Ok(known.map(|((fate, status), phase)| ReplicaExplanation {
        held: PlanReplica { replica: ReplicaId(wire.replica), node: NodeId(wire.node) },
        status,
        count: wire.count,
        share_milli: wire.share_milli,
        phase,
        fate,
        rejected,
    }))
}

fn node(id: u64) -> Option<NodeId> {
    Some(NodeId(id)).filter(|node| *node != NodeId::NONE)
}

/// The position of a value in the list of all.
fn position<T: PartialEq>(all: &[T], value: &T) -> u32 {
    all.iter().position(|known| known == value).map_or(u32::MAX, |at| at as u32)
}

fn at<T: Copy>(all: &[T], position: u32) -> Option<T> {
    all.get(usize::try_from(position).ok()?).copied()
}

#[cfg(test)]
mod tests {
    use flotilla_hostile::{Proportion, attack, mutated};
    use proptest::prelude::Just;

    use super::*;

    fn rejections() -> Vec<Rejected> {
        let statuses = STATUSES.map(Rejection::Status);
        let others = [
            Rejection::HoldsReplica,
            Rejection::NoWeight,
            Rejection::OldReplica,
            Rejection::Closer { with: NodeId(7) },
            Rejection::Fuller,
            Rejection::Hash,
            Rejection::WithinThreshold { difference: -5, limit: 1_000 },
            Rejection::MetadataGroup,
            Rejection::WaitsForNodes,
            Rejection::PlacedByOperator,
            Rejection::Later,
        ];
        let all = statuses.into_iter().chain(others);
        all.enumerate().map(|(node, why)| Rejected { node: NodeId(node as u64), why }).collect()
    }

    fn shards() -> Shards {
        Shards { first: vec![ShardId(3), ShardId(9)], total: 70 }
    }

    fn undecided() -> Vec<NonDecision> {
        let stuck = |reason| NonDecision::Stuck { node: NodeId(4), reason, shards: shards() };
        let others = [
            NonDecision::Short { shards: shards() },
            NonDecision::Unsettled { shards: Shards::default() },
            NonDecision::Off,
            NonDecision::Held(Hold::RecentJoin),
            NonDecision::Held(Hold::Cpu { used_milli: 950 }),
            NonDecision::Balanced { difference: 1, limit: 2 },
            NonDecision::NoMove { difference: 3, limit: -4 },
        ];
        Reason::ALL.into_iter().map(stuck).chain(others).collect()
    }

    fn decisions() -> Vec<Decision> {
        let held = Some(PlanReplica { replica: ReplicaId(8), node: NodeId(2) });
        let of = |reason| {
            let (from, to) = match reason {
                Reason::Surplus => (held, None),
                Reason::UnderReplicated => (None, Some(NodeId(5))),
                _ => (held, Some(NodeId(5))),
            };
            Decision { shard: ShardId(6), from, to, reason, rejected: rejections() }
        };
        Reason::ALL.into_iter().map(of).collect()
    }

    fn report() -> PlacementReport {
        let verdicts = decisions().into_iter().map(Verdict::Decided);
        let verdicts = verdicts.chain(undecided().into_iter().map(Verdict::Undecided));
        let entry = |verdict| JournalEntry { at_ms: 5, last_ms: 6, count: 7, verdict };
        let fates = [
            Fate::Stays,
            Fate::Goes { to: None, reason: Reason::Surplus },
            Fate::Goes { to: Some(NodeId(9)), reason: Reason::Balance },
            Fate::Stuck { reason: Reason::NodeDead },
            Fate::Departs,
        ];
        let replica = |(at, fate): (usize, Fate)| ReplicaExplanation {
            held: PlanReplica { replica: ReplicaId(at as u64 + 1), node: NodeId(3) },
            status: STATUSES[at],
            count: 11,
            share_milli: 12,
            phase: PHASES[at % PHASES.len()],
            fate,
            rejected: rejections(),
        };
        let explanation = Explanation {
            shard: ShardId(4),
            replicas_desired: 3,
            replicas: fates.into_iter().enumerate().map(replica).collect(),
            additions: decisions(),
            is_short: true,
            undecided: undecided(),
        };
        PlacementReport { entries: verdicts.map(entry).collect(), explanation: Some(explanation) }
    }

    #[test]
    fn every_verdict_survives_the_wire() {
        let report = report();
        assert_eq!(PlacementReport::decode(report.encode()), Ok(report));
        let none = PlacementReport::default();
        assert_eq!(PlacementReport::decode(none.encode()), Ok(none));
    }

    #[test]
    fn reports_are_bounded_and_garbage_is_an_error() {
        let mut long = report();
        long.entries = vec![long.entries[0].clone(); 2 * JOURNAL_MAX];
        assert_eq!(PlacementReport::decode(long.encode()).map(|report| report.entries.len()), Ok(JOURNAL_MAX));
        assert!(PlacementReport::decode(Bytes::from_static(b"\xff\xff")).is_err());
        attack(300, mutated(Just(report().encode().to_vec())), |bytes| {
            let length = bytes.len();
            if let Ok(report) = Proportion::DEFAULT.of(length, || PlacementReport::decode(bytes.into())) {
                assert!(report.entries.len() <= JOURNAL_MAX);
            }
        });
    }
}
