//! Judges the health of shards, in two words for two facts.
//!
//! A shard is *available* when it has a leader that a quorum of its own voters supports. It is *fully
//! replicated* when it has its desired number of replicas and all its own voters are on live nodes that keep
//! them (a draining one does, a leaving one does not). A
//! shard can be the one without the other: with one of three nodes down it is available and not fully
//! replicated. The voters are those of the shard's own configuration, never those that placement wants: a
//! node that was removed by force stays a voter, and a missing one, until the shard itself has replaced it.
//!
//! Pure: facts go in, verdicts come out. The work is linear in voters.

use std::collections::BTreeMap;

use flotilla_api::{Liveness, LocalReplica, LocalRole, NodeInfo, NodeState, ShardInfo};
use flotilla_meta::ShardRecord;
use flotilla_placement::replicas_possible;
use flotilla_types::{NodeId, ReplicaRole, ShardId};

/// What is known about the leader of a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Leadership {
    /// None is known.
    Unknown,
    /// This node votes in the shard and hears from its leader, or leads it: Raft itself ends such a
    /// leadership within an election timeout after its quorum is lost.
    Confirmed,
    /// Another node said that it leads, some time ago. It need not have noticed the loss of its quorum, nor
    /// said so.
    Reported {
        /// Whether that node is live.
        is_live: bool,
    },
}

/// A voter of a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Voter {
    /// Whether its node is live and holds this replica.
    pub(super) is_live: bool,
    /// Whether its node keeps its replicas: it is neither leaving nor decommissioned nor lost nor removed.
    pub(super) is_on_lasting_node: bool,
}

/// What is known about a shard.
#[derive(Debug, Clone)]
pub(super) struct ShardFacts {
    pub(super) leadership: Leadership,
    /// The voters of its configuration: one list, or the two halves of a joint one, each of which needs a
    /// quorum.
    pub(super) halves: Vec<Vec<Voter>>,
    /// Its desired number of replicas.
    pub(super) desired: usize,
}

/// The health of a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ShardHealth {
    pub(super) is_available: bool,
    pub(super) is_fully_replicated: bool,
    /// Live voters beyond a quorum.
    pub(super) failures_survivable: usize,
}

impl ShardFacts {
    pub(super) fn judge(&self) -> ShardHealth {
        // `None`: there is no quorum, which is less than any number to spare.
        let spare = |voters: &Vec<Voter>| {
            let live = voters.iter().filter(|voter| voter.is_live).count();
            live.checked_sub(voters.len() / 2 + 1)
        };
        let spare = self.halves.iter().map(spare).min().flatten();
        let is_complete = |voters: &Vec<Voter>| {
            voters.len() >= self.desired.max(1) && voters.iter().all(|voter| voter.is_live && voter.is_on_lasting_node)
        };
        ShardHealth {
            is_available: match self.leadership {
                Leadership::Unknown => false,
                Leadership::Confirmed => true,
                Leadership::Reported { is_live } => is_live && spare.is_some(),
            },
            is_fully_replicated: !self.halves.is_empty() && self.halves.iter().all(is_complete),
            failures_survivable: spare.unwrap_or(0),
        }
    }
}

/// Counts over all shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Totals {
    pub(super) available: u32,
    pub(super) replicated: u32,
    pub(super) shards: u32,
    /// Failures that every shard survives; none without a shard.
    pub(super) failures_survivable: u32,
}

impl Totals {
    pub(super) fn of(shards: &[ShardInfo]) -> Self {
        let count = |is_counted: fn(&ShardInfo) -> bool| shards.iter().filter(|shard| is_counted(shard)).count() as u32;
        Self {
            available: count(|shard| shard.available),
            replicated: count(|shard| shard.fully_replicated),
            shards: shards.len() as u32,
            failures_survivable: shards.iter().map(|shard| shard.failures_survivable).min().unwrap_or(0),
        }
    }
}

/// Whether the shards let a node serve clients. A node that has been ready stays so while shards wait for
/// their first leader: else each new collection would take all nodes out of their load balancers. `had_hint`
/// must not be newer than the shards: a shard that gets its first leader in between would count as lost.
pub(super) fn serves(shards: &[ShardInfo], was_ready: bool, had_hint: impl Fn(ShardId) -> bool) -> bool {
    let is_new = |shard: &ShardInfo| was_ready && !was_led(shard, &had_hint);
    !shards.is_empty() && shards.iter().all(|shard| shard.available || is_new(shard))
}

/// Whether a shard had a leader before. A hint about a shard with a voter here can be newer than what that
/// voter has published, so only the voter is asked: its first leader commits an entry.
fn was_led(shard: &ShardInfo, had_hint: impl Fn(ShardId) -> bool) -> bool {
    let is_voter = |local: &&LocalReplica| !matches!(local.role, LocalRole::Learner | LocalRole::Quarantined);
    match shard.local.as_ref().filter(is_voter) {
        Some(voter) => voter.commit > ShardRecord::INITIAL_POSITION.0.0,
        None => had_hint(shard.id),
    }
}

/// The problems of a cluster, the worst first.
pub(super) fn problems(has_metadata_leader: bool, nodes: &[NodeInfo], shards: &[ShardInfo]) -> Vec<String> {
    let mut problems = Vec::new();
    if !has_metadata_leader {
        problems.push("the metadata group has no leader: nodes and collections cannot change".to_owned());
    }
    let totals = Totals::of(shards);
    let unavailable = totals.shards - totals.available;
    if unavailable > 0 {
        let total = totals.shards;
        problems.push(format!("{unavailable} of {total} shards are not available: no quorum supports a leader"));
    }
    let incomplete = incomplete(nodes, shards);
    if incomplete > 0 {
        problems.push(format!("{incomplete} of {} shards are not fully replicated", totals.shards));
    }
    for (node, count) in voters_on_gone_nodes(nodes, shards) {
        problems.push(format!("{count} shards still have a voter on {node}, which was removed or lost"));
    }
    for node in nodes.iter().filter(|node| node.state != NodeState::Lost) {
        if matches!(node.liveness, Liveness::Down | Liveness::Suspect | Liveness::Left) {
            problems.push(format!("node {} ({}) does not answer", node.id, node.name));
        }
    }
    problems
}

/// How many shards have fewer replicas, or worse ones, than the cluster's nodes could hold. That a small
/// cluster cannot hold all desired replicas is a fact (`replicated_shards`) and no problem: nothing is wrong
/// with it, and only more nodes change it.
fn incomplete(nodes: &[NodeInfo], shards: &[ShardInfo]) -> usize {
    let lasting: BTreeMap<NodeId, &NodeInfo> =
        nodes.iter().filter(|node| keeps_replicas(node.state)).map(|node| (node.id, node)).collect();
    let taking = lasting.values().filter(|node| node.weight > 0).count();
    let is_complete = |shard: &&ShardInfo| {
        let mut voters = shard.replicas.iter().filter(|replica| replica.role == ReplicaRole::Voter);
        // A node that takes none keeps those that it has.
        let keeping = voters.clone().filter(|voter| lasting.get(&voter.node).is_some_and(|node| node.weight == 0));
        let possible = replicas_possible(shard.desired_replicas.into(), taking + keeping.count());
        voters.clone().count() >= possible
            && voters.all(|voter| lasting.get(&voter.node).is_some_and(|node| node.liveness == Liveness::Alive))
    };
    shards.iter().filter(|shard| !shard.fully_replicated).filter(|shard| !is_complete(shard)).count()
}

fn keeps_replicas(state: NodeState) -> bool {
    matches!(state, NodeState::Active | NodeState::Draining | NodeState::Drained)
}

/// How many shards have a voter on each node that never returns. `nodes` has every node that was not removed.
fn voters_on_gone_nodes(nodes: &[NodeInfo], shards: &[ShardInfo]) -> BTreeMap<NodeId, usize> {
    let states: BTreeMap<NodeId, NodeState> = nodes.iter().map(|node| (node.id, node.state)).collect();
    let mut gone = BTreeMap::new();
    let voters = shards.iter().flat_map(|shard| &shard.replicas).filter(|replica| replica.role == ReplicaRole::Voter);
    for voter in voters {
        if states.get(&voter.node).is_none_or(|state| matches!(state, NodeState::Lost | NodeState::Removed)) {
            *gone.entry(voter.node).or_default() += 1;
        }
    }
    gone
}

/// Replicas and leaderships of each node.
pub(super) fn loads(shards: &[ShardInfo]) -> BTreeMap<NodeId, (u32, u32)> {
    let mut loads = BTreeMap::<NodeId, (u32, u32)>::new();
    for shard in shards {
        // A node that replaces a replica has two in the shard; they count once.
        let mut nodes: Vec<NodeId> = shard.replicas.iter().map(|replica| replica.node).collect();
        nodes.sort_unstable();
        nodes.dedup();
        for node in nodes {
            loads.entry(node).or_default().0 += 1;
        }
        if let Some(leader) = shard.leader {
            loads.entry(leader).or_default().1 += 1;
        }
    }
    loads
}

/// The shard of the metadata group.
pub(super) fn metadata(shards: &[ShardInfo]) -> Option<&ShardInfo> {
    shards.iter().find(|shard| shard.id == ShardId::META)
}

#[cfg(test)]
mod tests {
    use flotilla_api::{MetadataRole, NodeRole, ReplicaInfo};
    use flotilla_types::{Epoch, Locality, ReplicaId};
    use proptest::{collection::vec, prelude::*};

    use super::*;

    const LIVE: Voter = Voter { is_live: true, is_on_lasting_node: true };
    const DOWN: Voter = Voter { is_live: false, is_on_lasting_node: true };
    const LEAVING: Voter = Voter { is_live: true, is_on_lasting_node: false };

    fn judge(leadership: Leadership, halves: &[&[Voter]], desired: usize) -> (bool, bool, usize) {
        let halves = halves.iter().map(|half| half.to_vec()).collect();
        let health = ShardFacts { leadership, halves, desired }.judge();
        (health.is_available, health.is_fully_replicated, health.failures_survivable)
    }

    #[test]
    fn redundancy_and_availability_are_two_facts() {
        use Leadership::{Confirmed, Reported, Unknown};
        assert_eq!(judge(Confirmed, &[&[LIVE; 3]], 3), (true, true, 1));
        assert_eq!(judge(Confirmed, &[&[LIVE, LIVE, DOWN]], 3), (true, false, 0));
        assert_eq!(judge(Confirmed, &[&[LIVE, LIVE, LEAVING]], 3), (true, false, 1), "it is moving away");
        assert_eq!(judge(Unknown, &[&[LIVE; 3]], 3), (false, true, 1), "an election");
        assert_eq!(judge(Unknown, &[&[LIVE, DOWN, DOWN]], 3), (false, false, 0));
        assert_eq!(judge(Confirmed, &[&[LIVE]], 3), (true, false, 0), "no redundancy, as desired or not");
        assert_eq!(judge(Confirmed, &[&[LIVE]], 1), (true, true, 0));
        assert_eq!(judge(Confirmed, &[&[LIVE; 5]], 5), (true, true, 2));
        assert_eq!(judge(Reported { is_live: true }, &[&[LIVE, LIVE, DOWN]], 3), (true, false, 0));
        assert_eq!(judge(Reported { is_live: true }, &[&[LIVE, DOWN, DOWN]], 3), (false, false, 0), "an old report");
        assert_eq!(judge(Reported { is_live: false }, &[&[LIVE, LIVE, DOWN]], 3), (false, false, 0));
        assert_eq!(judge(Reported { is_live: true }, &[&[]], 3), (false, false, 0), "no voter is known");
        assert_eq!(judge(Reported { is_live: true }, &[], 3), (false, false, 0));
    }

    #[test]
    fn both_halves_of_a_joint_configuration_need_a_quorum() {
        let reported = Leadership::Reported { is_live: true };
        assert_eq!(judge(reported, &[&[LIVE; 3], &[LIVE, DOWN, DOWN]], 3), (false, false, 0));
        assert_eq!(judge(reported, &[&[LIVE; 3], &[LIVE]], 3), (true, false, 0), "the old half has one voter");
        assert_eq!(judge(reported, &[&[LIVE; 3], &[LIVE, LIVE, LIVE, DOWN, LIVE]], 3), (true, false, 1));
    }

    fn shard(id: u64, available: bool) -> ShardInfo {
        ShardInfo {
            id: ShardId(id),
            collection: None,
            range: String::new(),
            leader: Some(NodeId(1)),
            replicas: Vec::new(),
            epoch: Epoch::default(),
            desired_replicas: 3,
            healthy: false,
            available,
            fully_replicated: false,
            failures_survivable: 0,
            operations: Vec::new(),
            local: None,
        }
    }

    #[test]
    fn a_new_shard_makes_no_node_unready_that_was_ready() {
        let shards = [shard(1, true), shard(2, false)];
        assert!(!serves(&shards, false, |_| false), "a node that starts waits for all shards");
        assert!(serves(&shards, true, |_| false), "shard 2 waits for its first leader");
        assert!(!serves(&shards, true, |_| true), "shard 2 has lost its leader");
        assert!(!serves(&[], true, |_| false));
    }

    #[test]
    fn a_voter_here_knows_better_than_a_hint_whether_its_shard_was_led() {
        let with_voter = |role, commit| {
            let local = LocalReplica {
                replica: ReplicaId(1),
                role,
                term: 1,
                commit,
                applied: 1,
                checkpoint: 1,
                log_bytes: None,
                memtable_bytes: 0,
                followers: Vec::new(),
            };
            [shard(1, true), ShardInfo { local: Some(local), ..shard(2, false) }]
        };
        let serves = |role, commit, had_hint| serves(&with_voter(role, commit), true, |_| had_hint);
        assert!(serves(LocalRole::Follower, 1, true), "the hint is newer than what the voter has published");
        assert!(serves(LocalRole::Candidate, 1, true));
        assert!(!serves(LocalRole::Follower, 2, false), "its leader is lost");
        assert!(!serves(LocalRole::Learner, 1, true), "a learner does not know");
        assert!(!serves(LocalRole::Quarantined, 0, true));
    }

    /// The problems of a cluster whose nodes have these states, with one shard that has voters on the nodes
    /// with these numbers.
    fn problems_of(states: &[(NodeState, Liveness)], voters: &[u64], fully_replicated: bool) -> Vec<String> {
        let node = |(number, (state, liveness)): (u64, &(NodeState, Liveness))| NodeInfo {
            id: NodeId(number),
            name: String::new(),
            quic: String::new(),
            http: String::new(),
            redis: String::new(),
            locality: Locality::default(),
            role: NodeRole::Storage,
            weight: 1,
            state: *state,
            liveness: *liveness,
            is_self: false,
            metadata_role: MetadataRole::Voter,
            replicas: 0,
            leaders: 0,
            versions: None,
            version: None,
            started_ms: None,
        };
        let nodes: Vec<_> = (1..).zip(states).map(node).collect();
        let voter =
            |number: &u64| ReplicaInfo { replica: ReplicaId(*number), node: NodeId(*number), role: ReplicaRole::Voter };
        let replicas = voters.iter().map(voter).collect();
        let shard = ShardInfo { replicas, healthy: fully_replicated, fully_replicated, ..shard(1, true) };
        problems(true, &nodes, &[shard])
    }

    #[test]
    fn a_cluster_that_is_too_small_for_more_replicas_has_no_problem() {
        const UP: (NodeState, Liveness) = (NodeState::Active, Liveness::Alive);
        const DEAD: (NodeState, Liveness) = (NodeState::Active, Liveness::Down);
        const LEAVING: (NodeState, Liveness) = (NodeState::Leaving, Liveness::Alive);
        let is_fine = |states: &[_], voters: &[u64]| problems_of(states, voters, false).is_empty();
        assert!(is_fine(&[UP], &[1]));
        assert!(is_fine(&[UP, UP], &[1]));
        assert!(!is_fine(&[UP, UP, UP], &[1]), "replicas are missing");
        assert!(!is_fine(&[UP, DEAD], &[1]), "a node does not answer");
        assert!(!is_fine(&[UP, LEAVING], &[2]), "its only voter is leaving");
        let drained = (NodeState::Drained, Liveness::Alive);
        assert!(is_fine(&[UP, UP, drained], &[1, 2, 3]), "a drained node keeps its replicas");
        assert!(!is_fine(&[UP, UP, DEAD], &[1, 2, 3]));
        assert!(!is_fine(&[UP, UP], &[1, 2, 3]), "a voter is on a node that was removed");
        assert!(problems_of(&[UP, UP, UP], &[1, 2, 3], true).is_empty());
    }

    fn any_voter() -> impl Strategy<Value = Voter> {
        (any::<bool>(), any::<bool>()).prop_map(|(is_live, is_on_lasting_node)| Voter { is_live, is_on_lasting_node })
    }

    proptest! {
        /// Whichever `failures_survivable` live voters fail, a quorum of each half stays; with one more, some
        /// choice breaks one.
        #[test]
        fn exactly_the_promised_failures_are_survived(halves in vec(vec(any_voter(), 1..6), 1..3)) {
            let leadership = Leadership::Reported { is_live: true };
            let facts = ShardFacts { leadership, halves, desired: 3 };
            let health = facts.judge();
            let has_quorum_after = |failures: usize| facts.halves.iter().all(|half| {
                let live = half.iter().filter(|voter| voter.is_live).count();
                2 * live.saturating_sub(failures) > half.len()
            });
            prop_assert_eq!(health.is_available, has_quorum_after(0));
            if health.is_available {
                prop_assert!(has_quorum_after(health.failures_survivable));
                prop_assert!(!has_quorum_after(health.failures_survivable + 1));
            } else {
                prop_assert_eq!(health.failures_survivable, 0);
            }
        }

        /// A failure never makes health look better, and three complete replicas always survive one failure.
        #[test]
        fn a_failure_never_improves_health(voters in vec(any_voter(), 1..6), failing in 0_usize..6, desired in 1_usize..6) {
            let judge = |voters: &[Voter]| {
                let leadership = Leadership::Reported { is_live: true };
                ShardFacts { leadership, halves: vec![voters.to_vec()], desired }.judge()
            };
            let before = judge(&voters);
            let mut fewer = voters.clone();
            let index = failing % voters.len();
            fewer[index].is_live = false;
            let after = judge(&fewer);
            prop_assert!(!after.is_fully_replicated);
            prop_assert!(before.is_available || !after.is_available);
            prop_assert!(after.failures_survivable <= before.failures_survivable);
            if before.is_fully_replicated && desired >= 3 {
                prop_assert!(before.is_available && before.failures_survivable >= 1 && after.is_available);
            }
        }
    }
}
