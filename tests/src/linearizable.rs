//! Whether one order of all operations explains what every client was told.

use std::{fs::File, io::BufWriter, path::Path};

use anyhow::{bail, ensure};
use bytes::Bytes;
use flotilla_checker::{Budget, Condition, Kind, Operation, Outcome, Verdict, Write, check as judge, write_json_lines};

use crate::load::{Ask, Recorded, Told};

/// Steps: a minute or so.
const BUDGET: Budget = Budget { steps: 200_000_000, configurations: 4_000_000 };
/// The history as the checker reads it, in the folder of a run that failed.
const JUDGED: &str = "judged.jsonl";
/// The command that judges such a file.
const AGAIN: &str = "cargo run -p flotilla-checker --bin flotilla-check --";

/// # Errors
/// There is no such order, or it was not found within bounds.
pub fn check(history: &[Recorded]) -> anyhow::Result<()> {
    judged(&operations(history))
}

/// As [`check`], and a history that fails lies in `folder` afterwards as `flotilla-check` reads it, which the error says.
///
/// # Errors
/// As [`check`]. A history that cannot be saved changes nothing but what the error says.
pub fn check_and_keep(history: &[Recorded], folder: &Path) -> anyhow::Result<()> {
    let operations = operations(history);
    judged(&operations).map_err(|failure| {
        let path = folder.join(JUDGED);
        let saved = File::create(&path).and_then(|file| write_json_lines(&operations, BufWriter::new(file)));
        match saved {
            Ok(()) => failure.context(format!("to judge it again: {AGAIN} {}", path.display())),
            Err(error) => failure.context(format!("{} cannot be written: {error}", path.display())),
        }
    })
}

fn operations(history: &[Recorded]) -> Vec<Operation> {
    history.iter().map(operation).collect()
}

fn judged(operations: &[Operation]) -> anyhow::Result<()> {
    match judge(operations, &BUDGET)? {
        Verdict::Linearizable => Ok(()),
        Verdict::NotLinearizable(witness) => bail!("the history is not linearizable:\n{witness}"),
        Verdict::Unknown => {
            let unknown = operations.iter().filter(|one| one.outcome == Outcome::Unknown).count();
            ensure!(unknown > 0, "no order was found within bounds");
            bail!("no order was found within bounds; {unknown} outcomes are unknown")
        }
    }
}

fn operation(one: &Recorded) -> Operation {
    let outcome = match &one.told {
        Told::Unknown => Outcome::Unknown,
        Told::Refused => Outcome::Refused,
        Told::ConditionFailed => Outcome::ConditionFailed,
        Told::Done => Outcome::Done,
        Told::Existed(existed) => Outcome::Existed(*existed),
        Told::Value(value) => Outcome::Value(value.clone().map(Bytes::from)),
        Told::Number(number) => Outcome::Number(*number),
    };
    Operation { client: one.client, call: one.call, ret: one.ret, kind: kind(&one.ask), outcome }
}

fn kind(ask: &Ask) -> Kind {
    let bytes = |text: &String| Bytes::from(text.clone());
    match ask {
        Ask::Get { key } => Kind::get(bytes(key)),
        Ask::Put { key, value } => Kind::put(bytes(key), bytes(value)),
        Ask::PutIfAbsent { key, value } => Kind::compare_and_set(bytes(key), Condition::Absent, Some(bytes(value))),
        Ask::PutIfEqual { key, expected, value } => {
            Kind::compare_and_set(bytes(key), Condition::Equals(bytes(expected)), Some(bytes(value)))
        }
        Ask::Delete { key } => Kind::delete(bytes(key)),
        Ask::Add { key, delta } => Kind::add(bytes(key), *delta),
        Ask::Batch { keys, value } => {
            let writes = keys.iter().map(|key| (bytes(key), Write::Put(bytes(value)))).collect();
            Kind::Batch { conditions: Vec::new(), writes }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(call: u64, ret: u64, ask: Ask, told: Told) -> Recorded {
        Recorded { client: 1, call, ret: Some(ret), ask, told }
    }

    #[test]
    fn a_lost_write_is_seen_and_a_conditional_write_goes_by_the_value() {
        let (key, value) = ("k".to_owned(), "1".to_owned());
        let put = one(1, 2, Ask::PutIfAbsent { key: key.clone(), value: value.clone() }, Told::Done);
        let swap = Ask::PutIfEqual { key: key.clone(), expected: value.clone(), value: "2".to_owned() };
        let good = [put.clone(), one(3, 4, swap.clone(), Told::Done)];
        check(&good).expect("an order");
        let lost = [put, one(3, 4, Ask::Get { key }, Told::Value(None))];
        let said = check(&lost).expect_err("a lost write").to_string();
        assert!(said.contains("not linearizable"), "{said}");
        assert!(check(&[one(3, 4, swap, Told::Done)]).is_err(), "nothing was there");
    }

    #[test]
    fn a_history_that_fails_is_kept_and_its_command_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let lost = [
            one(1, 2, Ask::Put { key: "k".to_owned(), value: "1".to_owned() }, Told::Done),
            one(3, 4, Ask::Get { key: "k".to_owned() }, Told::Value(None)),
        ];
        let said = format!("{:#}", check_and_keep(&lost, folder.path()).expect_err("a lost write"));
        let path = folder.path().join(JUDGED);
        assert!(said.contains(&format!("flotilla-check -- {}", path.display())), "{said}");
        assert!(said.contains("not linearizable"), "{said}");
        let kept = std::io::BufReader::new(File::open(path).expect("kept"));
        assert_eq!(flotilla_checker::read_json_lines(kept).expect("its format"), operations(&lost));
    }
}
