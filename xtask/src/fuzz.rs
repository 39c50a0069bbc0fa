//! `fuzz`: runs the tests that feed hostile input to parsers, for a given time.
//!
//! These are the property tests of CI, repeated with new seeds. Not cargo-fuzz: its coverage feedback needs a
//! nightly toolchain, and the pinned one is stable.

use anyhow::Result;

use crate::workspace::{self, cargo};

/// Arguments of `fuzz`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// A crate (`kv`), or part of a test's name; all by default
    target: Option<String>,
    /// Duration of each test
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    seconds: u64,
    /// Repeat the round with this seed, as printed by a failure
    #[arg(long, conflicts_with = "seconds")]
    seed: Option<u64>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let packages = workspace::metadata()?.packages;
    let crates: Vec<_> = packages.iter().map(|package| package.name.as_str()).collect();
    let mut nextest = cargo();
    // The fuzz profile has no short timeout for slow tests.
    nextest.args(["nextest", "run", "--workspace", "--cargo-profile", "dev", "--profile", "fuzz", "--no-capture"]);
    nextest.args(["-E", &filter(arguments.target.as_deref(), &crates)]);
    match arguments.seed {
        Some(seed) => nextest.env("FLOTILLA_FUZZ_SEED", seed.to_string()),
        None => nextest.env("FLOTILLA_FUZZ_SECONDS", arguments.seconds.to_string()),
    };
    workspace::run(&mut nextest)
}

/// The nextest filter. Fuzz tests have `hostile` in their names; those of running nodes have no seed.
fn filter(target: Option<&str>, crates: &[&str]) -> String {
    let fuzz_tests = "test(hostile) & not package(flotilla-tests)";
    let Some(target) = target else { return fuzz_tests.to_owned() };
    let package = format!("flotilla-{target}");
    if crates.contains(&package.as_str()) {
        format!("{fuzz_tests} & package({package})")
    } else {
        format!("{fuzz_tests} & test({target})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_a_crate_or_part_of_a_test_name() {
        let filter = |target| filter(target, &["flotilla-kv", "flotilla-meta"]);
        assert_eq!(filter(None), "test(hostile) & not package(flotilla-tests)");
        assert_eq!(filter(Some("kv")), "test(hostile) & not package(flotilla-tests) & package(flotilla-kv)");
        assert_eq!(filter(Some("commands")), "test(hostile) & not package(flotilla-tests) & test(commands)");
    }
}
