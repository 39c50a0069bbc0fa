//! Whether one order of all operations explains what every client was told.

use anyhow::{bail, ensure};
use bytes::Bytes;
use flotilla_checker::{Budget, Condition, Kind, Operation, Outcome, Verdict, Write, check as judge};

use crate::load::{Ask, Recorded, Told};

/// Steps: a minute or so.
const BUDGET: Budget = Budget { steps: 200_000_000, configurations: 4_000_000 };

/// # Errors
/// There is no such order, or it was not found within bounds.
pub fn check(history: &[Recorded]) -> anyhow::Result<()> {
    let operations: Vec<Operation> = history.iter().map(operation).collect();
    match judge(&operations, &BUDGET)? {
        Verdict::Linearizable => Ok(()),
        Verdict::NotLinearizable(witness) => bail!("the history is not linearizable:\n{witness}"),
        Verdict::Unknown => {
            let unknown = history.iter().filter(|one| one.told == Told::Unknown).count();
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
}
