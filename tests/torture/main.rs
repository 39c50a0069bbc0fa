//! The long fault tests: all scenarios in rounds, or crashes at every failpoint. `cargo xtask torture` builds
//! a node with failpoints and runs this.

mod report;

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};
use flotilla_failpoints::Place;
use flotilla_tests::{ALL, crashes, named, scenario};

use report::Outcome;

/// Inject faults into clusters of real processes
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// Folder for the report
    #[arg(long, global = true, default_value = "target/torture")]
    report: PathBuf,
    /// Seed of the first round
    #[arg(long, global = true, default_value_t = 1)]
    seed: u64,
}

#[derive(Subcommand)]
enum Command {
    /// List all scenarios and failpoints
    List,
    /// Run scenarios, each round with the next seed
    Scenarios(Scenarios),
    /// Crash nodes at failpoints
    Failpoints(Failpoints),
}

#[derive(Args)]
struct Scenarios {
    /// Only this scenario; may be repeated
    #[arg(long)]
    scenario: Vec<String>,
    /// Number of rounds
    #[arg(long, default_value_t = 1)]
    rounds: u64,
}

#[derive(Args)]
struct Failpoints {
    /// Only this failpoint; may be repeated
    #[arg(long)]
    place: Vec<Place>,
    /// Crashes at each failpoint
    #[arg(long, default_value_t = 100)]
    times: u32,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = match &arguments.command {
        Command::List => {
            list();
            return ExitCode::SUCCESS;
        }
        Command::Scenarios(options) => scenarios(options, arguments.seed),
        Command::Failpoints(options) => Ok(failpoints(options, arguments.seed)),
    };
    let saved = outcome.and_then(|outcome| {
        println!("\n{}", outcome.table());
        let paths = outcome.save(&arguments.report)?;
        println!("The report is in {} and {}.", paths.0.display(), paths.1.display());
        Ok(outcome.all_passed())
    });
    match saved {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn list() {
    for scenario in ALL {
        println!("{:50} {:?}: {}", scenario.name, scenario.set, scenario.about);
    }
    println!();
    crashes::places().for_each(|place| println!("{place}"));
}

fn scenarios(options: &Scenarios, seed: u64) -> anyhow::Result<Outcome> {
    let mut chosen = Vec::new();
    for name in &options.scenario {
        chosen.push(named(name).ok_or_else(|| anyhow::anyhow!("no scenario `{name}`; `list` shows all"))?);
    }
    if chosen.is_empty() {
        chosen = ALL.iter().collect();
    }
    let mut outcome = Outcome::scenarios();
    for round in 0..options.rounds {
        for scenario in &chosen {
            let seed = seed + round;
            // A panic fails its scenario only.
            let run = std::panic::catch_unwind(|| scenario::run(scenario, seed));
            let run = run.unwrap_or_else(|_| Err(anyhow::anyhow!("it panicked")));
            println!("{}", outcome.add_scenario(scenario.name, seed, run));
        }
    }
    Ok(outcome)
}

fn failpoints(options: &Failpoints, seed: u64) -> Outcome {
    let mut outcome = Outcome::failpoints();
    let all: Vec<Place> = if options.place.is_empty() { crashes::places().collect() } else { options.place.clone() };
    for place in all {
        let row = crashes::crash_at(place, options.times, seed);
        println!("{}", outcome.add_row(row));
    }
    outcome
}
