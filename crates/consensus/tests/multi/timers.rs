//! Groups at rest count no ticks: ticks cost nothing there, and no behaviour shows it.

use std::{collections::BTreeSet, sync::Arc};

use flotilla_consensus::{Config, Effects, Input, MultiRaft, Origin};
use flotilla_storage::{Log as _, LogBatch, MemoryLog, ReplicaWrite};
use flotilla_types::{Checkpoint, ConfState, HardState, LogIndex, Position, ReplicaId, ShardId, Term, WalSequence};

use crate::driver::{Driver, descriptor};

/// Elections, heartbeats, partitions, a restart and a learner, over 500 ticks. With `counts_each`, every
/// group is touched before every tick, so that it counts each one at once.
fn transcript(counts_each: bool) -> String {
    let mut driver = Driver::of_voters(&[1, 2, 3]);
    driver.create(4, &[]);
    for tick in 0..500 {
        let leader = driver.leader();
        match (tick, leader) {
            (50 | 150, Some(leader)) => driver.cut = [leader].into(),
            (100 | 250, _) => driver.cut.clear(),
            (110 | 260 | 400, Some(leader)) => driver.propose(leader, "entry"),
            (300, Some(leader)) => {
                let to = ReplicaId(leader % 3 + 1);
                driver.input(leader, Input::Transfer { replica: ReplicaId(leader), to });
            }
            (350, _) => driver.restart(2, 3),
            _ => {}
        }
        if counts_each {
            for id in 1..=4 {
                driver.input(id, Input::Truncated { replica: ReplicaId(id), to: (LogIndex(0), Term(0)) });
            }
        }
        driver.tick(1);
        driver.transcript.push(format!("tick {tick}"));
    }
    driver.take_transcript()
}

#[test]
fn a_group_at_rest_behaves_as_if_it_had_counted_every_tick() {
    let (lazy, eager) = (transcript(false), transcript(true));
    assert!(lazy.matches("is Leader").count() >= 3, "{lazy}");
    assert!(lazy == eager, "{}", first_difference(&lazy, &eager));
}

fn first_difference(lazy: &str, eager: &str) -> String {
    let lines = lazy.lines().zip(eager.lines());
    let at = lines.clone().take_while(|(lazy, eager)| lazy == eager).count();
    let from = at.saturating_sub(10);
    lines.skip(from).take(20).map(|(lazy, eager)| format!("{lazy:<60} | {eager}\n")).collect()
}

/// A node with one voter of each of `count` groups, whose other voters never answer.
fn followers(count: u64) -> MultiRaft {
    let log = MemoryLog::default();
    let (index, term) = (LogIndex(1), Term(1));
    let create = |id: u64| {
        let conf = ConfState::of_voters([0, 1, 2].map(|other| ReplicaId(id + other * count)));
        let position = Position { index, term, conf: Arc::new(conf), descriptor: Arc::new(descriptor(&[])) };
        ReplicaWrite {
            create: Some(ShardId(id)),
            checkpoint: Some(Checkpoint::empty(position)),
            truncate: Some((index, term)),
            hard_state: Some(HardState { term, vote: ReplicaId::NONE, commit: index }),
            ..ReplicaWrite::new(ReplicaId(id))
        }
    };
    let replicas = (1..=count).map(create).collect();
    log.write(LogBatch { sequence: WalSequence(1), replicas, peer_sequences: Vec::new() }).unwrap();
    let mut raft = MultiRaft::new(Config::default(), Arc::new(log.clone()));
    for (replica, state) in log.replicas().unwrap() {
        raft.open(replica, &state, Origin::Created, replica.0).unwrap();
    }
    raft.drain(&mut Effects::default());
    raft
}

/// Nothing answers, so each candidate's timeout ends again and again.
#[test]
fn a_bounded_number_of_replicas_campaigns_at_a_tick_and_all_in_turn() {
    let (count, per_tick) = (400, 10);
    let mut raft = followers(count);
    raft.limit_campaigns(per_tick);
    let Config { election_ticks, .. } = Config::default();
    let mut campaigned = BTreeSet::new();
    for _ in 0..2 * election_ticks + count as usize / per_tick {
        let mut effects = Effects::default();
        raft.step(Input::Tick, &mut effects);
        // An input at which a group counts its ticks is no turn.
        for id in 1..=count {
            raft.step(Input::Truncated { replica: ReplicaId(id), to: (LogIndex(0), Term(0)) }, &mut effects);
        }
        raft.drain(&mut effects);
        let candidates: BTreeSet<_> = effects.sends.iter().map(|(_, message)| message.from).collect();
        assert!(candidates.len() <= per_tick, "{} campaign at one tick", candidates.len());
        campaigned.extend(candidates);
    }
    assert_eq!(campaigned.len() as u64, count);
}

#[test]
fn a_tick_visits_only_groups_whose_timers_end() {
    let count = 1_000;
    let mut raft = followers(count);
    let ticks = |raft: &mut MultiRaft, ticks: usize| {
        for _ in 0..ticks {
            raft.step(Input::Tick, &mut Effects::default());
            raft.drain(&mut Effects::default());
        }
    };
    let Config { election_ticks, .. } = Config::default();
    ticks(&mut raft, election_ticks - 1);
    assert_eq!(raft.tick_visits(), 0, "no election timeout has ended");
    ticks(&mut raft, 10 * election_ticks);
    // A visit when each election timeout ends, and one more where input has postponed it.
    let elections = 11 * count;
    assert!((count..=2 * elections).contains(&raft.tick_visits()), "{} visits", raft.tick_visits());
    assert_eq!(raft.take_drained().len() as u64, count);
}
