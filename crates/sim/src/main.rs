//! Runs seeds, many or one, and tells what it saw.

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

/// Runs whole simulated clusters, each decided by one seed.
#[derive(Debug, Parser)]
#[command(name = "flotilla-sim", version)]
struct Arguments {
    /// How many seeds to run.
    #[arg(long, default_value_t = 500)]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// One seed only, with its story.
    #[arg(long, conflicts_with_all = ["seeds", "from"])]
    seed: Option<u64>,
    /// Faults of that seed's plan to leave out, by their number.
    #[arg(long, value_delimiter = ',', requires = "seed")]
    without: Vec<usize>,
    /// Write every event of that seed to this file.
    #[arg(long, value_name = "FILE", requires = "seed")]
    trace: Option<PathBuf>,
    /// Seeds to run at a time.
    #[arg(long, default_value_t = thread::available_parallelism().map_or(1, usize::from))]
    jobs: usize,
    /// Do not look for a smaller plan of the first seed that failed.
    #[arg(long)]
    plain: bool,
    /// Go on after a seed has failed.
    #[arg(long)]
    keep_going: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match arguments.seed {
        Some(seed) => one(seed, &arguments),
        None => many(arguments.from..arguments.from.saturating_add(arguments.seeds), &arguments),
    }
}

fn one(seed: u64, arguments: &Arguments) -> ExitCode {
    let without: BTreeSet<_> = arguments.without.iter().copied().collect();
    let started = Instant::now();
    let result = run(seed, &Options { without, tell: arguments.trace.is_some(), ..Options::default() });
    let told = match &result {
        Ok(report) => &report.told,
        Err(failure) => &failure.told,
    };
    if let Some(path) = &arguments.trace {
        match fs::write(path, told.join("\n")) {
            Ok(()) => eprintln!("{} events are in {}", told.len(), path.display()),
            Err(error) => eprintln!("{} cannot be written: {error}", path.display()),
        }
    }
    match result {
        Ok(report) => {
            for (at_us, note) in &report.notes {
                println!("{:>8} ms  {note}", at_us / 1_000);
            }
            println!(
                "seed {seed} holds: {} events, {} operations, {:?}, trace {:016x}, {:.1} s simulated in {:.2} s",
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
    held: u64,
    simulated_ms: u64,
    events: u64,
    operations: u64,
    counts: Counts,
}

impl Sum {
    fn add(&mut self, report: &Report) {
        self.held += 1;
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
        "{} of {count} seeds held in {seconds:.0} s: {:.0} s simulated ({:.0} s per second), {} events, {} operations",
        sum.held,
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
    eprintln!("failed: {seeds:?}; looking for the smallest plan of the first");
    eprintln!("{}", shrink(first));
    ExitCode::FAILURE
}

/// Tells how far the run is: often on a terminal, seldom elsewhere.
fn progress(sum: &Mutex<Sum>, failures: &Mutex<Vec<Failure>>, count: u64, stop: &AtomicBool, started: Instant) {
    let terminal = std::io::stderr().is_terminal();
    let mut told = Instant::now();
    loop {
        thread::sleep(Duration::from_millis(100));
        let (held, failed) = (lock(sum).held, lock(failures).len() as u64);
        let over = held + failed >= count || stop.load(Ordering::Relaxed);
        let every = Duration::from_secs(if terminal { 1 } else { 30 });
        if told.elapsed() >= every && !over {
            told = Instant::now();
            let done = held + failed;
            let rate = done as f64 / started.elapsed().as_secs_f64();
            let left_s = (count - done) as f64 / rate.max(1e-9);
            let (begin, end) = if terminal { ("\r", "   ") } else { ("", "\n") };
            eprint!("{begin}{done} of {count} seeds, {failed} failed, {rate:.1} per second, {left_s:.0} s to go{end}");
            let _ = std::io::stderr().flush();
        }
        if over {
            return;
        }
    }
}

/// A thread that panicked while it added something up leaves sums that are still sums.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
