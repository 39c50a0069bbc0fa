//! For how long writes go unanswered when a leader is killed.
//!
//! Probes are writes to one key of each shard that the victim leads (for etcd: one key), through nodes that live: the first goes out right
//! behind the kill, another one every few milliseconds, each on a connection of its own, so that one that a server has lost holds up
//! none. The gap is from the kill to the first acknowledgement; retries inside the servers are part of it. All shards are under load
//! meanwhile. A refusal is no acknowledgement; the probe asks again.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use super::{
    keys::Random,
    load::{Driver, Lanes, Next, drive},
    measure::fill,
    own::Own,
    peers::{ETCD_MEMBERS, Peer},
    protocol::{Ticket, Wire},
    report::Report,
    workload::{Operation, Values},
};

/// Load before the kill, so that everything is warm.
const BEFORE: Duration = Duration::from_millis(1_500);
/// Connections that write any keys meanwhile, each with one request in flight, and how many keys those are.
const LOAD_CONNECTIONS: usize = 32;
const KEYS: u64 = 1_000;
/// So long it is watched afterwards.
const AFTER_MAX: Duration = Duration::from_secs(20);
/// Probes of one key, and the time between two of them.
const PROBES: usize = 40;
const PROBE_EVERY: Duration = Duration::from_millis(50);
/// Between a refusal and the next try: a server that refuses at once would take all processor time from the election.
const PAUSE: Duration = Duration::from_millis(10);

/// Kills a leader `times` times, brings it back, and notes the gaps.
pub(super) fn run(own: &mut Own, times: usize, report: &mut Report) -> Result<()> {
    let values = Values::new(256);
    fill(&own.system(Wire::Redis)?, KEYS, &values)?;
    let (mut gaps, nodes) = (Vec::new(), own.cluster.len());
    for time in 0..times {
        let victim = time % nodes + 1;
        let leaders = own.leaders()?;
        let keys: Vec<u64> = (0..leaders.len())
            .filter(|bucket| leaders.get(*bucket) == Some(&victim))
            .filter_map(|wanted| own.keys(KEYS, |bucket| bucket == wanted).first().copied())
            .collect();
        ensure!(!keys.is_empty(), "node {victim} leads nothing");
        let living =
            (1..=nodes).filter(|node| *node != victim).map(|node| own.redis(node)).collect::<Result<Vec<_>>>()?;
        let found = watch(&living, Wire::Redis, &keys, &values, || Ok(own.cluster.kill(victim)?))?;
        println!("kill {} of {times}: node {victim}, {} shards, worst {} ms", time + 1, keys.len(), most(&found));
        gaps.extend(found);
        own.runtime.block_on(own.cluster.start_node(victim))?;
        own.settle()?;
    }
    report.note(summary("flotilla, each shard of the victim", gaps));
    Ok(())
}

/// The same with etcd. Who leads shows only when it ends: each try is a new cluster, and counts when its writes stopped.
pub(super) fn run_etcd(target: &std::path::Path, times: usize, report: &mut Report) -> Result<()> {
    let (values, mut gaps) = (Values::new(256), Vec::new());
    for _ in 0..times {
        for attempt in 0..ETCD_TRIES {
            let victim = attempt % ETCD_MEMBERS;
            let folder = tempfile::Builder::new().prefix("bench-etcd-").tempdir_in(target)?;
            let mut peer = Peer::etcd(folder.path())?;
            let mut living = peer.system.servers.clone();
            living.remove(victim);
            let found = watch(&living, Wire::Grpc, &[1], &values, || peer.kill(victim))?;
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

/// Clusters started until the leader was hit.
const ETCD_TRIES: usize = 10;
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

/// Probes each key, calls `kill`, and returns the gaps in milliseconds.
fn watch(
    living: &[SocketAddr],
    wire: Wire,
    keys: &[u64],
    values: &Values,
    kill: impl FnMut() -> Result<()>,
) -> Result<Vec<u64>> {
    let servers: Vec<_> = living.iter().copied().cycle().take(keys.len() * PROBES + LOAD_CONNECTIONS).collect();
    let lanes = Lanes { servers: &servers, wire, in_flight: 1, values };
    let mut watch = Watch::new(keys, kill, Instant::now() + BEFORE);
    drive(&lanes, &mut watch)?;
    watch.gaps.into_iter().map(|gap| Ok(gap.context("writes did not come back")?.as_millis() as u64)).collect()
}

/// The first connections are probes, those of one key together; the others are load.
struct Watch<'a, K> {
    keys: &'a [u64],
    kill: K,
    random: Random,
    begin: Instant,
    killed: Option<Instant>,
    /// When each probe may go out, counted from the kill.
    due: Vec<Duration>,
    /// Of each key.
    gaps: Vec<Option<Duration>>,
}

impl<'a, K: FnMut() -> Result<()>> Watch<'a, K> {
    fn new(keys: &'a [u64], kill: K, begin: Instant) -> Self {
        let due = (0..keys.len() * PROBES).map(|probe| PROBE_EVERY * (probe % PROBES) as u32).collect();
        Self { keys, kill, random: Random::new(0), begin, killed: None, due, gaps: vec![None; keys.len()] }
    }

    fn is_over(&self, now: Instant) -> bool {
        let since_kill = self.killed.map(|killed| now.saturating_duration_since(killed));
        self.gaps.iter().all(Option::is_some) || since_kill.is_some_and(|since| since > AFTER_MAX)
    }
}

impl<K: FnMut() -> Result<()>> Driver for Watch<'_, K> {
    fn next(&mut self, connection: usize, now: Instant) -> Next {
        if self.is_over(now) {
            return Next::End;
        }
        let Some(due) = self.due.get(connection) else { return Next::Send(Operation::Set, self.random.below(KEYS)) };
        let key = connection / PROBES;
        match self.killed {
            _ if self.gaps[key].is_some() => Next::End,
            Some(killed) if now >= killed + *due => Next::Send(Operation::Set, self.keys[key]),
            _ => Next::Wait,
        }
    }

    fn answered(&mut self, connection: usize, _: Ticket, now: Instant, refusal: Option<String>) {
        let Some((killed, due)) = self.killed.zip(self.due.get_mut(connection)) else { return };
        if refusal.is_some() {
            *due = now - killed + PAUSE;
        } else {
            self.gaps[connection / PROBES].get_or_insert(now - killed);
        }
    }

    fn tick(&mut self, now: Instant) -> Result<()> {
        if self.killed.is_none() && now >= self.begin {
            // Nothing is sent before the process is gone; the gap counts from before.
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
        let mut watch = Watch::new(&keys, kill, start);
        let ticket = Ticket { operation: Operation::Set, sent: start };
        assert_eq!(watch.next(0, start), Next::Wait);
        assert!(matches!(watch.next(2 * PROBES, start), Next::Send(..)), "load does not wait");
        watch.answered(2 * PROBES, ticket, start, None);
        watch.tick(start + ms(2)).expect("no error");
        let killed = watch.killed.expect("it is time");
        assert_eq!(watch.next(0, killed), Next::Send(Operation::Set, 1));
        assert_eq!(watch.next(PROBES + 1, killed), Next::Wait, "the second probe of a key goes out later");
        assert_eq!(watch.next(PROBES + 1, killed + PROBE_EVERY), Next::Send(Operation::Set, 2));
        watch.answered(2 * PROBES, ticket, killed + ms(300), None);
        watch.answered(0, ticket, killed + ms(400), Some("no leader".to_owned()));
        assert_eq!((watch.next(0, killed + ms(401)), watch.gaps[0]), (Next::Wait, None));
        watch.answered(0, ticket, killed + ms(700), None);
        watch.answered(1, ticket, killed + ms(900), None);
        assert_eq!(watch.gaps, [Some(ms(700)), None]);
        assert_eq!(watch.next(2, killed + ms(900)), Next::End);
        watch.answered(PROBES, ticket, killed + ms(950), None);
        assert_eq!(watch.next(2 * PROBES, killed + ms(960)), Next::End, "load ends with the last gap");
        watch.tick(killed + ms(970)).expect("no error");
        assert_eq!(kills, 1);
    }
}
