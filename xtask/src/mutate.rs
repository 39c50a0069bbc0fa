//! `mutate`: plants faults in a copy of the workspace, one at a time, and checks that tests detect them.
//!
//! A test that cannot fail proves nothing. Each planted fault is a plausible mistake; the table at the end
//! says which check caught it. The copy is in the target folder: the sources are never changed.

mod faults;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Instant,
};

use anyhow::{Context, Result, bail, ensure};

use crate::workspace::{self, cargo};
use faults::{Fault, Runner};

/// Files and folders that are copied.
const COPIED: &[&str] = &["Cargo.toml", "Cargo.lock", "rust-toolchain.toml", "README.md", "crates", "xtask", "tests"];

/// Arguments of `mutate`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Names of faults to plant; all by default
    names: Vec<String>,
    /// List the faults
    #[arg(long)]
    list: bool,
    /// Simulated seeds after which a fault counts as not caught
    #[arg(long, default_value_t = 200)]
    seeds: u64,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let named = |fault: &&Fault| arguments.names.is_empty() || arguments.names.iter().any(|name| name == fault.name);
    let chosen: Vec<_> = faults::all().filter(named).collect();
    ensure!(!chosen.is_empty(), "no fault with this name; `cargo xtask mutate --list` shows all");
    if arguments.list {
        for fault in chosen {
            println!("{:<34} {:<20} {}", fault.name, fault.runner.to_string(), fault.what);
        }
        return Ok(());
    }
    let copy = workspace::metadata()?.target_directory.join("mutate");
    let mut survivors = Vec::new();
    let mut table = Vec::new();
    for (at, fault) in chosen.iter().enumerate() {
        println!("── {} of {}: {}: {}", at + 1, chosen.len(), fault.name, fault.what);
        refresh(&copy)?;
        plant(&copy, fault)?;
        let started = Instant::now();
        let caught = run_tests(&copy, fault, &arguments.seeds.to_string())?;
        let by = caught.clone().unwrap_or_else(|| "NOT CAUGHT".to_owned());
        println!("   {by} ({} s)", started.elapsed().as_secs());
        if caught.is_none() {
            survivors.push(fault.name);
        }
        table.push((fault.name, by));
    }
    println!("\n{:<34} caught by", "planted fault");
    for (name, by) in table {
        println!("{name:<34} {by}");
    }
    if survivors.is_empty() { Ok(()) } else { bail!("not caught: {}", survivors.join(", ")) }
}

/// Makes the copy equal to the sources. Unchanged files keep their modification times, so that little is
/// rebuilt.
fn refresh(copy: &Path) -> Result<()> {
    fs::create_dir_all(copy).with_context(|| format!("cannot create {}", copy.display()))?;
    for name in COPIED {
        mirror(&workspace::root().join(name), &copy.join(name))?;
    }
    Ok(())
}

fn mirror(from: &Path, to: &Path) -> Result<()> {
    if from.is_dir() {
        fs::create_dir_all(to)?;
        for entry in fs::read_dir(from)? {
            let name = entry?.file_name();
            mirror(&from.join(&name), &to.join(&name))?;
        }
        for entry in fs::read_dir(to)? {
            let entry = entry?;
            if !from.join(entry.file_name()).exists() {
                let path = entry.path();
                if path.is_dir() {
                    fs::remove_dir_all(path)?
                } else {
                    fs::remove_file(path)?
                };
            }
        }
        return Ok(());
    }
    let bytes = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
    if fs::read(to).ok().as_ref() != Some(&bytes) {
        fs::write(to, bytes).with_context(|| format!("cannot write {}", to.display()))?;
    }
    Ok(())
}

fn plant(copy: &Path, fault: &Fault) -> Result<()> {
    for (path, text) in planted(copy, fault)? {
        fs::write(&path, text)?;
    }
    Ok(())
}

/// The files that the fault changes, and their new text.
fn planted(root: &Path, fault: &Fault) -> Result<Vec<(PathBuf, String)>> {
    let mut files = Vec::new();
    for (file, before, after) in [(fault.file, fault.before, fault.after)].into_iter().chain(fault.also) {
        let path: PathBuf = root.join(file);
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let found = text.matches(before).count();
        ensure!(found == 1, "`{}` no longer applies: its text occurs {found} times in {file}", fault.name);
        files.push((path, text.replace(before, after)));
    }
    Ok(files)
}

/// Runs the tests that should catch the fault. Returns what caught it, if anything did.
fn run_tests(copy: &Path, fault: &Fault, seeds: &str) -> Result<Option<String>> {
    let (build, test): (Vec<&str>, Vec<&str>) = match fault.runner {
        Runner::Simulator => {
            (vec!["build", "-p", "flotilla-sim"], vec!["run", "-p", "flotilla-sim", "--", "--plain", "--seeds", seeds])
        }
        Runner::Tests(package) => (vec!["test", "-p", package, "--no-run"], vec!["test", "-p", package]),
    };
    // A compile error does not count as a detection.
    let built = cargo_in(copy).args(&build).output()?;
    ensure!(built.status.success(), "it does not compile:\n{}", String::from_utf8_lossy(&built.stderr));
    let output = cargo_in(copy).args(&test).output()?;
    Ok((!output.status.success()).then(|| caught_by(&output)))
}

fn cargo_in(copy: &Path) -> Command {
    let mut command = cargo();
    command.arg("--quiet").current_dir(copy).env("CARGO_TARGET_DIR", copy.join("target"));
    command
}

/// The line of the output that names the failed check.
fn caught_by(output: &Output) -> String {
    let text = [&output.stderr[..], &output.stdout[..]].map(String::from_utf8_lossy).join("\n");
    let is_failure = |line: &&str| line.contains(" failed: ") || line.starts_with("test ") && line.ends_with("FAILED");
    let line =
        text.lines().find(is_failure).or_else(|| text.lines().find(|line| line.contains("panicked"))).unwrap_or("?");
    line.chars().take(160).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_applies_to_the_sources() {
        for fault in faults::all() {
            planted(workspace::root(), fault).unwrap();
        }
    }
}
