//! The long set: scenarios in rounds, or crashes at every place. `cargo xtask torture` builds a node with failpoints and runs this.

mod report;

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};
use flotilla_failpoints::Place;
use flotilla_tests::{ALL, crashes, named, scenario};

use report::Outcome;

/// Hurts clusters of real processes.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// Where the report goes
    #[arg(long, global = true, default_value = "target/torture")]
    report: PathBuf,
    /// The first seed
    #[arg(long, global = true, default_value_t = 1)]
    seed: u64,
}

#[derive(Subcommand)]
enum Command {
    /// Names all scenarios and places
    List,
    /// Runs scenarios, each round from another seed
    Scenarios(Scenarios),
    /// Crashes nodes at places
    Failpoints(Failpoints),
}

#[derive(Args)]
struct Scenarios {
    /// Only this one; may be repeated
    #[arg(long)]
    scenario: Vec<String>,
    /// How often
    #[arg(long, default_value_t = 1)]
    rounds: u64,
}

#[derive(Args)]
struct Failpoints {
    /// Only this one; may be repeated
    #[arg(long)]
    place: Vec<Place>,
    /// Crashes at each place
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
        Command::Scenarios(wanted) => scenarios(wanted, arguments.seed),
        Command::Failpoints(wanted) => Ok(failpoints(wanted, arguments.seed)),
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

fn scenarios(wanted: &Scenarios, seed: u64) -> anyhow::Result<Outcome> {
    let mut chosen = Vec::new();
    for name in &wanted.scenario {
        chosen.push(named(name).ok_or_else(|| anyhow::anyhow!("there is no scenario `{name}`; `list` names them"))?);
    }
    if chosen.is_empty() {
        chosen = ALL.iter().collect();
    }
    let mut outcome = Outcome::scenarios();
    for round in 0..wanted.rounds {
        for scenario in &chosen {
            let seed = seed + round;
            // A panic in a scenario is that scenario's failure.
            let run = std::panic::catch_unwind(|| scenario::run(scenario, seed));
            let run = run.unwrap_or_else(|_| Err(anyhow::anyhow!("it panicked")));
            println!("{}", outcome.add_scenario(scenario.name, seed, run));
        }
    }
    Ok(outcome)
}

fn failpoints(wanted: &Failpoints, seed: u64) -> Outcome {
    let mut outcome = Outcome::failpoints();
    let all: Vec<Place> = if wanted.place.is_empty() { crashes::places().collect() } else { wanted.place.clone() };
    for place in all {
        let row = crashes::crash_at(place, wanted.times, seed);
        println!("{}", outcome.add_row(row));
    }
    outcome
}
