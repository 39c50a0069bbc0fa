//! What a run is told, and what it means.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::Args;

use super::{
    keys::{KEYS_MAX, Popularity},
    measure::Span,
    own::SHARDS_DEFAULT,
    plan::{Breadth, Pipelining, Wanted},
    protocol::Wire,
    workload::Workload,
};

/// What `--full` adds where nothing else was said.
const FULL_KEYS: [u64; 2] = [100_000, 2_000_000];
const FULL_NODES: [usize; 2] = [3, 5];
const FULL_SHARDS: [u16; 4] = [1, SHARDS_DEFAULT, 16, 64];
const FULL_KILLS: usize = 20;

/// Flotilla's throughput, latency and cost, beside etcd and Redis where they are installed.
///
/// By itself: rows for each system, one thing varied at a time, in about four minutes. --shards or --nodes with more than one
/// value, --forwarding and --failover measure only what they name; --full measures all there is, in every combination, and takes
/// about an hour and 10 GB of disk.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Servers that speak the Redis protocol, host:port and a comma between; without any server clusters are started
    #[arg(long, value_delimiter = ',')]
    addr: Vec<SocketAddr>,
    /// Servers that speak Flotilla's HTTP interface, host:port and a comma between
    #[arg(long, value_delimiter = ',')]
    http: Vec<SocketAddr>,
    /// Members of an etcd cluster, host:port and a comma between
    #[arg(long, value_delimiter = ',')]
    etcd: Vec<SocketAddr>,
    /// Nodes of the clusters that are started; a list gives a row for each
    #[arg(long, value_delimiter = ',', default_value = "3")]
    nodes: Vec<usize>,
    /// Shards that the keys lie in; a list gives a row for each [default: 3]
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..=1_024))]
    shards: Vec<u16>,
    /// Connections, spread over the servers
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u16).range(1..=1_024))]
    connections: u16,
    /// Requests in flight on each, continuously; over HTTP, which has no pipelining, each is one more connection
    #[arg(long, value_delimiter = ',', default_value = "1,8,32,128,512", value_parser = clap::value_parser!(u16).range(1..=4_096))]
    in_flight: Vec<u16>,
    /// A connection for each request in flight, over all protocols
    #[arg(long)]
    no_pipeline: bool,
    /// What to ask for
    #[arg(long, value_delimiter = ',', value_enum, default_value = "set,get,half,mostly-get,get-local")]
    workload: Vec<Workload>,
    /// How keys are chosen
    #[arg(long, value_delimiter = ',', value_enum, default_value = "uniform,zipfian")]
    popularity: Vec<Popularity>,
    /// How many keys there are [default: 100000]
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u64).range(1..KEYS_MAX))]
    keys: Vec<u64>,
    /// Bytes of a value
    #[arg(long, default_value_t = 256)]
    pub(super) value_bytes: usize,
    /// Seconds per row, after half a second to warm up
    #[arg(long, default_value_t = 2.0)]
    pub(super) seconds: f64,
    /// What a forward costs: keys asked of their leader, and of another node
    #[arg(long)]
    forwarding: bool,
    /// Kill a leader so many times, and tell how long its shards take no writes
    #[arg(long, value_name = "TIMES", num_args = 0..=1, default_missing_value = "20")]
    failover: Option<usize>,
    /// All combinations, and everything else
    #[arg(long)]
    full: bool,
    /// Where the figures go as JSON [default: bench.json in cargo's target folder]
    #[arg(long, value_name = "PATH")]
    pub(super) json: Option<PathBuf>,
    /// Where the picture goes, throughput against p99 [default: bench.svg in cargo's target folder]
    #[arg(long, value_name = "PATH")]
    pub(super) plot: Option<PathBuf>,
    /// Leave out the peers
    #[arg(long)]
    pub(super) no_peers: bool,
}

impl Arguments {
    /// Servers that somebody else started, if there are any.
    pub(super) fn given(&self) -> Vec<(Wire, Vec<SocketAddr>)> {
        let given = [(Wire::Redis, &self.addr), (Wire::Http, &self.http), (Wire::Grpc, &self.etcd)];
        let given = given.into_iter().filter(|(_, servers)| !servers.is_empty());
        given.map(|(wire, servers)| (wire, servers.clone())).collect()
    }

    pub(super) fn wanted(&self) -> Wanted {
        let pipelining = if self.no_pipeline { vec![Pipelining::Off] } else { vec![Pipelining::On, Pipelining::Off] };
        Wanted {
            workloads: self.workload.clone(),
            popularities: self.popularity.clone(),
            keys: or(&self.keys, if self.full { &FULL_KEYS } else { &FULL_KEYS[..1] }),
            connections: self.connections.into(),
            in_flight: self.in_flight.iter().copied().map(usize::from).collect(),
            pipelining,
            breadth: if self.full { Breadth::All } else { Breadth::Usual },
        }
    }

    pub(super) fn span(&self) -> Span {
        Span { warm_up: Duration::from_millis(500), time: Duration::from_secs_f64(self.seconds.clamp(0.1, 3_600.0)) }
    }

    /// Whether servers are compared at all.
    pub(super) fn has_matrix(&self) -> bool {
        self.full || !(self.has_curve() || self.has_forwarding() || self.kills() > 0)
    }

    pub(super) fn has_curve(&self) -> bool {
        self.curve().len() > 1
    }

    pub(super) fn has_forwarding(&self) -> bool {
        self.full || self.forwarding
    }

    pub(super) fn kills(&self) -> usize {
        self.failover.unwrap_or(if self.full { FULL_KILLS } else { 0 })
    }

    /// Nodes and shards of the clusters of the cost curve, the usual one first when nothing was said.
    pub(super) fn curve(&self) -> Vec<(usize, u16)> {
        if self.full && self.nodes.len() < 2 && self.shards.len() < 2 {
            let shards = FULL_SHARDS.map(|shards| (self.nodes(), shards));
            let nodes = FULL_NODES.map(|nodes| (nodes, SHARDS_DEFAULT));
            return shards.into_iter().chain(nodes.into_iter().filter(|(nodes, _)| *nodes != self.nodes())).collect();
        }
        let shards = or(&self.shards, &[SHARDS_DEFAULT]);
        self.nodes.iter().flat_map(|nodes| shards.iter().map(move |shards| (*nodes, *shards))).collect()
    }

    pub(super) fn nodes(&self) -> usize {
        self.nodes.first().copied().unwrap_or(3)
    }

    pub(super) fn shards(&self) -> u16 {
        self.shards.first().copied().unwrap_or(SHARDS_DEFAULT)
    }
}

fn or<T: Copy>(given: &[T], otherwise: &[T]) -> Vec<T> {
    if given.is_empty() { otherwise.to_vec() } else { given.to_vec() }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Only {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn given(line: &str) -> Arguments {
        Only::parse_from(std::iter::once("bench").chain(line.split_whitespace())).arguments
    }

    #[test]
    fn what_is_named_is_measured_and_nothing_else() {
        let plain = given("");
        assert!(plain.has_matrix() && !plain.has_curve() && !plain.has_forwarding() && plain.kills() == 0);
        let curve = given("--shards 1,4 --nodes 3,5");
        assert!(!curve.has_matrix() && curve.has_curve());
        assert_eq!(curve.curve(), [(3, 1), (3, 4), (5, 1), (5, 4)]);
        assert!(given("--shards 4").has_matrix(), "another number of shards, not a curve");
        assert_eq!((given("--failover").kills(), given("--failover 3").kills()), (20, 3));
    }

    #[test]
    fn a_full_run_leaves_nothing_out() {
        let full = given("--full");
        assert!(full.has_matrix() && full.has_forwarding() && full.kills() == 20);
        assert_eq!(full.curve(), [(3, 1), (3, 3), (3, 16), (3, 64), (5, 3)]);
        assert_eq!(full.wanted().keys, FULL_KEYS);
    }
}
