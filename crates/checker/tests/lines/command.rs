//! The output and exit codes of `flotilla-check`.

use std::{fs, process::Command};

const PUT: &str = r#"{"client":1,"call":0,"ret":10,"op":"put","key":"x","value":"1","outcome":"done"}"#;

/// Exit code, and everything it printed.
fn judge(lines: &[&str], arguments: &[&str]) -> (Option<i32>, String) {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("history.jsonl");
    fs::write(&file, lines.join("\n")).expect("a file");
    let output = Command::new(env!("CARGO_BIN_EXE_flotilla-check")).args(arguments).arg(&file).output().expect("runs");
    (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

#[test]
fn the_exit_code_is_zero_only_for_a_linearizable_history() {
    let get = r#"{"client":2,"call":20,"ret":30,"op":"get","key":"x","outcome":{"value":"1"}}"#;
    let (code, said) = judge(&[PUT, get], &[]);
    assert_eq!((code, said.as_str()), (Some(0), "linearizable: 2 operations\n"));

    let stale = get.replace(r#""value":"1""#, r#""value":null"#);
    let (code, said) = judge(&[PUT, &stale], &[]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("├ put x \"1\" ┤") && said.contains("├ get x → nothing ┤"), "{said}");

    let (code, said) = judge(&[PUT, get], &["--steps", "0"]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.starts_with("unknown"), "{said}");

    let (code, said) = judge(&[PUT, "{}"], &[]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("line 2"), "{said}");
}
