//! `bench`: Flotilla, etcd and Redis under the same closed loop, on one machine, in one run.
//!
//! Every connection keeps a fixed number of requests in flight, so throughput and latency belong together, and quantiles are those of
//! a closed loop. The load runs on the same machine as what it measures, and says what processor time it took itself; compare rows of
//! one run with each other, never with another machine's. Systems run one after another, so that an idle one takes nothing.

mod arguments;
mod failover;
mod forwarding;
mod grpc;
mod hpack;
mod keys;
mod load;
mod measure;
mod own;
mod peers;
mod plan;
mod plot;
mod processes;
mod protocol;
mod ratios;
mod report;
mod resp;
mod web;
mod workload;

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

pub(crate) use self::arguments::Arguments;
use self::{
    keys::{Keys, Popularity},
    measure::{Family, Pressure, Span, System, fill, measure},
    own::Own,
    peers::Peer,
    plan::{Case, LocalReads, Pipelining, Wanted},
    plot::{Line, Panel},
    protocol::Wire,
    report::{Report, Row},
    workload::{Values, Workload},
};
use crate::workspace::{self, Profile, build_node, cargo};

/// How long a system is asked whether it offers something.
const PROBE: Duration = Duration::from_millis(50);

/// One run: what is asked for, and what came of it.
struct Run<'a> {
    arguments: &'a Arguments,
    wanted: Wanted,
    values: Values,
    target: PathBuf,
    report: Report,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    if cfg!(debug_assertions) {
        // An unoptimised load would measure itself.
        let own = std::env::args_os().skip(1);
        return workspace::run(cargo().args(["run", "--quiet", "--release", "--package", "xtask", "--"]).args(own));
    }
    let mut run = Run {
        arguments,
        wanted: arguments.wanted(),
        values: Values::new(arguments.value_bytes),
        target: workspace::metadata()?.target_directory,
        report: Report::new(arguments.value_bytes, arguments.seconds),
    };
    let start = Instant::now();
    // What was measured is told even when something breaks later.
    let outcome = run.all();
    run.report.note(format!("took {:.0} s", start.elapsed().as_secs_f64()));
    run.tell()?;
    outcome
}

impl Run<'_> {
    fn all(&mut self) -> Result<()> {
        let given = self.arguments.given();
        if !given.is_empty() {
            return self.given(given);
        }
        let binary = build_node(Profile::Release)?;
        if self.arguments.has_matrix() {
            let own = Own::start(binary.clone(), &self.target, self.arguments.nodes(), self.arguments.shards())?;
            self.rows(&own.system(Wire::Redis)?, Filled::No)?;
            self.rows(&own.system(Wire::Http)?, Filled::ByOtherProtocol)?;
            drop(own);
            self.peers()?;
        }
        if self.arguments.has_curve() {
            for (nodes, shards) in self.arguments.curve() {
                let own = Own::start(binary.clone(), &self.target, nodes, shards)?;
                self.curve_point(&own.system(Wire::Redis)?)?;
            }
        }
        if self.arguments.has_forwarding() {
            let own = Own::start(binary.clone(), &self.target, self.arguments.nodes(), self.arguments.shards())?;
            let (keys, standard) = (self.wanted.keys[0], self.wanted.standard());
            forwarding::run(&own, keys, standard, self.arguments.span(), &self.values, &mut self.report)?;
        }
        if self.arguments.kills() > 0 {
            let kills = self.arguments.kills();
            let mut own = Own::start(binary, &self.target, self.arguments.nodes(), self.arguments.shards())?;
            failover::run(&mut own, kills, &mut self.report)?;
            drop(own);
            if !self.arguments.no_peers && workspace::is_installed("etcd", &["--version"]) {
                failover::run_etcd(&self.target, kills, &mut self.report)?;
            }
        }
        Ok(())
    }

    /// Servers that somebody else started.
    fn given(&mut self, given: Vec<(Wire, Vec<SocketAddr>)>) -> Result<()> {
        for (wire, servers) in given {
            let name = "given".to_owned();
            self.rows(&System { family: Family::Given, name, wire, servers, pids: Vec::new() }, Filled::No)?;
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
                self.report.note(format!("{program} is not installed, its rows are missing: apt install {package}"));
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
        let (mut held, cases) = (0, self.wanted.cases(system.wire, local));
        for case in cases {
            if held != case.keys && filled == Filled::No {
                fill(system, case.keys, &self.values)?;
            }
            held = case.keys;
            self.row(system, case)?;
        }
        Ok(())
    }

    /// The Redis protocol has none, and a server may know of them and offer none.
    fn local_reads(&mut self, system: &System) -> Result<LocalReads> {
        if system.wire == Wire::Redis || !self.wanted.workloads.contains(&Workload::GetLocal) {
            return Ok(LocalReads::Refused);
        }
        let one = System { servers: system.servers[..1].to_vec(), ..system.clone() };
        fill(&one, 1, &self.values)?;
        let (lone, span) = (Pressure { connections: 1, in_flight: 1 }, Span { warm_up: Duration::ZERO, time: PROBE });
        let outcome = measure(&one, (Workload::GetLocal, &Keys::Uniform(1)), lone, span, &self.values)?;
        let Some(refusal) = outcome.first_refusal else { return Ok(LocalReads::Offered) };
        self.report.note(format!("{} {} offers no local reads: {refusal}", system.name, system.wire.name()));
        Ok(LocalReads::Refused)
    }

    fn row(&mut self, system: &System, case: Case) -> Result<()> {
        let keys = Keys::new(case.keys, case.popularity);
        let outcome = measure(system, (case.workload, &keys), case.pressure, self.arguments.span(), &self.values)?;
        self.report.add(Row::new(system, case, self.values.length(), &outcome));
        Ok(())
    }

    /// Writes and reads at the standard pressure.
    fn curve_point(&mut self, system: &System) -> Result<()> {
        let (keys, pressure) = (self.wanted.keys[0], self.wanted.standard());
        fill(system, keys, &self.values)?;
        for workload in [Workload::Set, Workload::Get] {
            let (popularity, pipelining) = (Popularity::Uniform, Pipelining::On);
            self.row(system, Case { workload, popularity, keys, pressure, pipelining })?;
        }
        Ok(())
    }

    fn tell(&self) -> Result<()> {
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
                self.wanted.connections
            );
            fs::write(&path, plot::svg(&title, &panels)).with_context(|| path.display().to_string())?;
            println!("picture: {}", path.display());
        }
        Ok(())
    }
}

/// Starts a peer in a folder.
type StartPeer = fn(&Path) -> Result<Peer>;

/// Whether a system has the keys already.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Filled {
    No,
    ByOtherProtocol,
}

/// Every sweep of more than one point, those of one workload and number of keys together.
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
