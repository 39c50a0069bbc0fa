//! Judges what the voters of a shard say of their states.
//!
//! Invariants: *equal* means that all voters have been compared with each other; what could not be compared is
//! *inconclusive*. A replica is convicted only by a majority of all voters which agree with each other, of whom
//! two are witnesses, under one binary version, and only with what both have made themselves.
//!
//! A *witness* has applied all entries itself, or was seen to be equal to all others after it took its state from
//! another replica, its records included: a copy of a wrong state would agree with it.

use std::collections::{BTreeMap, BTreeSet};

use flotilla_replication::{ChainDigest, SAMPLE_SPACING, SYSTEM_SPACING};
use flotilla_types::{LogIndex, NodeId, ReplicaId};

use super::super::fingerprints::{Evidence, Point, Said};

/// A voter, and what it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Voter {
    pub(super) replica: ReplicaId,
    pub(super) node: NodeId,
    pub(super) said: Option<Said>,
    /// What the metadata knows of its node's binary.
    pub(super) build: String,
}

/// Up to where all voters of a shard were once seen to be equal.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Agreed {
    /// In what their entries wrote and in the machine's own state.
    pub(super) state: LogIndex,
    /// In their records.
    pub(super) records: LogIndex,
}

/// What the voters of a shard say together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Judgement {
    Equal {
        /// The lowest entry up to which two of them were compared.
        index: LogIndex,
        /// The last fold whose bases all of them have.
        fold: Option<LogIndex>,
        agreed: Agreed,
    },
    Inconclusive(String),
    /// Two have different states.
    Different {
        /// The first entry after which they were seen to.
        index: LogIndex,
        verdict: Result<Conviction, String>,
    },
}

/// A replica that differs from a majority.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Conviction {
    pub(super) replica: ReplicaId,
    pub(super) node: NodeId,
    pub(super) evidence: Evidence,
    /// The voters that agree.
    pub(super) majority: Vec<ReplicaId>,
}

/// What two replicas are to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Relation {
    /// They have nothing to compare.
    Unknown,
    /// At each point that both have, the last at this entry.
    Equal(LogIndex),
    /// First at this point.
    Different(Point),
}

/// The points of a replica that can be compared.
struct Points<'a> {
    said: &'a Said,
    points: BTreeMap<Point, ChainDigest>,
}

impl<'a> Points<'a> {
    fn of(said: &'a Said) -> Self {
        Self { said, points: said.points().collect() }
    }

    fn common<'b>(&'b self, other: &'b Self) -> impl Iterator<Item = (Point, bool)> + 'b {
        let is_comparable = self.origin().is_some() && self.origin() == other.origin();
        let points = is_comparable.then_some(&self.points).into_iter().flatten();
        points.filter_map(|(point, digest)| Some((*point, other.points.get(point)? == digest)))
    }

    /// Chains with different beginnings, or of different meanings, say nothing about each other.
    fn origin(&self) -> Option<(LogIndex, flotilla_types::ClusterVersion)> {
        let fingerprints = &self.said.fingerprints;
        Some((fingerprints.chain.as_ref()?.begun, fingerprints.meaning))
    }

    fn relation(&self, other: &Self) -> Relation {
        let first_difference = self.common(other).filter(|(_, equal)| !equal).min_by_key(|(point, _)| point.index());
        if let Some((point, _)) = first_difference {
            return Relation::Different(point);
        }
        // Bases alone are too old to say that two states are equal.
        let states = self.common(other).filter(|(point, _)| !matches!(point, Point::Base(_)));
        states.map(|(point, _)| point.index()).max().map_or(Relation::Unknown, Relation::Equal)
    }
}

/// Judges the voters of one shard. `agreed` is what was known of them before.
pub(super) fn judge(voters: &[Voter], agreed: Agreed) -> Judgement {
    let points: Vec<_> = voters.iter().map(|voter| voter.said.as_ref().map(Points::of)).collect();
    let relation = |one: usize, other: usize| match (&points[one], &points[other]) {
        (Some(one), Some(other)) => one.relation(other),
        _ => Relation::Unknown,
    };
    let pairs = || (0..voters.len()).flat_map(|one| (one + 1..voters.len()).map(move |other| (one, other)));
    let (mut index, mut first, mut unknown) = (None::<LogIndex>, None::<LogIndex>, None);
    for (one, other) in pairs() {
        match relation(one, other) {
            Relation::Unknown => unknown = unknown.or(Some((one, other))),
            Relation::Equal(at) => index = Some(index.map_or(at, |index| index.min(at))),
            Relation::Different(at) => first = Some(first.map_or(at.index(), |first| first.min(at.index()))),
        }
    }
    let common = common_to_all(&points);
    let agreed = common_agreement(&common, agreed);
    match (first, unknown, index) {
        (Some(first), ..) if !is_one_binary(voters) => Judgement::Inconclusive(format!(
            "the replicas differ after entry {first}, and their nodes run different binaries"
        )),
        (Some(index), ..) => {
            let verdict = convict(voters, &points, relation, agreed);
            Judgement::Different { index, verdict }
        }
        (None, None, Some(index)) => {
            let bases = common.into_iter().filter(|point| matches!(point, Point::Base(_)));
            let fold = bases.map(Point::index).max();
            Judgement::Equal { index, fold, agreed }
        }
        (None, unknown, _) => Judgement::Inconclusive(why_unknown(voters, unknown)),
    }
}

/// Whether all that say something do it by one binary. Another one may give entries another meaning: nobody could
/// tell who is right.
fn is_one_binary(voters: &[Voter]) -> bool {
    let mut binaries = voters.iter().filter_map(|voter| Some((voter.said.as_ref()?.supported, &voter.build)));
    let first = binaries.next();
    binaries.all(|binary| Some(binary) == first)
}

/// The replica that differs from a majority, or why there is none.
fn convict(
    voters: &[Voter],
    points: &[Option<Points<'_>>],
    relation: impl Fn(usize, usize) -> Relation,
    agreed: Agreed,
) -> Result<Conviction, String> {
    let differs = |one: usize, other: usize| match relation(one.min(other), one.max(other)) {
        Relation::Different(point) => Some(point),
        _ => None,
    };
    let is_equal = |one: usize, other: usize| {
        one == other || matches!(relation(one.min(other), one.max(other)), Relation::Equal(_))
    };
    let all = 0..voters.len();
    // Those that agree with each other: any two of them were compared.
    let group = |of: usize| {
        let near: Vec<_> = all.clone().filter(|other| is_equal(of, *other)).collect();
        near.iter().all(|one| near.iter().all(|other| is_equal(*one, *other))).then_some(near)
    };
    let quorum = voters.len() / 2 + 1;
    let groups = all.clone().filter_map(group);
    let majority = groups.max_by_key(Vec::len).filter(|group| voters.len() >= 3 && group.len() >= quorum.max(2));
    let Some(majority) = majority else {
        return Err("the replicas differ, and no majority of them agrees".to_owned());
    };
    let odd = all.clone().find(|odd| majority.iter().all(|other| *odd != *other && differs(*odd, *other).is_some()));
    let Some(odd) = odd else {
        return Err("the replicas differ, and none differs from all of a majority".to_owned());
    };
    let is_witness = |voter: &&usize| points[**voter].as_ref().is_some_and(|points| is_witness(points, agreed));
    let witness = majority.iter().filter(is_witness).collect::<Vec<_>>();
    let [first, _, ..] = witness[..] else {
        let why = "the replicas differ, and those that agree may be copies of one of them";
        return Err(why.to_owned());
    };
    let point = differs(odd, *first);
    let evidence =
        point.and_then(|point| Some(Evidence { point, digest: *points[*first].as_ref()?.points.get(&point)? }));
    let Some(evidence) = evidence else {
        return Err("the replicas differ in nothing that can be shown".to_owned());
    };
    let majority = majority.iter().map(|voter| voters[*voter].replica).collect();
    Ok(Conviction { replica: voters[odd].replica, node: voters[odd].node, evidence, majority })
}

fn is_witness(points: &Points<'_>, agreed: Agreed) -> bool {
    let Some(chain) = &points.said.fingerprints.chain else { return false };
    chain.copied.is_none_or(|copied| agreed.state > copied && agreed.records > copied)
}

/// The points that all have, with one digest. None if one says nothing.
fn common_to_all(points: &[Option<Points<'_>>]) -> BTreeSet<Point> {
    let all: Option<Vec<_>> = points.iter().map(Option::as_ref).collect();
    let Some([first, others @ ..]) = all.as_deref() else { return BTreeSet::new() };
    let equal = |other| first.common(other).filter(|(_, equal)| *equal).map(|(point, _)| point).collect();
    others.iter().map(|other| equal(other)).fold(equal(first), |common: BTreeSet<_>, equal| &common & &equal)
}

/// Up to where all were equal, as far as is known by now. A sample tells of the machine's own state as of the
/// last time when it went into the chain.
fn common_agreement(common: &BTreeSet<Point>, before: Agreed) -> Agreed {
    common.iter().fold(before, |agreed, point| match *point {
        Point::Sample(at) => {
            let of_fold = !at.0.is_multiple_of(SAMPLE_SPACING);
            let state = if of_fold { at } else { LogIndex(at.0 / SYSTEM_SPACING * SYSTEM_SPACING) };
            Agreed { state: agreed.state.max(state), ..agreed }
        }
        Point::Now(at) => Agreed { state: agreed.state.max(at), ..agreed },
        Point::Base(fold) => Agreed { records: agreed.records.max(fold), ..agreed },
    })
}

fn why_unknown(voters: &[Voter], pair: Option<(usize, usize)>) -> String {
    let silent: Vec<_> =
        voters.iter().filter(|voter| voter.said.is_none()).map(|voter| voter.node.to_string()).collect();
    if !silent.is_empty() {
        return format!("no answer about its replica from {}", silent.join(", "));
    }
    let Some((one, other)) = pair else { return "it has one voter".to_owned() };
    let (one, other) = (&voters[one], &voters[other]);
    let of = |voter: &Voter| voter.said.as_ref().and_then(|said| said.fingerprints.chain.as_ref()).is_some();
    if !of(one) || !of(other) {
        return "its replicas have no chain yet".to_owned();
    }
    format!("the replicas on {} and {} have no entry at which both can be compared", one.node, other.node)
}

#[cfg(test)]
mod tests;
