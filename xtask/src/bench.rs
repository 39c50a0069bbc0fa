//! `bench`: a closed loop over the Redis protocol and HTTP, beside the peers that are installed on this machine.
//!
//! Every connection keeps a fixed number of requests in flight, so throughput and latency belong together, and a slow
//! answer delays the requests after it: quantiles are those of a closed loop. The load runs on the same machine as
//! what it measures; compare rows of one run with each other, never with another machine's.

mod etcd;
mod load;
mod peers;
mod report;
mod resp;
mod web;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::{Context, Result, bail};
use flotilla_local_cluster::{Cluster, ClusterOptions};

use self::{
    etcd::{EtcdClient, Reads},
    load::{Operation, Shape},
    peers::{EtcdCluster, RedisServer},
    report::{Report, Row},
    resp::RespClient,
    web::HttpClient,
};
use crate::workspace::{self, Profile, build_node, cargo};

/// What to measure.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Servers that speak the Redis protocol, host:port and a comma between; without it and --http a cluster is started
    #[arg(long, value_delimiter = ',')]
    addr: Vec<SocketAddr>,
    /// Servers that speak Flotilla's HTTP interface, host:port and a comma between
    #[arg(long, value_delimiter = ',')]
    http: Vec<SocketAddr>,
    /// Nodes of the cluster that is started
    #[arg(long, default_value_t = 3)]
    nodes: usize,
    /// Connections, spread over the servers
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=1_024))]
    connections: u16,
    /// Requests in flight on each; over HTTP, which has no pipelining, each is one more connection
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=1_024))]
    in_flight: u16,
    /// Bytes of a value
    #[arg(long, default_value_t = 256)]
    value_bytes: usize,
    /// How many keys there are
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..))]
    keys: u64,
    /// Seconds per row, after one to warm up
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// Where the figures go as JSON [default: bench.json in cargo's target folder]
    #[arg(long, value_name = "PATH")]
    json: Option<PathBuf>,
    /// Leave out the peers
    #[arg(long)]
    no_peers: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    if cfg!(debug_assertions) {
        // An unoptimised load would measure itself.
        let own = std::env::args_os().skip(1);
        return workspace::run(cargo().args(["run", "--quiet", "--release", "--package", "xtask", "--"]).args(own));
    }
    let shape = Shape {
        connections: arguments.connections.into(),
        in_flight: arguments.in_flight.into(),
        value_bytes: arguments.value_bytes,
        keys: arguments.keys,
        warm_up: Duration::from_secs(1),
        time: Duration::from_secs(arguments.seconds),
    };
    let target = workspace::metadata()?.target_directory;
    let mut report = Report::new(&shape);
    if arguments.addr.is_empty() && arguments.http.is_empty() {
        let binary = build_node(Profile::Release)?;
        let folder = tempfile::Builder::new().prefix("bench-").tempdir_in(&target)?;
        let mut options = ClusterOptions::new(arguments.nodes, binary);
        options.dir = Some(folder.path().to_owned());
        // The runtime must live as long as the cluster; the load itself uses threads.
        let runtime = workspace::runtime()?;
        let cluster = runtime.block_on(Cluster::start(options))?;
        let nodes: Result<Vec<_>, _> = (1..=cluster.len()).map(|i| cluster.node(i).cloned()).collect();
        let nodes = nodes?;
        let redis: Vec<SocketAddr> = nodes.iter().map(|node| node.redis).collect();
        let http: Vec<SocketAddr> = nodes.iter().map(|node| node.http).collect();
        let name = format!("flotilla, {} nodes", nodes.len());
        over_redis(&name, &redis, &shape, &mut report)?;
        over_http(&name, &http, &shape, &mut report)?;
    } else {
        over_redis("given", &arguments.addr, &shape, &mut report)?;
        over_http("given", &arguments.http, &shape, &mut report)?;
    }
    if !arguments.no_peers {
        beside_peers(&target, &shape, &mut report)?;
    }
    report.print();
    let path = arguments.json.clone().unwrap_or_else(|| target.join("bench.json"));
    std::fs::write(&path, report.to_json()?).with_context(|| path.display().to_string())?;
    println!("\nfigures: {}", path.display());
    Ok(())
}

fn beside_peers(target: &std::path::Path, shape: &Shape, report: &mut Report) -> Result<()> {
    if workspace::is_installed("redis-server", &["--version"]) {
        let folder = tempfile::Builder::new().prefix("bench-redis-").tempdir_in(target)?;
        let server = RedisServer::start(folder.path())?;
        over_redis("redis-server, 1 node, fsync always", &[server.addr()], shape, report)?;
    } else {
        report.note("redis-server is not installed: apt install redis-server");
    }
    if workspace::is_installed("etcd", &["--version"]) {
        let folder = tempfile::Builder::new().prefix("bench-etcd-").tempdir_in(target)?;
        let cluster = EtcdCluster::start(folder.path(), 3)?;
        over_grpc("etcd, 3 nodes", cluster.clients(), shape, report)?;
    } else {
        report.note("etcd is not installed: apt install etcd-server");
    }
    Ok(())
}

fn over_redis(name: &str, servers: &[SocketAddr], shape: &Shape, report: &mut Report) -> Result<()> {
    if servers.is_empty() {
        return Ok(());
    }
    let connect = |i: usize| RespClient::connect(servers[i % servers.len()]);
    load::fill(&mut connect(0)?, shape).with_context(|| format!("cannot fill {name}"))?;
    for operation in [Operation::Set, Operation::Get, Operation::Increment] {
        let outcome = load::run(shape, shape.connections, shape.in_flight, operation, &connect)?;
        if outcome.answers() == 0 {
            bail!("{name} answered nothing");
        }
        report.add(Row::new(name, "redis", operation, &outcome));
    }
    Ok(())
}

fn over_grpc(name: &str, servers: &[SocketAddr], shape: &Shape, report: &mut Report) -> Result<()> {
    let rows = [
        (Operation::Set, Reads::Linearizable, "grpc"),
        (Operation::Get, Reads::Linearizable, "grpc"),
        (Operation::Get, Reads::Serializable, "grpc, serializable"),
    ];
    let fill = EtcdClient::connect(servers[0], Reads::Linearizable);
    load::fill(&mut fill?, shape).with_context(|| format!("cannot fill {name}"))?;
    for (operation, reads, protocol) in rows {
        let connect = |i: usize| EtcdClient::connect(servers[i % servers.len()], reads);
        let outcome = load::run(shape, shape.connections, shape.in_flight, operation, &connect)?;
        if outcome.answers() == 0 {
            bail!("{name} answered nothing");
        }
        report.add(Row::new(name, protocol, operation, &outcome));
    }
    Ok(())
}

fn over_http(name: &str, servers: &[SocketAddr], shape: &Shape, report: &mut Report) -> Result<()> {
    if servers.is_empty() {
        return Ok(());
    }
    let connect = |i: usize| HttpClient::connect(servers[i % servers.len()]);
    load::fill(&mut connect(0)?, shape).with_context(|| format!("cannot fill {name}"))?;
    for operation in [Operation::Set, Operation::Get] {
        let outcome = load::run(shape, shape.connections * shape.in_flight, 1, operation, &connect)?;
        if outcome.answers() == 0 {
            bail!("{name} answered nothing");
        }
        report.add(Row::new(name, "http", operation, &outcome));
    }
    Ok(())
}
