//! What a tick costs on a node with many replicas, counted in replicas visited and in leaders named.

use std::collections::BTreeSet;

use flotilla_replication::{Effects, Input, LEADERS_PER_ROUND};
use flotilla_storage::Usage;
use flotilla_types::{LogIndex, NodeId, ShardId, Timestamp};

use crate::many::{Many, replica_of};

/// Ticks and publishes; returns how many replicas that visited.
fn tick(many: &mut Many, times: u64) -> u64 {
    let before = many.core.visits();
    for _ in 0..times {
        many.next_tick();
        many.publish();
    }
    many.core.visits() - before
}

fn applied(many: &mut Many, shard: u64, active_bytes: usize) -> Effects<u64> {
    many.input(Input::Applied {
        replica: replica_of(shard, 1),
        index: LogIndex(1),
        clock: Timestamp::ZERO,
        bytes: 0,
        usage: Usage { active_bytes, ..Usage::default() },
        version: None,
        upkeep_due_ms: None,
    })
}

#[test]
fn ticks_do_not_visit_replicas_at_rest() {
    assert_eq!(tick(&mut Many::new(1_000), 100), 0, "unverified");
    assert_eq!(tick(&mut Many::verified(1_000), 5), 0, "no election timeout has ended");
}

#[test]
fn ticks_visit_what_is_busy_however_many_others_there_are() {
    let visits = [10, 1_000].map(|count| {
        let mut many = Many::verified(count);
        let before = many.core.visits();
        for shard in 1..=5 {
            applied(&mut many, shard, 100);
        }
        tick(&mut many, 5);
        many.core.visits() - before
    });
    assert!((1..=20).contains(&visits[0]), "{visits:?}");
    assert_eq!(visits[0], visits[1]);
}

#[test]
fn without_a_leader_each_replica_is_visited_when_its_election_timeout_ends() {
    let count = 500;
    let ticks = 80;
    let visits = tick(&mut Many::verified(count), ticks);
    // An election timeout is at least 8 ticks. Each end of one is a visit, which changes the status; input
    // that postpones it costs one visit more.
    assert!((count..=3 * count * (ticks / 8)).contains(&visits), "{visits}");
}

/// The leaders that the heartbeats of the next round name; both peers get the same.
fn round(many: &mut Many) -> BTreeSet<ShardId> {
    let mut named = Vec::new();
    while named.is_empty() {
        let mut effects = many.next_tick();
        named = std::mem::take(&mut effects.node_heartbeats);
        many.answer(effects);
    }
    assert_eq!(named.len(), 2);
    assert_eq!(named[0].1.leaders, named[1].1.leaders);
    named.remove(0).1.leaders.into_iter().map(|(shard, _)| shard).collect()
}

#[test]
fn heartbeats_name_a_bounded_number_of_leaders_and_all_in_turn() {
    let count = 2 * LEADERS_PER_ROUND + 500;
    let mut many = Many::leading(count as u64);
    // It names the leaders that are new.
    round(&mut many);
    let whole = many.input(Input::Peer { node: NodeId(2), connected: true }).node_heartbeats;
    assert_eq!(whole[0].1.leaders.len(), count, "a peer that connects may know no leader");
    let rounds: Vec<_> = (0..3).map(|_| round(&mut many)).collect();
    assert!(rounds.iter().all(|named| named.len() == LEADERS_PER_ROUND));
    assert_eq!(rounds.into_iter().flatten().collect::<BTreeSet<_>>().len(), count);
}

#[test]
fn the_next_heartbeat_names_every_new_leader() {
    let count = 3 * LEADERS_PER_ROUND;
    let mut many = Many::verified(count as u64);
    let (mut named, mut rounds) = (BTreeSet::new(), 0);
    while many.led().len() < count || rounds < 2 {
        let led = many.led();
        let effects = many.next_tick();
        if let Some((_, heartbeat)) = effects.node_heartbeats.first() {
            named.extend(heartbeat.leaders.iter().map(|(shard, _)| *shard));
            assert!(led.is_subset(&named), "{:?} are led and were not named", led.difference(&named));
            rounds += usize::from(led.len() == count);
        }
        many.answer(effects);
        many.publish();
    }
}

#[test]
fn a_tick_proposes_upkeep_for_a_bounded_number_of_shards() {
    let count = 50;
    let mut many = Many::leading(count);
    for shard in 1..=count {
        many.input(Input::Applied {
            replica: replica_of(shard, 1),
            // The first entry of the leader's term.
            index: LogIndex(2),
            clock: Timestamp::ZERO,
            bytes: 0,
            usage: Usage::default(),
            version: None,
            upkeep_due_ms: Some(0),
        });
    }
    let mut proposed = Vec::new();
    for _ in 0..20 {
        let effects = many.next_tick();
        proposed.push(
            effects
                .writes
                .iter()
                .filter_map(|write| write.write.as_ref())
                .map(|write| write.entries.len())
                .sum::<usize>(),
        );
        many.answer(effects);
    }
    assert_eq!(proposed.iter().sum::<usize>() as u64, count, "each once: none was applied yet");
    assert!(proposed.iter().all(|entries| *entries <= 4), "{proposed:?}");
}
