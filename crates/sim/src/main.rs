//! The command line of the simulator: runs many seeds, or one in detail, and prints a summary.

use std::{
    collections::BTreeSet,
    fs,
    io::{IsTerminal as _, Write as _},
    ops::Range,
    path::PathBuf,
    process::ExitCode,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use clap::Parser;
use flotilla_sim::{Counts, Failure, Options, Report, run, shrink};
use tracing_subscriber::{
    Layer as _, filter::Targets, fmt, layer::SubscriberExt as _, registry, util::SubscriberInitExt as _,
};

/// Runs whole simulated clusters, each determined by one seed.
#[derive(Debug, Parser)]
#[command(name = "flotilla-sim", version)]
struct Arguments {
    /// How many seeds to run.
    #[arg(long, default_value_t = 500)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Run this seed only, and print what happened.
    #[arg(long, conflicts_with_all = ["seeds", "from"])]
    seed: Option<u64>,
    /// Faults of that seed's plan to leave out, by index.
    #[arg(long, value_delimiter = ',', requires = "seed")]
    without: Vec<usize>,
    /// Write every event of that seed to this file.
    #[arg(long, value_name = "FILE", requires = "seed")]
    trace: Option<PathBuf>,
    /// Show the nodes' logs, filtered as in `RUST_LOG`: `info`, `flotilla_replication=debug`.
    #[arg(long, value_name = "FILTER", requires = "seed")]
    log: Option<Targets>,
    /// Seeds to run in parallel.
    #[arg(long, default_value_t = thread::available_parallelism().map_or(1, usize::from))]
    jobs: usize,
    /// Do not shrink the plan of the first failing seed.
    #[arg(long)]
    plain: bool,
    /// Go on after a seed has failed.
    #[arg(long)]
    keep_going: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(filter) = &arguments.log {
        registry().with(fmt::layer().with_writer(std::io::stderr).without_time().with_filter(filter.clone())).init();
    }
    match arguments.seed {
        Some(seed) => one(seed, &arguments),
        None => many(arguments.from..arguments.from.saturating_add(arguments.seeds), &arguments),
    }
}

fn one(seed: u64, arguments: &Arguments) -> ExitCode {
    let without: BTreeSet<_> = arguments.without.iter().copied().collect();
    let started = Instant::now();
    let options = Options { without, record_events: arguments.trace.is_some(), ..Options::default() };
    let result = run(seed, &options);
    let event_log = match &result {
        Ok(report) => &report.event_log,
        Err(failure) => &failure.event_log,
    };
    if let Some(path) = &arguments.trace {
        match fs::write(path, event_log.join("\n")) {
            Ok(()) => eprintln!("wrote {} events to {}", event_log.len(), path.display()),
            Err(error) => eprintln!("cannot write {}: {error}", path.display()),
        }
    }
    match result {
        Ok(report) => {
            for (at_us, note) in &report.notes {
                println!("{:>8} ms  {note}", at_us / 1_000);
            }
            println!(
                "seed {seed} passed: {} events, {} operations, {:?}, trace {:016x}, {:.1} s simulated in {:.2} s",
                report.events,
                report.operations,
                report.counts,
                report.trace,
                report.simulated_ms as f64 / 1e3,
                started.elapsed().as_secs_f64()
            );
            ExitCode::SUCCESS
        }
        Err(failure) => {
            eprintln!("{failure}");
            ExitCode::FAILURE
        }
    }
}

#[derive(Default)]
struct Sum {
    passed: u64,
    simulated_ms: u64,
    events: u64,
    operations: u64,
    counts: Counts,
}

impl Sum {
    fn add(&mut self, report: &Report) {
        self.passed += 1;
        self.simulated_ms += report.simulated_ms;
        self.events += report.events;
        self.operations += report.operations as u64;
        self.counts.add(&report.counts);
    }
}

fn many(seeds: Range<u64>, arguments: &Arguments) -> ExitCode {
    let next = AtomicU64::new(seeds.start);
    let stop = AtomicBool::new(false);
    let sum = Mutex::new(Sum::default());
    let failures: Mutex<Vec<Failure>> = Mutex::default();
    let started = Instant::now();
    let count = seeds.end - seeds.start;
    thread::scope(|scope| {
        for _ in 0..arguments.jobs.max(1) {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    match run(seed, &Options::default()) {
                        Ok(report) => lock(&sum).add(&report),
                        Err(failure) => {
                            let summary = failure.message.lines().next().unwrap_or_default().to_owned();
                            eprintln!("\nseed {seed} failed: {summary}");
                            lock(&failures).push(*failure);
                            stop.fetch_or(!arguments.keep_going, Ordering::Relaxed);
                        }
                    }
                }
            });
        }
        progress(&sum, &failures, count, &stop, started);
    });
    let sum = lock(&sum);
    let seconds = started.elapsed().as_secs_f64();
    println!(
        "{} of {count} seeds passed in {seconds:.0} s: {:.0} s simulated ({:.0} s per second), {} events, {} operations",
        sum.passed,
        sum.simulated_ms as f64 / 1e3,
        sum.simulated_ms as f64 / 1e3 / seconds,
        sum.events,
        sum.operations,
    );
    println!("{:?}", sum.counts);
    let mut failures = std::mem::take(&mut *lock(&failures));
    failures.sort_by_key(|failure| failure.seed);
    let seeds: Vec<_> = failures.iter().map(|failure| failure.seed).collect();
    let Some(first) = failures.into_iter().next() else { return ExitCode::SUCCESS };
    if arguments.plain {
        return ExitCode::FAILURE;
    }
    eprintln!("failed: {seeds:?}; shrinking the plan of the first");
    eprintln!("{}", shrink(first));
    ExitCode::FAILURE
}

/// Prints progress: every second on a terminal, every 30 s elsewhere.
fn progress(sum: &Mutex<Sum>, failures: &Mutex<Vec<Failure>>, count: u64, stop: &AtomicBool, started: Instant) {
    let terminal = std::io::stderr().is_terminal();
    let mut printed = Instant::now();
    loop {
        thread::sleep(Duration::from_millis(100));
        let (passed, failed) = (lock(sum).passed, lock(failures).len() as u64);
        let finished = passed + failed >= count || stop.load(Ordering::Relaxed);
        let every = Duration::from_secs(if terminal { 1 } else { 30 });
        if printed.elapsed() >= every && !finished {
            printed = Instant::now();
            let done = passed + failed;
            let rate = done as f64 / started.elapsed().as_secs_f64();
            let left_s = (count - done) as f64 / rate.max(1e-9);
            let (begin, end) = if terminal { ("\r", "   ") } else { ("", "\n") };
            eprint!("{begin}{done} of {count} seeds, {failed} failed, {rate:.1} per second, {left_s:.0} s left{end}");
            let _ = std::io::stderr().flush();
        }
        if finished {
            return;
        }
    }
}

/// Ignores poisoning: the sums stay usable when a thread panicked while it held the lock.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
