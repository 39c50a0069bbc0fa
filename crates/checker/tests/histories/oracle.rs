//! A brute-force checker that tries every order, with its own implementation of the operations. For a few
//! operations.

use std::collections::BTreeMap;

use bytes::Bytes;
use flotilla_checker::{Condition, Kind, Operation, Outcome, Write};

type Store = BTreeMap<Bytes, Bytes>;

/// Whether any order explains the history.
pub(crate) fn linearizable(history: &[Operation]) -> bool {
    let mut left: Vec<&Operation> = history.iter().filter(|operation| operation.outcome != Outcome::Refused).collect();
    explains(&mut left, &Store::new())
}

fn explains(left: &mut Vec<&Operation>, store: &Store) -> bool {
    let must = |operation: &&Operation| operation.outcome != Outcome::Unknown;
    let Some(first_return) =
        left.iter().copied().filter(|operation| must(operation)).filter_map(|operation| operation.ret).min()
    else {
        return true;
    };
    for at in 0..left.len() {
        if left[at].call > first_return {
            continue;
        }
        let mut after = store.clone();
        if execute(&mut after, left[at]) {
            let taken = left.remove(at);
            let found = explains(left, &after);
            left.insert(at, taken);
            if found {
                return true;
            }
        }
    }
    false
}

/// Executes an operation; `false` when the result differs from its outcome.
fn execute(store: &mut Store, operation: &Operation) -> bool {
    let (conditions, writes) = match &operation.kind {
        Kind::Get { key } => {
            let Outcome::Value(value) = &operation.outcome else { return true };
            return store.get(key) == value.as_ref();
        }
        Kind::Read { keys } => {
            let Outcome::Values(values) = &operation.outcome else { return true };
            return keys.iter().zip(values).all(|(key, value)| store.get(key) == value.as_ref());
        }
        Kind::Write { key, write } => (vec![], vec![(key.clone(), write.clone())]),
        Kind::CompareAndSet { key, expected, new } => {
            let write = new.clone().map_or(Write::Delete, Write::Put);
            (vec![(key.clone(), expected.clone())], vec![(key.clone(), write)])
        }
        Kind::Batch { conditions, writes } => (conditions.clone(), writes.clone()),
    };
    let hold = conditions.iter().all(|(key, condition)| match condition {
        Condition::Absent => !store.contains_key(key),
        Condition::Present => store.contains_key(key),
        Condition::Equals(value) => store.get(key) == Some(value),
    });
    if operation.outcome == Outcome::ConditionFailed {
        return !hold;
    }
    if !hold {
        return operation.outcome == Outcome::Unknown;
    }
    let before = store.clone();
    for (key, write) in &writes {
        let Some(outcome) = apply(store, key, write) else {
            *store = before;
            return operation.outcome == Outcome::Unknown;
        };
        if !matches!(operation.outcome, Outcome::Unknown | Outcome::Done) && operation.outcome != outcome {
            return false;
        }
    }
    true
}

fn apply(store: &mut Store, key: &Bytes, write: &Write) -> Option<Outcome> {
    Some(match write {
        Write::Put(value) => {
            store.insert(key.clone(), value.clone());
            Outcome::Done
        }
        Write::Delete => Outcome::Existed(store.remove(key).is_some()),
        Write::Add(delta) => {
            let text = store.get(key).map_or("0", |value| std::str::from_utf8(value).unwrap_or("not a number"));
            let sum = text.parse::<i64>().ok().filter(|number| number.to_string() == text)?.checked_add(*delta)?;
            store.insert(key.clone(), sum.to_string().into());
            Outcome::Number(sum)
        }
        Write::Append(bytes) => {
            let value = [store.get(key).map_or(&[][..], |value| value), bytes].concat();
            let length = value.len() as i64;
            store.insert(key.clone(), value.into());
            Outcome::Number(length)
        }
    })
}

/// Executes an operation and returns its outcome.
pub(crate) fn serve(store: &mut Store, kind: &Kind) -> Outcome {
    let outcome = match kind {
        Kind::Get { key } => return Outcome::Value(store.get(key).cloned()),
        Kind::Read { keys } => return Outcome::Values(keys.iter().map(|key| store.get(key).cloned()).collect()),
        Kind::Write { key, write } => {
            let before = store.clone();
            let outcome = apply(store, key, write);
            if outcome.is_none() {
                *store = before;
            }
            return outcome.unwrap_or(Outcome::Refused);
        }
        Kind::CompareAndSet { .. } | Kind::Batch { .. } => Outcome::Done,
    };
    let whole = Operation { client: 0, call: 0, ret: Some(0), kind: kind.clone(), outcome };
    let mut failed = whole.clone();
    failed.outcome = Outcome::ConditionFailed;
    if execute(&mut store.clone(), &failed) {
        return Outcome::ConditionFailed;
    }
    if execute(&mut store.clone(), &whole) {
        execute(store, &whole);
        return Outcome::Done;
    }
    Outcome::Refused
}
