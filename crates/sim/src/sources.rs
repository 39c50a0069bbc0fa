//! Which sources a failure belongs to: a seed means something for the sources it failed on only.

use std::process::Command;

/// The commit that is checked out, and whether anything was changed since. Asks git when it is called, which is right for who runs the
/// simulator from the sources.
pub(crate) fn describe() -> String {
    let folder = env!("CARGO_MANIFEST_DIR");
    let asked = Command::new("git").args(["-C", folder, "describe", "--always", "--dirty", "--abbrev=12"]).output();
    match asked {
        Ok(output) if output.status.success() => {
            let commit = String::from_utf8_lossy(&output.stdout);
            commit.trim().replace("-dirty", " and changes that are not committed")
        }
        _ => "an unknown commit".to_owned(),
    }
}
