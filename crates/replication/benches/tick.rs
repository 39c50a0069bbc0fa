//! What a tick costs on a node with many replicas, and what peers' answers to it cost: a table.
//!
//! *Unled*: the leaders are elsewhere and silent, so election timeouts end, and no node grants a vote. *Led*:
//! this node leads every shard of three replicas, is asked for each all the time, and its peers answer every
//! message. *Resting*: it leads every shard, and no client asks.

use std::time::Duration;

use flotilla_replication::work::{pack, pack_node_heartbeat};
use rustix::time::{ClockId, clock_gettime};

#[path = "../tests/groups/many.rs"]
mod many;

use many::Many;

const TICKS: u32 = 100;

fn main() {
    println!(
        "| replicas | unled: mean tick | longest | led: mean tick | longest | answers | heartbeat, bytes | \
         resting: mean tick | longest |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    for count in [1_000, 4_000, 8_000, 20_000] {
        let unled = measure(&mut Many::verified(count), false);
        let led = measure(&mut Many::leading(count), true);
        let resting = measure(&mut Many::resting(count), true);
        println!(
            "| {count} | {:.2?} | {:.2?} | {:.2?} | {:.2?} | {:.2?} | {} | {:.2?} | {:.2?} |",
            unled.tick / TICKS,
            unled.longest,
            led.tick / TICKS,
            led.longest,
            led.answers / TICKS,
            led.heartbeat_bytes,
            resting.tick / TICKS,
            resting.longest,
        );
    }
}

#[derive(Default)]
struct Measured {
    tick: Duration,
    longest: Duration,
    answers: Duration,
    heartbeat_bytes: usize,
}

/// Ticks, with encoding of what they send and publication of the status. Times are of this thread's CPU.
fn measure(many: &mut Many, peers_answer: bool) -> Measured {
    let mut measured = Measured::default();
    for _ in 0..TICKS {
        let (effects, mut tick) = timed(|| many.next_tick());
        let sends = effects.sends.clone();
        tick += timed(|| {
            for (_, heartbeat) in &effects.node_heartbeats {
                measured.heartbeat_bytes = measured.heartbeat_bytes.max(pack_node_heartbeat(heartbeat).len());
            }
            many.publish();
            pack(sends)
        })
        .1;
        measured.tick += tick;
        measured.longest = measured.longest.max(tick);
        if peers_answer {
            measured.answers += timed(|| {
                many.answer(effects);
                many.publish();
            })
            .1;
        }
    }
    measured
}

fn timed<R>(run: impl FnOnce() -> R) -> (R, Duration) {
    let cpu = || {
        let now = clock_gettime(ClockId::ThreadCPUTime);
        Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0))
    };
    let start = cpu();
    let result = run();
    (result, cpu() - start)
}
