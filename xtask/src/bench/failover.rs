//! For how long writes go unanswered when a leader is killed.
//!
//! One connection for each shard that the victim leads (for etcd: one in all) writes one key again and again, through a node that
//! lives. The gap is from the kill to the first acknowledgement of a write that was sent after the last one before it: what a
//! client sees, retries inside the server included. A refusal is no acknowledgement; the client asks again at once.

use std::{
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use super::{
    load::{Driver, Lanes, drive},
    measure::fill,
    own::Own,
    peers::{ETCD_MEMBERS, Peer},
    protocol::{Ticket, Wire},
    report::Report,
    workload::{Operation, Values},
};

/// Writes before the kill, so that everything is warm.
const BEFORE: Duration = Duration::from_millis(1_500);
/// So long it is watched afterwards.
const AFTER_MAX: Duration = Duration::from_secs(20);
/// Between a refusal and the next try: a server that refuses at once would take all processor time from the election.
const PAUSE: Duration = Duration::from_millis(1);

/// Kills a leader `times` times, brings it back, and notes the gaps.
pub(super) fn run(own: &mut Own, times: usize, report: &mut Report) -> Result<()> {
    let values = Values::new(256);
    fill(&own.system(Wire::Redis)?, 1_000, &values)?;
    let (mut gaps, nodes) = (Vec::new(), own.cluster.len());
    for time in 0..times {
        let victim = time % nodes + 1;
        let leaders = own.leaders()?;
        let keys: Vec<u64> = (0..leaders.len())
            .filter(|bucket| leaders.get(*bucket) == Some(&victim))
            .filter_map(|wanted| own.keys(1_000, |bucket| bucket == wanted).first().copied())
            .collect();
        ensure!(!keys.is_empty(), "node {victim} leads nothing");
        let asked = victim % nodes + 1;
        let servers = vec![own.redis(asked)?; keys.len()];
        let found = watch(&servers, Wire::Redis, &keys, &values, || Ok(own.cluster.kill(victim)?))?;
        println!("kill {} of {times}: node {victim}, {} shards, worst {} ms", time + 1, keys.len(), most(&found));
        gaps.extend(found);
        own.runtime.block_on(own.cluster.start_node(victim))?;
        own.settle()?;
    }
    report.note(summary("flotilla, each shard of the victim", gaps));
    Ok(())
}

/// The same with etcd; each time a cluster of its own, since it is asked who leads only by its behaviour: the member whose end
/// stops writes did.
pub(super) fn run_etcd(target: &std::path::Path, times: usize, report: &mut Report) -> Result<()> {
    let (values, mut gaps) = (Values::new(256), Vec::new());
    for _ in 0..times {
        // A follower's end is no gap worth the name: members are killed in turn until one was the leader.
        for victim in 0..ETCD_MEMBERS {
            let folder = tempfile::Builder::new().prefix("bench-etcd-").tempdir_in(target)?;
            let mut peer = Peer::etcd(folder.path())?;
            let servers = [peer.system.servers[(victim + 1) % ETCD_MEMBERS]];
            let found = watch(&servers, Wire::Grpc, &[1], &values, || peer.kill(victim))?;
            if most(&found) > ETCD_FOLLOWER_MS_MAX {
                println!("etcd: {} ms", most(&found));
                gaps.extend(found);
                break;
            }
        }
    }
    if !gaps.is_empty() {
        report.note(summary("etcd", gaps));
    }
    Ok(())
}

/// An election of etcd takes at least 1,000 ms by its own settings.
const ETCD_FOLLOWER_MS_MAX: u64 = 500;

fn most(gaps: &[u64]) -> u64 {
    gaps.iter().copied().max().unwrap_or(0)
}

fn summary(what: &str, mut gaps: Vec<u64>) -> String {
    gaps.sort_unstable();
    let median = gaps.get(gaps.len() / 2).copied().unwrap_or(0);
    let (count, worst) = (gaps.len(), most(&gaps));
    format!("writes unavailable after kill -9 of a leader ({what}; {count} gaps): median {median} ms, worst {worst} ms")
}

/// Writes each key on a connection of its own, calls `kill` meanwhile, and returns the gaps in milliseconds.
fn watch(
    servers: &[SocketAddr],
    wire: Wire,
    keys: &[u64],
    values: &Values,
    kill: impl FnMut() -> Result<()>,
) -> Result<Vec<u64>> {
    let lanes = Lanes { servers, wire, in_flight: 1, values };
    let mut watch = Watch { keys, kill, begin: Instant::now() + BEFORE, killed: None, gaps: vec![None; keys.len()] };
    drive(&lanes, &mut watch)?;
    watch.gaps.into_iter().map(|gap| Ok(gap.context("writes did not come back")?.as_millis() as u64)).collect()
}

struct Watch<'a, K> {
    keys: &'a [u64],
    kill: K,
    begin: Instant,
    killed: Option<Instant>,
    gaps: Vec<Option<Duration>>,
}

impl<K: FnMut() -> Result<()>> Driver for Watch<'_, K> {
    fn next(&mut self, connection: usize, now: Instant) -> Option<(Operation, u64)> {
        let is_over = self.gaps.iter().all(Option::is_some)
            || self.killed.is_some_and(|killed| now.saturating_duration_since(killed) > AFTER_MAX);
        (!is_over).then(|| (Operation::Set, self.keys[connection]))
    }

    fn answered(&mut self, connection: usize, ticket: Ticket, now: Instant, refusal: Option<String>) {
        let Some(killed) = self.killed else { return };
        if refusal.is_some() {
            thread::sleep(PAUSE);
        } else if self.gaps[connection].is_none() && now > killed {
            // Sent before the kill and answered behind it may mean that the victim still did it: the next one tells.
            if ticket.sent >= killed || now - killed > PAUSE {
                self.gaps[connection] = Some(now - killed);
            }
        }
    }

    fn tick(&mut self, now: Instant) -> Result<()> {
        if self.killed.is_none() && now >= self.begin {
            // Until the process is gone it may answer; the gap counts from before.
            self.killed = Some(Instant::now());
            (self.kill)()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_told_by_median_and_worst() {
        let told = summary("x", vec![300, 100, 200]);
        assert!(told.ends_with("(x; 3 gaps): median 200 ms, worst 300 ms"), "{told}");
    }

    #[test]
    fn only_acknowledgements_after_the_kill_end_a_gap() {
        let (start, ms) = (Instant::now(), Duration::from_millis);
        let keys = [1, 2];
        let mut kills = 0;
        let kill = || {
            kills += 1;
            Ok(())
        };
        let mut watch = Watch { keys: &keys, kill, begin: start, killed: None, gaps: vec![None; 2] };
        let ticket = |sent| Ticket { operation: Operation::Set, sent };
        watch.answered(0, ticket(start), start + ms(1), None);
        watch.tick(start + ms(2)).expect("no error");
        let killed = watch.killed.expect("it is time");
        watch.answered(0, ticket(killed), killed + ms(400), Some("no leader".to_owned()));
        assert_eq!(watch.gaps, [None, None]);
        watch.answered(0, ticket(killed), killed + ms(700), None);
        watch.answered(0, ticket(killed), killed + ms(900), None);
        assert_eq!(watch.gaps, [Some(ms(700)), None]);
        assert_eq!(watch.next(0, killed + ms(900)), Some((Operation::Set, 1)), "the other one is still watched");
        watch.answered(1, ticket(killed), killed + ms(950), None);
        assert_eq!(watch.next(0, killed + ms(960)), None);
        watch.tick(killed + ms(970)).expect("no error");
        assert_eq!(kills, 1);
    }
}
