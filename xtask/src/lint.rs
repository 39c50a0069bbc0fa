//! `lint`: formatting, lints, layers, licences and advisories. All are run; what failed is listed at the end.

use anyhow::{Result, bail};

use crate::{
    layers,
    workspace::{self, cargo},
};

pub(crate) fn run() -> Result<()> {
    let mut failed = Vec::new();
    let mut step = |name: &'static str, result: Result<()>| {
        if let Err(error) = result {
            eprintln!("{name}: {error:#}");
            failed.push(name);
        }
    };
    step("formatting", workspace::run(cargo().args(["fmt", "--all", "--check"])));
    let clippy = ["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"];
    step("clippy", workspace::run(cargo().args(clippy)));
    step("layers", layers::check_workspace());
    if workspace::is_installed("cargo", &["deny", "--version"]) {
        step("cargo-deny", workspace::run(cargo().args(["deny", "check"])));
    } else {
        println!("cargo-deny: SKIPPED, it is not installed (`cargo install --locked cargo-deny`, some minutes)");
    }
    if failed.is_empty() { Ok(()) } else { bail!("failed: {}", failed.join(", ")) }
}
