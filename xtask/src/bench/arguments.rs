//! Command line of `bench`, and what it selects.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::Args;

use super::{
    flotilla::SHARDS_DEFAULT,
    keys::{KEYS_MAX, Popularity},
    measure::Timing,
    plan::{Breadth, Pipelining, Selection},
    protocol::Wire,
    workload::Workload,
};

/// What `--full` selects unless the options say otherwise.
const FULL_KEYS: [u64; 2] = [100_000, 2_000_000];
const FULL_NODES: [usize; 2] = [3, 5];
const FULL_SHARDS: [u16; 4] = [1, SHARDS_DEFAULT, 16, 64];
const FULL_KILLS: usize = 20;

/// Flotilla's throughput, latency and resource usage, compared with etcd and Redis if they are installed.
///
/// By default: rows for each system, varying one parameter at a time, in about four minutes. --shards or
/// --nodes with more than one value, --forwarding and --failover measure only what they name; --full measures
/// everything in every combination, and takes about an hour and 10 GB of disk.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Running Redis protocol servers to measure, as comma-separated host:port; without any servers, clusters
    /// are started
    #[arg(long, value_delimiter = ',')]
    addr: Vec<SocketAddr>,
    /// Running servers of Flotilla's HTTP API, as comma-separated host:port
    #[arg(long, value_delimiter = ',')]
    http: Vec<SocketAddr>,
    /// Members of a running etcd cluster, as comma-separated host:port
    #[arg(long, value_delimiter = ',')]
    etcd: Vec<SocketAddr>,
    /// Nodes of each started cluster; a list measures each
    #[arg(long, value_delimiter = ',', default_value = "3")]
    nodes: Vec<usize>,
    /// Shards of the collection; a list measures each [default: 3]
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..=1_024))]
    shards: Vec<u16>,
    /// Connections, distributed over the servers
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u16).range(1..=1_024))]
    connections: u16,
    /// Requests in flight on each connection; over HTTP, which has no pipelining, each takes a connection of
    /// its own
    #[arg(long, value_delimiter = ',', default_value = "1,8,32,128,512", value_parser = clap::value_parser!(u16).range(1..=4_096))]
    in_flight: Vec<u16>,
    /// One connection per request in flight, for all protocols
    #[arg(long)]
    no_pipeline: bool,
    /// Mix of operations
    #[arg(long, value_delimiter = ',', value_enum, default_value = "set,get,half,mostly-get,get-local")]
    workload: Vec<Workload>,
    /// How keys are chosen
    #[arg(long, value_delimiter = ',', value_enum, default_value = "uniform,zipfian")]
    popularity: Vec<Popularity>,
    /// Number of keys [default: 100000]
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u64).range(1..KEYS_MAX))]
    keys: Vec<u64>,
    /// Size of a value in bytes
    #[arg(long, default_value_t = 256)]
    pub(super) value_bytes: usize,
    /// Seconds per row, after half a second of warm-up
    #[arg(long, default_value_t = 2.0)]
    pub(super) seconds: f64,
    /// Measure the cost of forwarding: requests to a key's leader, and to another node
    #[arg(long)]
    forwarding: bool,
    /// Kill a leader this many times, and measure how long its shards accept no writes
    #[arg(long, value_name = "TIMES", num_args = 0..=1, default_missing_value = "20")]
    failover: Option<usize>,
    /// Measure all combinations, and everything else
    #[arg(long)]
    full: bool,
    /// File for the results as JSON [default: bench.json in cargo's target folder]
    #[arg(long, value_name = "PATH")]
    pub(super) json: Option<PathBuf>,
    /// File for the plot of throughput against p99 [default: bench.svg in cargo's target folder]
    #[arg(long, value_name = "PATH")]
    pub(super) plot: Option<PathBuf>,
    /// Do not measure etcd and Redis
    #[arg(long)]
    pub(super) no_peers: bool,
}

impl Arguments {
    /// Running servers to measure instead of started ones, if any.
    pub(super) fn external_servers(&self) -> Vec<(Wire, Vec<SocketAddr>)> {
        let servers = [(Wire::Redis, &self.addr), (Wire::Http, &self.http), (Wire::Grpc, &self.etcd)];
        let named = servers.into_iter().filter(|(_, servers)| !servers.is_empty());
        named.map(|(wire, servers)| (wire, servers.clone())).collect()
    }

    pub(super) fn selection(&self) -> Selection {
        let pipelining = if self.no_pipeline { vec![Pipelining::Off] } else { vec![Pipelining::On, Pipelining::Off] };
        Selection {
            workloads: self.workload.clone(),
            popularities: self.popularity.clone(),
            keys: or_default(&self.keys, if self.full { &FULL_KEYS } else { &FULL_KEYS[..1] }),
            connections: self.connections.into(),
            in_flight: self.in_flight.iter().copied().map(usize::from).collect(),
            pipelining,
            breadth: if self.full { Breadth::All } else { Breadth::OneAtATime },
        }
    }

    pub(super) fn timing(&self) -> Timing {
        Timing { warm_up: Duration::from_millis(500), time: Duration::from_secs_f64(self.seconds.clamp(0.1, 3_600.0)) }
    }

    /// Whether systems are compared at all.
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

    /// Nodes and shards of the clusters of the cost curve, the default one first.
    pub(super) fn curve(&self) -> Vec<(usize, u16)> {
        if self.full && self.nodes.len() < 2 && self.shards.len() < 2 {
            let shards = FULL_SHARDS.map(|shards| (self.nodes(), shards));
            let nodes = FULL_NODES.map(|nodes| (nodes, SHARDS_DEFAULT));
            return shards.into_iter().chain(nodes.into_iter().filter(|(nodes, _)| *nodes != self.nodes())).collect();
        }
        let shards = or_default(&self.shards, &[SHARDS_DEFAULT]);
        self.nodes.iter().flat_map(|nodes| shards.iter().map(move |shards| (*nodes, *shards))).collect()
    }

    pub(super) fn nodes(&self) -> usize {
        self.nodes.first().copied().unwrap_or(3)
    }

    pub(super) fn shards(&self) -> u16 {
        self.shards.first().copied().unwrap_or(SHARDS_DEFAULT)
    }
}

fn or_default<T: Copy>(values: &[T], default: &[T]) -> Vec<T> {
    if values.is_empty() { default.to_vec() } else { values.to_vec() }
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

    fn parse(line: &str) -> Arguments {
        Only::parse_from(std::iter::once("bench").chain(line.split_whitespace())).arguments
    }

    #[test]
    fn only_the_named_measurements_are_made() {
        let plain = parse("");
        assert!(plain.has_matrix() && !plain.has_curve() && !plain.has_forwarding() && plain.kills() == 0);
        let curve = parse("--shards 1,4 --nodes 3,5");
        assert!(!curve.has_matrix() && curve.has_curve());
        assert_eq!(curve.curve(), [(3, 1), (3, 4), (5, 1), (5, 4)]);
        assert!(parse("--shards 4").has_matrix(), "another number of shards, not a curve");
        assert_eq!((parse("--failover").kills(), parse("--failover 3").kills()), (20, 3));
    }

    #[test]
    fn a_full_run_measures_everything() {
        let full = parse("--full");
        assert!(full.has_matrix() && full.has_forwarding() && full.kills() == 20);
        assert_eq!(full.curve(), [(3, 1), (3, 3), (3, 16), (3, 64), (5, 3)]);
        assert_eq!(full.selection().keys, FULL_KEYS);
    }
}
