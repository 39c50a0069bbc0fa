//! Checks that the history of all client operations is linearizable.

use flotilla_checker::{Budget, Condition, Kind, Operation, Outcome, Verdict, Write, check};

use crate::{
    workload::{ClientOp, OpResult, RecordedOp},
    world::World,
};

/// Checks the history of a run. Panics when it is not linearizable, or when the checker runs out of budget.
pub(crate) fn check_history(world: &World) {
    let history: Vec<_> = world.workload.history.iter().filter_map(operation).collect();
    match check(&history, &Budget::default()) {
        Ok(Verdict::Linearizable) => {}
        Ok(Verdict::NotLinearizable(witness)) => panic!("the history is not linearizable\n{witness}"),
        Ok(Verdict::Unknown) => panic!("the checker's budget was used up before it reached a verdict"),
        Err(error) => panic!("the history is invalid: {error}"),
    }
}

/// One operation in the checker's terms; `None` for one that it does not judge.
pub(crate) fn operation(recorded: &RecordedOp) -> Option<Operation> {
    let equals = |expected: &Option<String>| {
        expected.as_ref().map_or(Condition::Absent, |value| Condition::Equals(value.clone().into()))
    };
    let kind = match &recorded.op {
        ClientOp::Get { keys } if keys.len() == 1 => Kind::get(keys[0].clone()),
        ClientOp::Get { keys } => Kind::read(keys.iter().cloned()),
        ClientOp::Put { key, value } => Kind::put(key.clone(), value.clone()),
        ClientOp::PutIf { key, expected, value } => {
            Kind::compare_and_set(key.clone(), equals(expected), Some(value.clone().into()))
        }
        ClientOp::Add { key } => Kind::add(key.clone(), 1),
        ClientOp::Delete { key } => Kind::delete(key.clone()),
        ClientOp::Expiring { .. } => return None,
        ClientOp::Batch { keys, expected, value } => Kind::Batch {
            conditions: expected.iter().map(|expected| (keys[0].clone().into(), equals(expected))).collect(),
            writes: keys.iter().map(|key| (key.clone().into(), Write::Put(value.clone().into()))).collect(),
        },
    };
    let bytes = |value: &Option<String>| value.as_ref().map(|value| value.clone().into());
    let outcome = match &recorded.result {
        OpResult::Unknown => Outcome::Unknown,
        OpResult::Refused => Outcome::Refused,
        OpResult::ConditionFailed => Outcome::ConditionFailed,
        OpResult::Written => Outcome::Done,
        OpResult::Read(values) => match (&recorded.op, &values[..]) {
            (ClientOp::Get { keys }, [value]) if keys.len() == 1 => Outcome::Value(bytes(value)),
            _ => Outcome::Values(values.iter().map(bytes).collect()),
        },
        OpResult::Sum(number) => Outcome::Number(*number),
        OpResult::Deleted(existed) => Outcome::Existed(*existed),
    };
    Some(Operation { client: recorded.client as u64, call: recorded.call_us, ret: recorded.returned_us, kind, outcome })
}
