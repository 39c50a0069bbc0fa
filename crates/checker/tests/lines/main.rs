//! Histories as JSON lines: they round-trip, invalid lines are rejected with their number, and nothing
//! panics.

mod command;
mod hostile;
mod strategy;

use std::io::{BufReader, Read};

use flotilla_checker::{LINE_BYTES_MAX, Operation, Problem, ReadError, read_json_lines, write_json_lines};
use proptest::prelude::*;

fn written(history: &[Operation]) -> Vec<u8> {
    let mut bytes = Vec::new();
    write_json_lines(history, &mut bytes).expect("writing to memory succeeds");
    bytes
}

proptest! {
    #[test]
    fn histories_round_trip(history in strategy::history()) {
        let bytes = written(&history);
        prop_assert_eq!(read_json_lines(bytes.as_slice()).expect("its own format"), history.clone());
        prop_assert_eq!(bytes.iter().filter(|byte| **byte == b'\n').count(), history.len());
    }
}

/// The problem with an operation on the second line.
fn problem(line: &str) -> Problem {
    match read_json_lines(format!("\n{line}\n").as_bytes()) {
        Err(ReadError::Operation { line: 2, problem }) => problem,
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_invalid_operation_is_rejected_with_its_problem() {
    let rest = r#""client":1,"call":5,"ret":6"#;
    let of = |operation: &str| problem(&format!("{{{rest},{operation}}}"));
    assert_eq!(of(r#""op":"get","outcome":{"value":null}"#), Problem::Missing("key"));
    assert_eq!(of(r#""op":"put","key":"x","outcome":"done""#), Problem::Missing("value"));
    assert_eq!(of(r#""op":"get","key":"x","value":"1","outcome":{"value":null}"#), Problem::Misplaced("value"));
    assert_eq!(of(r#""op":"put","key":"x","value":"1","delta":1,"outcome":"done""#), Problem::Misplaced("delta"));
    assert_eq!(of(r#""op":"delete","key":{"base64":"?"},"outcome":"done""#), Problem::NotBase64("key"));
    let batch = r#""op":"batch","conditions":[],"writes":[{"op":"get","key":"x"}],"outcome":"done""#;
    assert_eq!(of(batch), Problem::NotAWrite);
    assert_eq!(of(r#""op":"get","key":"x","outcome":"done""#), Problem::Outcome);
    let early = r#"{"client":1,"call":5,"ret":4,"op":"delete","key":"x","outcome":"done"}"#;
    assert_eq!(problem(early), Problem::ReturnsBeforeCall);
    let open = r#"{"client":1,"call":5,"ret":null,"op":"delete","key":"x","outcome":"done"}"#;
    assert_eq!(problem(open), Problem::NeverReturns);
}

#[test]
fn an_unknown_field_is_rejected_with_its_line() {
    let good = r#"{"client":1,"call":5,"ret":6,"op":"delete","key":"x","outcome":"done"}"#;
    assert_eq!(read_json_lines(format!("{good}\r\n\n{good}").as_bytes()).expect("two").len(), 2);
    let misspelt = good.replace("client", "Client");
    let read = read_json_lines(format!("{good}\n\n{misspelt}\n").as_bytes());
    assert!(matches!(read, Err(ReadError::Json { line: 3, .. })), "{read:?}");
}

#[test]
fn a_line_longer_than_its_limit_is_rejected() {
    let padded = |length: usize| {
        let good = r#"{"client":1,"call":5,"ret":6,"op":"delete","key":"x","outcome":"done"}"#;
        format!("{good}{}\n", " ".repeat(length - good.len()))
    };
    assert_eq!(read_json_lines(padded(LINE_BYTES_MAX).as_bytes()).expect("just long enough").len(), 1);
    let read = read_json_lines(padded(LINE_BYTES_MAX + 1).as_bytes());
    assert!(matches!(read, Err(ReadError::LineTooLong { line: 1 })), "{read:?}");
    let endless = BufReader::new(b"\n".chain(std::io::repeat(b' ')));
    assert!(matches!(read_json_lines(endless), Err(ReadError::LineTooLong { line: 2 })));
}

#[test]
fn every_line_of_the_readme_round_trips() {
    let readme = include_str!("../../README.md");
    let (_, rest) = readme.split_once("```json\n").expect("the lines begin");
    let (lines, _) = rest.split_once("```").expect("the lines end");
    let history = read_json_lines(lines.as_bytes()).expect("the format");
    assert_eq!(history.len(), 9);
    let again = String::from_utf8(written(&history)).expect("text");
    assert_eq!(again.replace("\"ret\":null,", ""), lines);
}
