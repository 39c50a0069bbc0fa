//! Identifies the sources of a failing run: a seed reproduces a failure only on the same sources.

use std::process::Command;

/// The commit that is checked out, and whether it has uncommitted changes. Runs git when called: the
/// simulator is run from the sources.
pub(crate) fn describe() -> String {
    let folder = env!("CARGO_MANIFEST_DIR");
    let described = Command::new("git").args(["-C", folder, "describe", "--always", "--dirty", "--abbrev=12"]).output();
    match described {
        Ok(output) if output.status.success() => {
            let commit = String::from_utf8_lossy(&output.stdout);
            commit.trim().replace("-dirty", " with uncommitted changes")
        }
        _ => "an unknown commit".to_owned(),
    }
}
