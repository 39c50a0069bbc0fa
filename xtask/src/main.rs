//! Developer commands, run as `cargo xtask <command>`. One short file per command.
//!
//! Deliberately absent: anything that a running node needs. Starting and observing nodes is in
//! `flotilla-local-cluster`.

#[cfg(feature = "bench")]
mod bench;
#[cfg(not(feature = "bench"))]
#[path = "bench_build.rs"]
mod bench;
mod cluster;
#[cfg(test)]
mod docs;
mod fuzz;
mod layers;
mod lint;
mod mutate;
mod sim;
mod test;
mod torture;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Commands for working on Flotilla.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build and start a cluster on this machine, wait until it is ready, and print how to use it
    ClusterUp(cluster::up::Arguments),
    /// Show nodes, roles, leaders and shards; works without a quorum
    ClusterStatus(cluster::status::Arguments),
    /// Send a signal to a node, KILL by default
    ClusterKill(cluster::kill::Arguments),
    /// Start a stopped node on its data
    ClusterStart(cluster::start::Arguments),
    /// Start another node, which joins the running cluster
    ClusterAdd(cluster::add::Arguments),
    /// Stop all nodes
    ClusterDown(cluster::down::Arguments),
    /// Run all tests
    Test(test::Arguments),
    /// Inject faults into clusters of real processes: every scenario, or crashes at every failpoint
    Torture(torture::Arguments),
    /// Fuzz the parsers with hostile input
    Fuzz(fuzz::Arguments),
    /// Check formatting, lints, layer rules, licences and advisories
    Lint,
    /// Run simulated clusters, with many seeds or one
    Sim(sim::Arguments),
    /// Plant faults in a copy of the sources and check that tests detect them
    Mutate(mutate::Arguments),
    /// Measure throughput, latency and resource usage, compared with etcd and Redis if installed
    Bench(Box<bench::Arguments>),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::ClusterUp(arguments) => cluster::up::run(&arguments),
        Command::ClusterStatus(arguments) => cluster::status::run(&arguments),
        Command::ClusterKill(arguments) => cluster::kill::run(&arguments),
        Command::ClusterStart(arguments) => cluster::start::run(&arguments),
        Command::ClusterAdd(arguments) => cluster::add::run(&arguments),
        Command::ClusterDown(arguments) => cluster::down::run(&arguments),
        Command::Test(arguments) => test::run(&arguments),
        Command::Torture(arguments) => torture::run(&arguments),
        Command::Fuzz(arguments) => fuzz::run(&arguments),
        Command::Lint => lint::run(),
        Command::Sim(arguments) => sim::run(&arguments),
        Command::Mutate(arguments) => mutate::run(&arguments),
        Command::Bench(arguments) => bench::run(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
