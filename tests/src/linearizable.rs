//! Linearizability check: whether some order of all operations explains every response.

use std::{fs::File, io::BufWriter, path::Path};

use anyhow::{bail, ensure};
use bytes::Bytes;
use flotilla_checker::{
    Budget, Condition, Kind, Operation, Outcome, Verdict, Write, check as check_history, write_json_lines,
};

use crate::load::{RecordedOperation, Request, Response};

/// Limits of the search: about a minute.
const BUDGET: Budget = Budget { steps: 200_000_000, configurations: 4_000_000 };
/// File in the folder of a failed run that holds the history in the checker's format.
const CHECKED_FILE: &str = "checked.jsonl";
/// The command that checks such a file.
const CHECK_COMMAND: &str = "cargo run -p flotilla-checker --bin flotilla-check --";

/// Checks that a history is linearizable.
///
/// # Errors
/// There is no such order, or none was found within bounds.
pub fn check(history: &[RecordedOperation]) -> anyhow::Result<()> {
    check_operations(&operations(history))
}

/// Like [`check`]; saves a history that fails in `folder`, in the format of `flotilla-check`, and names it in
/// the error.
///
/// # Errors
/// As [`check`]. A failure to save the history is only mentioned in the error.
pub fn check_and_keep(history: &[RecordedOperation], folder: &Path) -> anyhow::Result<()> {
    let operations = operations(history);
    check_operations(&operations).map_err(|failure| {
        let path = folder.join(CHECKED_FILE);
        let saved = File::create(&path).and_then(|file| write_json_lines(&operations, BufWriter::new(file)));
        match saved {
            Ok(()) => failure.context(format!("to check it again: {CHECK_COMMAND} {}", path.display())),
            Err(error) => failure.context(format!("{} cannot be written: {error}", path.display())),
        }
    })
}

fn operations(history: &[RecordedOperation]) -> Vec<Operation> {
    history.iter().map(operation).collect()
}

fn check_operations(operations: &[Operation]) -> anyhow::Result<()> {
    match check_history(operations, &BUDGET)? {
        Verdict::Linearizable => Ok(()),
        Verdict::NotLinearizable(witness) => bail!("the history is not linearizable:\n{witness}"),
        Verdict::Unknown => {
            let unknown = operations.iter().filter(|one| one.outcome == Outcome::Unknown).count();
            ensure!(unknown > 0, "no linearization was found within bounds");
            bail!("no linearization was found within bounds; {unknown} outcomes are unknown")
        }
    }
}

fn operation(one: &RecordedOperation) -> Operation {
    let outcome = match &one.response {
        Response::Unknown => Outcome::Unknown,
        Response::Refused => Outcome::Refused,
        Response::ConditionFailed => Outcome::ConditionFailed,
        Response::Done => Outcome::Done,
        Response::Existed(existed) => Outcome::Existed(*existed),
        Response::Value(value) => Outcome::Value(value.clone().map(Bytes::from)),
        Response::Number(number) => Outcome::Number(*number),
    };
    Operation { client: one.client, call: one.call, ret: one.ret, kind: kind(&one.request), outcome }
}

fn kind(request: &Request) -> Kind {
    let bytes = |text: &String| Bytes::from(text.clone());
    match request {
        Request::Get { key } => Kind::get(bytes(key)),
        Request::Put { key, value } => Kind::put(bytes(key), bytes(value)),
        Request::PutIfAbsent { key, value } => Kind::compare_and_set(bytes(key), Condition::Absent, Some(bytes(value))),
        Request::PutIfEqual { key, expected, value } => {
            Kind::compare_and_set(bytes(key), Condition::Equals(bytes(expected)), Some(bytes(value)))
        }
        Request::Delete { key } => Kind::delete(bytes(key)),
        Request::Add { key, delta } => Kind::add(bytes(key), *delta),
        Request::Batch { keys, value } => {
            let writes = keys.iter().map(|key| (bytes(key), Write::Put(bytes(value)))).collect();
            Kind::Batch { conditions: Vec::new(), writes }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(call: u64, ret: u64, request: Request, response: Response) -> RecordedOperation {
        RecordedOperation { client: 1, call, ret: Some(ret), request, response }
    }

    #[test]
    fn a_lost_write_is_detected_and_a_conditional_write_compares_values() {
        let (key, value) = ("k".to_owned(), "1".to_owned());
        let put = one(1, 2, Request::PutIfAbsent { key: key.clone(), value: value.clone() }, Response::Done);
        let swap = Request::PutIfEqual { key: key.clone(), expected: value.clone(), value: "2".to_owned() };
        let good = [put.clone(), one(3, 4, swap.clone(), Response::Done)];
        check(&good).expect("an order");
        let lost = [put, one(3, 4, Request::Get { key }, Response::Value(None))];
        let error = check(&lost).expect_err("a lost write").to_string();
        assert!(error.contains("not linearizable"), "{error}");
        assert!(check(&[one(3, 4, swap, Response::Done)]).is_err(), "nothing was there");
    }

    #[test]
    fn a_failed_history_is_saved_and_the_error_names_the_command() {
        let folder = tempfile::tempdir().expect("a folder");
        let lost = [
            one(1, 2, Request::Put { key: "k".to_owned(), value: "1".to_owned() }, Response::Done),
            one(3, 4, Request::Get { key: "k".to_owned() }, Response::Value(None)),
        ];
        let error = format!("{:#}", check_and_keep(&lost, folder.path()).expect_err("a lost write"));
        let path = folder.path().join(CHECKED_FILE);
        assert!(error.contains(&format!("flotilla-check -- {}", path.display())), "{error}");
        assert!(error.contains("not linearizable"), "{error}");
        let kept = std::io::BufReader::new(File::open(path).expect("a saved history"));
        assert_eq!(flotilla_checker::read_json_lines(kept).expect("the checker's format"), operations(&lost));
    }
}
