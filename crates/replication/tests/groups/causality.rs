//! Commands that must follow what their senders saw elsewhere.

use flotilla_kv::{Outcome, decode_outcome};
use flotilla_replication::{Answered, Freshness, RequestError};
use flotilla_types::{NodeId, Timestamp};

use crate::harness::{WALL_MS, World, get, key, seeds, store};

/// The version that a write got, and the shard's clock by its answer; or why it was refused.
fn write_after(world: &mut World, node: NodeId, after: Timestamp) -> Result<(Timestamp, Timestamp), RequestError> {
    let command = store(9, world.attempts + 1, "key", "1");
    let asked = world.request_with(node, (None, after), command, 1_000, None);
    world.run_until(1_500, "an answer", |world| world.answers.contains_key(&asked));
    let Answered { payload, clock } = world.answers.remove(&asked).unwrap()?;
    let Ok(Outcome::Done { timestamp, .. }) = decode_outcome(payload) else { panic!("not done") };
    Ok((timestamp, clock))
}

#[test]
fn a_write_is_later_than_what_its_sender_saw_and_tells_so() {
    for seed in seeds(2) {
        let mut world = World::founded(seed, 3, 3);
        world.run_ms(500);
        let (leader, _) = world.leader().unwrap();
        let seen = Timestamp::from_millis(WALL_MS + world.now_ms() + 300).plus(7);
        let (first, clock) = write_after(&mut world, leader, seen).unwrap();
        assert!(seen < first && first <= clock);
        let (second, _) = write_after(&mut world, leader, Timestamp::ZERO).unwrap();
        assert!(first < second, "the shard's clock has moved");
        // A read tells as well, so that a client that only reads carries on what it saw.
        let asked = world.request(leader, get(key("key")), 1_000, Some(Freshness::Strong));
        world.run_until(1_500, "an answer", |world| world.answers.contains_key(&asked));
        let read = world.answers.remove(&asked).unwrap().unwrap();
        assert!(read.clock >= second);
        world.finish();
    }
}

#[test]
fn no_sender_can_move_the_time_of_a_shard_far_ahead_of_the_clocks() {
    let mut world = World::founded(1, 3, 3);
    world.run_ms(500);
    let (leader, before) = world.leader().unwrap();
    for ahead_ms in [2_000, 3_600_000, u64::from(u32::MAX)] {
        let far = Timestamp::from_millis(WALL_MS + world.now_ms() + ahead_ms);
        assert_eq!(write_after(&mut world, leader, far), Err(RequestError::AfterAhead));
    }
    assert_eq!(write_after(&mut world, leader, Timestamp(u64::MAX)), Err(RequestError::AfterAhead));
    let (_, after) = world.leader().unwrap();
    assert_eq!(before.group.unwrap().last, after.group.unwrap().last, "nothing was added to the log");
    // Each step is allowed, and yet the sum is bounded.
    for _ in 0..20 {
        let latest = Timestamp::from_millis(WALL_MS + world.now_ms() + 450);
        let (version, _) = write_after(&mut world, leader, latest).unwrap();
        assert!(version.millis() <= WALL_MS + world.now_ms() + 600, "{version:?}");
    }
    world.finish();
}
