//! `bench`: Flotilla, etcd and Redis under the same closed-loop load, on one machine, in one run.
//!
//! Every connection keeps a fixed number of requests in flight, so throughput and latency are coupled, and
//! quantiles are those of a closed loop. The load generator shares the machine with the servers and reports
//! its own CPU time; compare rows of one run with each other, never with another machine's. Systems run one
//! after another, so that an idle one takes no resources.

mod arguments;
mod failover;
mod flotilla;
mod forwarding;
mod grpc;
mod hpack;
mod http;
mod keys;
mod load;
mod measure;
mod peers;
mod plan;
mod plot;
mod processes;
mod protocol;
mod ratios;
mod report;
mod resp;
mod workload;

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

pub(crate) use self::arguments::Arguments;
use self::{
    flotilla::Flotilla,
    keys::{Keys, Popularity},
    measure::{Concurrency, Family, System, Timing, fill, measure},
    peers::Peer,
    plan::{Case, LocalReads, Pipelining, Selection},
    plot::{Line, Panel},
    protocol::Wire,
    report::{Report, Row},
    workload::{Values, Workload},
};
use crate::workspace::{self, Profile, build_node};

/// How long a system is probed for local reads.
const PROBE: Duration = Duration::from_millis(50);

/// One run: its arguments and its report.
struct Run<'a> {
    arguments: &'a Arguments,
    selection: Selection,
    values: Values,
    target: PathBuf,
    report: Report,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    // An unoptimised load generator would measure itself.
    ensure!(!cfg!(debug_assertions), "run `cargo xtask bench` without the feature: it builds what it needs");
    let mut run = Run {
        arguments,
        selection: arguments.selection(),
        values: Values::new(arguments.value_bytes),
        target: workspace::metadata()?.target_directory,
        report: Report::new(arguments.value_bytes, arguments.seconds),
    };
    let start = Instant::now();
    // Rows are reported even if a later step fails.
    let outcome = run.all();
    run.report.note(format!("took {:.0} s", start.elapsed().as_secs_f64()));
    run.publish()?;
    outcome
}

impl Run<'_> {
    fn all(&mut self) -> Result<()> {
        let external = self.arguments.external_servers();
        if !external.is_empty() {
            return self.external(external);
        }
        let binary = build_node(Profile::Release)?;
        if self.arguments.has_matrix() {
            let flotilla =
                Flotilla::start(binary.clone(), &self.target, self.arguments.nodes(), self.arguments.shards())?;
            self.rows(&flotilla.system(Wire::Redis)?, Filled::No)?;
            self.rows(&flotilla.system(Wire::Http)?, Filled::ByOtherProtocol)?;
            drop(flotilla);
            self.peers()?;
        }
        if self.arguments.has_curve() {
            for (nodes, shards) in self.arguments.curve() {
                let flotilla = Flotilla::start(binary.clone(), &self.target, nodes, shards)?;
                self.curve_point(&flotilla.system(Wire::Redis)?)?;
            }
        }
        if self.arguments.has_forwarding() {
            let flotilla =
                Flotilla::start(binary.clone(), &self.target, self.arguments.nodes(), self.arguments.shards())?;
            let (keys, standard) = (self.selection.keys[0], self.selection.standard());
            forwarding::run(&flotilla, keys, standard, self.arguments.timing(), &self.values, &mut self.report)?;
        }
        if self.arguments.kills() > 0 {
            let kills = self.arguments.kills();
            let mut flotilla = Flotilla::start(binary, &self.target, self.arguments.nodes(), self.arguments.shards())?;
            failover::run(&mut flotilla, kills, &mut self.report)?;
            drop(flotilla);
            if !self.arguments.no_peers && workspace::is_installed("etcd", &["--version"]) {
                failover::run_etcd(&self.target, kills, &mut self.report)?;
            }
        }
        Ok(())
    }

    /// Measures running servers named by their addresses.
    fn external(&mut self, external: Vec<(Wire, Vec<SocketAddr>)>) -> Result<()> {
        for (wire, servers) in external {
            let name = "external".to_owned();
            self.rows(&System { family: Family::External, name, wire, servers, pids: Vec::new() }, Filled::No)?;
        }
        Ok(())
    }

    fn peers(&mut self) -> Result<()> {
        if self.arguments.no_peers {
            return Ok(());
        }
        let peers: [(&str, &str, StartPeer); 2] =
            [("redis-server", "redis-server", Peer::redis), ("etcd", "etcd-server", Peer::etcd)];
        for (program, package, start) in peers {
            if !workspace::is_installed(program, &["--version"]) {
                self.report.note(format!("{program} is not installed, so its rows are missing: apt install {package}"));
                continue;
            }
            let folder = tempfile::Builder::new().prefix(&format!("bench-{program}-")).tempdir_in(&self.target)?;
            let peer = start(folder.path())?;
            self.rows(&peer.system, Filled::No)?;
        }
        Ok(())
    }

    fn rows(&mut self, system: &System, filled: Filled) -> Result<()> {
        let local = self.local_reads(system)?;
        let (mut filled_keys, cases) = (0, self.selection.cases(system.wire, local));
        for case in cases {
            if filled_keys != case.keys && filled == Filled::No {
                fill(system, case.keys, &self.values)?;
            }
            filled_keys = case.keys;
            self.row(system, case)?;
        }
        Ok(())
    }

    /// Whether a system serves local reads: the Redis protocol has none, and a server may refuse them.
    fn local_reads(&mut self, system: &System) -> Result<LocalReads> {
        if system.wire == Wire::Redis || !self.selection.workloads.contains(&Workload::GetLocal) {
            return Ok(LocalReads::Refused);
        }
        let one = System { servers: system.servers[..1].to_vec(), ..system.clone() };
        fill(&one, 1, &self.values)?;
        let (single, timing) =
            (Concurrency { connections: 1, in_flight: 1 }, Timing { warm_up: Duration::ZERO, time: PROBE });
        let outcome = measure(&one, (Workload::GetLocal, &Keys::Uniform(1)), single, timing, &self.values)?;
        let Some(refusal) = outcome.first_refusal else { return Ok(LocalReads::Offered) };
        self.report.note(format!("{} {} offers no local reads: {refusal}", system.name, system.wire.name()));
        Ok(LocalReads::Refused)
    }

    fn row(&mut self, system: &System, case: Case) -> Result<()> {
        let keys = Keys::new(case.keys, case.popularity);
        let outcome = measure(system, (case.workload, &keys), case.concurrency, self.arguments.timing(), &self.values)?;
        self.report.add(Row::new(system, case, self.values.length(), &outcome));
        Ok(())
    }

    /// Measures writes and reads at the standard load.
    fn curve_point(&mut self, system: &System) -> Result<()> {
        let (keys, concurrency) = (self.selection.keys[0], self.selection.standard());
        fill(system, keys, &self.values)?;
        for workload in [Workload::Set, Workload::Get] {
            let (popularity, pipelining) = (Popularity::Uniform, Pipelining::On);
            self.row(system, Case { workload, popularity, keys, concurrency, pipelining })?;
        }
        Ok(())
    }

    fn publish(&self) -> Result<()> {
        self.report.print();
        let json = self.arguments.json.clone().unwrap_or_else(|| self.target.join("bench.json"));
        fs::write(&json, self.report.to_json()?).with_context(|| json.display().to_string())?;
        println!("figures: {}", json.display());
        let panels = panels(&self.report.rows);
        if !panels.is_empty() {
            let path = self.arguments.plot.clone().unwrap_or_else(|| self.target.join("bench.svg"));
            let title = format!(
                "Throughput against p99, {}-byte values, {} connections",
                self.values.length(),
                self.selection.connections
            );
            fs::write(&path, plot::svg(&title, &panels)).with_context(|| path.display().to_string())?;
            println!("plot: {}", path.display());
        }
        Ok(())
    }
}

/// Starts a peer in a folder.
type StartPeer = fn(&Path) -> Result<Peer>;

/// Whether a system already holds the keys.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Filled {
    No,
    ByOtherProtocol,
}

/// Panels with every sweep of more than one point, grouped by workload and number of keys.
fn panels(rows: &[Row]) -> Vec<Panel> {
    let mut panels: Vec<Panel> = Vec::new();
    for row in rows.iter().filter(|row| ratios::is_first(rows, row)) {
        let points: Vec<_> = ratios::sweep(rows, row).into_iter().map(|(rate, us)| (rate, us / 1_000.0)).collect();
        if points.len() < 2 {
            continue;
        }
        let line = Line { label: format!("{}, {}", row.system, row.protocol), points };
        let title = format!("{}, {} keys", row.case.workload.name(), report::thousands(row.case.keys));
        match panels.iter_mut().find(|panel| panel.title == title) {
            Some(panel) => panel.lines.push(line),
            None => panels.push(Panel { title, lines: vec![line] }),
        }
    }
    panels
}
