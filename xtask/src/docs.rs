//! Checks that ARCHITECTURE.md names only what exists.

use std::collections::BTreeSet;

use crate::workspace;

/// Every path of a source file or folder that the text names, with `{a,b}` written out.
fn paths(text: &str) -> BTreeSet<String> {
    let quoted = text.split('`').skip(1).step_by(2);
    let is_path = |word: &&str| word.contains("/src/") || word.contains("/tests/") || word.ends_with("/src");
    quoted.filter(is_path).flat_map(alternatives).collect()
}

fn alternatives(path: &str) -> Vec<String> {
    let Some((before, rest)) = path.split_once('{') else { return vec![path.to_owned()] };
    let Some((names, after)) = rest.split_once('}') else { return vec![path.to_owned()] };
    names.split(',').map(|name| format!("{before}{name}{after}")).collect()
}

#[test]
fn the_code_map_names_only_what_exists() {
    let text = std::fs::read_to_string(workspace::root().join("ARCHITECTURE.md")).unwrap();
    let paths = paths(&text);
    assert!(paths.len() > 50, "{paths:?}");
    let exists = |path: &str| ["", "crates/"].iter().any(|folder| workspace::root().join(folder).join(path).exists());
    // A folder of modules may also be one file.
    let missing: Vec<_> =
        paths.iter().filter(|path| !exists(path) && !exists(&format!("{}.rs", path.trim_end_matches('/')))).collect();
    assert!(missing.is_empty(), "{missing:?}");
}
