//! Whether what clients were told could come from one store that does one thing at a time.

use flotilla_checker::{Budget, Condition, Kind, Operation, Outcome, Verdict, Write, check};

use crate::{
    workload::{Did, Fate, Recorded},
    world::World,
};

/// Judges the history of a run. Panics when it is not linearizable, or when that cannot be told.
pub(crate) fn judge(world: &World) {
    let history: Vec<_> = world.workload.history.iter().map(operation).collect();
    match check(&history, &Budget::default()) {
        Ok(Verdict::Linearizable) => {}
        Ok(Verdict::NotLinearizable(witness)) => panic!("the history is not linearizable\n{witness}"),
        Ok(Verdict::Unknown) => panic!("the checker's budget does not suffice for this history"),
        Err(error) => panic!("the history makes no sense: {error}"),
    }
}

/// One operation in the checker's terms.
pub(crate) fn operation(recorded: &Recorded) -> Operation {
    let equals = |expected: &Option<String>| {
        expected.as_ref().map_or(Condition::Absent, |value| Condition::Equals(value.clone().into()))
    };
    let kind = match &recorded.did {
        Did::Get { keys } if keys.len() == 1 => Kind::get(keys[0].clone()),
        Did::Get { keys } => Kind::read(keys.iter().cloned()),
        Did::Put { key, value } => Kind::put(key.clone(), value.clone()),
        Did::PutIf { key, expected, value } => {
            Kind::compare_and_set(key.clone(), equals(expected), Some(value.clone().into()))
        }
        Did::Add { key } => Kind::add(key.clone(), 1),
        Did::Delete { key } => Kind::delete(key.clone()),
        Did::Batch { keys, expected, value } => Kind::Batch {
            conditions: expected.iter().map(|expected| (keys[0].clone().into(), equals(expected))).collect(),
            writes: keys.iter().map(|key| (key.clone().into(), Write::Put(value.clone().into()))).collect(),
        },
    };
    let bytes = |value: &Option<String>| value.as_ref().map(|value| value.clone().into());
    let outcome = match &recorded.fate {
        // A read that was not answered tells nothing.
        Fate::Unknown => Outcome::Unknown,
        Fate::Refused => Outcome::Refused,
        Fate::Failed => Outcome::ConditionFailed,
        Fate::Written => Outcome::Done,
        Fate::Read(values) => match (&recorded.did, &values[..]) {
            (Did::Get { keys }, [value]) if keys.len() == 1 => Outcome::Value(bytes(value)),
            _ => Outcome::Values(values.iter().map(bytes).collect()),
        },
        Fate::Sum(number) => Outcome::Number(*number),
        Fate::Deleted(existed) => Outcome::Existed(*existed),
    };
    Operation { client: recorded.client as u64, call: recorded.call_us, ret: recorded.returned_us, kind, outcome }
}
