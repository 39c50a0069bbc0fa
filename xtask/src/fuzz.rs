//! `fuzz`: the tests that attack parsers, for as long as one likes.
//!
//! The same properties as in CI, with seeds of their own round after round. Not cargo-fuzz: its coverage feedback wants a
//! nightly toolchain, and the pinned one is stable.

use anyhow::Result;

use crate::workspace::{self, cargo};

/// What to attack, and for how long.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// A crate (`kv`), or part of a test's name; everything when left out
    target: Option<String>,
    /// For how long each test goes on
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    seconds: u64,
    /// Run the one round that began with this seed, as a failure names it
    #[arg(long, conflicts_with = "seconds")]
    seed: Option<u64>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let packages = workspace::metadata()?.packages;
    let crates: Vec<_> = packages.iter().map(|package| package.name.as_str()).collect();
    let mut nextest = cargo();
    // The fuzz profile lets a test run for as long as it was told to.
    nextest.args(["nextest", "run", "--workspace", "--cargo-profile", "dev", "--profile", "fuzz", "--no-capture"]);
    nextest.args(["-E", &filter(arguments.target.as_deref(), &crates)]);
    match arguments.seed {
        Some(seed) => nextest.env("FLOTILLA_FUZZ_SEED", seed.to_string()),
        None => nextest.env("FLOTILLA_FUZZ_SECONDS", arguments.seconds.to_string()),
    };
    workspace::run(&mut nextest)
}

/// Attacks are known by their names; those on running nodes have no seed.
fn filter(target: Option<&str>, crates: &[&str]) -> String {
    let attacks = "test(hostile) & not package(flotilla-tests)";
    let Some(target) = target else { return attacks.to_owned() };
    let package = format!("flotilla-{target}");
    if crates.contains(&package.as_str()) {
        format!("{attacks} & package({package})")
    } else {
        format!("{attacks} & test({target})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_a_crate_or_part_of_a_name() {
        let filter = |target| filter(target, &["flotilla-kv", "flotilla-meta"]);
        assert_eq!(filter(None), "test(hostile) & not package(flotilla-tests)");
        assert_eq!(filter(Some("kv")), "test(hostile) & not package(flotilla-tests) & package(flotilla-kv)");
        assert_eq!(filter(Some("commands")), "test(hostile) & not package(flotilla-tests) & test(commands)");
    }
}
