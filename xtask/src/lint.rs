//! `lint`: formatting, lints, documents, layer rules, licences and advisories. Runs all steps and lists the
//! failed ones.

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
    let clippy = ["clippy", "--workspace", "--all-targets", "--features", "xtask/bench", "--", "-D", "warnings"];
    step("clippy", workspace::run(cargo().args(clippy)));
    let mut documents = cargo();
    step(
        "documents",
        workspace::run(documents.env("RUSTDOCFLAGS", "-D warnings").args(["doc", "--workspace", "--no-deps"])),
    );
    step("layers", layers::check_workspace());
    if workspace::is_installed("cargo", &["deny", "--version"]) {
        step("cargo-deny", workspace::run(cargo().args(["deny", "check"])));
    } else {
        println!("cargo-deny: SKIPPED, not installed (`cargo install --locked cargo-deny` takes some minutes)");
    }
    if failed.is_empty() { Ok(()) } else { bail!("failed: {}", failed.join(", ")) }
}
