//! Failover time: how long writes are not acknowledged after a leader is killed.
//!
//! Probes are writes to one key of each shard that the victim leads (for etcd: one key), sent through
//! surviving nodes: the first immediately after the kill, another every few milliseconds, each on its own
//! connection, so that a lost request delays no other. The gap is the time from the kill to the first
//! acknowledgement, including retries inside the servers. All shards are under load meanwhile. A refused
//! probe is sent again.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use super::{
    flotilla::Flotilla,
    keys::Random,
    load::{Driver, LoadOptions, Next, drive},
    measure::fill,
    peers::{ETCD_MEMBERS, Peer},
    protocol::{Ticket, Wire},
    report::Report,
    workload::{Operation, Values},
};

/// Duration of the load before the kill.
const BEFORE: Duration = Duration::from_millis(1_500);
/// Connections that generate load, each with one request in flight.
const LOAD_CONNECTIONS: usize = 32;
/// Number of keys of the load.
const KEYS: u64 = 1_000;
/// How long to wait for the first acknowledgement.
const GAP_MAX: Duration = Duration::from_secs(20);
/// Probes per key, and the interval between them.
const PROBES: usize = 40;
const PROBE_EVERY: Duration = Duration::from_millis(50);
/// Pause after a refusal: a server that refuses at once would otherwise take CPU time from the election.
const PAUSE: Duration = Duration::from_millis(10);

/// Kills a leader `times` times, restarts it, and reports the gaps.
pub(super) fn run(flotilla: &mut Flotilla, times: usize, report: &mut Report) -> Result<()> {
    let values = Values::new(256);
    fill(&flotilla.system(Wire::Redis)?, KEYS, &values)?;
    let (mut gaps, nodes) = (Vec::new(), flotilla.cluster.len());
    for time in 0..times {
        let victim = time % nodes + 1;
        let leaders = flotilla.leaders()?;
        let keys: Vec<u64> = (0..leaders.len())
            .filter(|bucket| leaders.get(*bucket) == Some(&victim))
            .filter_map(|selection| flotilla.keys(KEYS, |bucket| bucket == selection).first().copied())
            .collect();
        ensure!(!keys.is_empty(), "node {victim} leads no shard");
        let survivors =
            (1..=nodes).filter(|node| *node != victim).map(|node| flotilla.redis(node)).collect::<Result<Vec<_>>>()?;
        let measured = measure_gaps(&survivors, Wire::Redis, &keys, &values, || Ok(flotilla.cluster.kill(victim)?))?;
        println!("kill {} of {times}: node {victim}, {} shards, worst {} ms", time + 1, keys.len(), worst(&measured));
        gaps.extend(measured);
        flotilla.runtime.block_on(flotilla.cluster.start_node(victim))?;
        flotilla.settle()?;
    }
    report.note(summary("flotilla, each shard of the victim", gaps));
    Ok(())
}

/// Measures etcd. Its leader is not known beforehand: each attempt kills a member of a new cluster, and
/// counts only if writes stopped for longer than a follower's failure could explain.
pub(super) fn run_etcd(target: &std::path::Path, times: usize, report: &mut Report) -> Result<()> {
    let (values, mut gaps) = (Values::new(256), Vec::new());
    for _ in 0..times {
        for attempt in 0..ETCD_TRIES {
            let victim = attempt % ETCD_MEMBERS;
            let folder = tempfile::Builder::new().prefix("bench-etcd-").tempdir_in(target)?;
            let mut peer = Peer::etcd(folder.path())?;
            let mut survivors = peer.system.servers.clone();
            survivors.remove(victim);
            let measured = measure_gaps(&survivors, Wire::Grpc, &[1], &values, || peer.kill(victim))?;
            if worst(&measured) > ETCD_FOLLOWER_MS_MAX {
                println!("etcd: {} ms", worst(&measured));
                gaps.extend(measured);
                break;
            }
        }
    }
    if !gaps.is_empty() {
        report.note(summary("etcd", gaps));
    }
    Ok(())
}

/// Clusters started at most until the leader is hit.
const ETCD_TRIES: usize = 10;
/// Longest gap after the failure of a follower: with etcd's defaults, an election takes at least 1,000 ms.
const ETCD_FOLLOWER_MS_MAX: u64 = 500;

fn worst(gaps: &[u64]) -> u64 {
    gaps.iter().copied().max().unwrap_or(0)
}

fn summary(what: &str, mut gaps: Vec<u64>) -> String {
    gaps.sort_unstable();
    let median = gaps.get(gaps.len() / 2).copied().unwrap_or(0);
    let (count, worst) = (gaps.len(), worst(&gaps));
    format!("writes unavailable after kill -9 of a leader ({what}; {count} gaps): median {median} ms, worst {worst} ms")
}

/// Generates load, calls `kill`, probes each key, and returns the gaps in milliseconds.
fn measure_gaps(
    survivors: &[SocketAddr],
    wire: Wire,
    keys: &[u64],
    values: &Values,
    kill: impl FnMut() -> Result<()>,
) -> Result<Vec<u64>> {
    let servers: Vec<_> = survivors.iter().copied().cycle().take(keys.len() * PROBES + LOAD_CONNECTIONS).collect();
    let options = LoadOptions { servers: &servers, wire, in_flight: 1, values };
    let mut watch = Watch::new(keys, kill, Instant::now() + BEFORE);
    drive(&options, &mut watch)?;
    watch.gaps.into_iter().map(|gap| Ok(gap.context("writes did not resume")?.as_millis() as u64)).collect()
}

/// Drives the connections: the first are probes, grouped by key; the others generate load.
struct Watch<'a, K> {
    keys: &'a [u64],
    kill: K,
    random: Random,
    begin: Instant,
    killed: Option<Instant>,
    /// When each probe may be sent, relative to the kill.
    due: Vec<Duration>,
    /// The gap of each key.
    gaps: Vec<Option<Duration>>,
}

impl<'a, K: FnMut() -> Result<()>> Watch<'a, K> {
    fn new(keys: &'a [u64], kill: K, begin: Instant) -> Self {
        let due = (0..keys.len() * PROBES).map(|probe| PROBE_EVERY * (probe % PROBES) as u32).collect();
        Self { keys, kill, random: Random::new(0), begin, killed: None, due, gaps: vec![None; keys.len()] }
    }

    fn is_over(&self, now: Instant) -> bool {
        let since_kill = self.killed.map(|killed| now.saturating_duration_since(killed));
        self.gaps.iter().all(Option::is_some) || since_kill.is_some_and(|since| since > GAP_MAX)
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
            // The gap starts before the kill, although no probe is sent until the process has ended.
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
    fn the_summary_has_median_and_worst_gap() {
        let summary = summary("x", vec![300, 100, 200]);
        assert!(summary.ends_with("(x; 3 gaps): median 200 ms, worst 300 ms"), "{summary}");
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
        let killed = watch.killed.expect("the kill is due");
        assert_eq!(watch.next(0, killed), Next::Send(Operation::Set, 1));
        assert_eq!(watch.next(PROBES + 1, killed), Next::Wait, "the second probe of a key is sent later");
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
