//! `POST /v1/batch`: converts JSON to operations, and results to JSON.

use axum::{
    Json,
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use flotilla_api::{
    BATCH_BYTES_MAX, BATCH_OPERATIONS_MAX, BatchCondition, BatchOperation, BatchReply, BatchRequest, BatchResult,
    BatchVerb, Outcome, ProblemType, VALUE_BYTES_MAX,
};
use flotilla_kv::{Action, Condition, Expiry, Operation, OperationResult, Otherwise};

use super::{
    App, body,
    client::ClientConnection,
    deadline, guard,
    problem::Refusal,
    raw::{checked_key, invalid},
    records::{condition, expires_in, token},
};
use crate::{Right, StoreError};

pub(super) async fn apply(State(app): State<App>, request: Request) -> Result<Response, Refusal> {
    let deadline = deadline(request.headers())?;
    let grant = guard::grant_of(&request)?;
    let client = ClientConnection::of(&request)?;
    let body = body::read(&app, request, body::BATCH_BODY_BYTES_MAX, ProblemType::BatchTooLarge, deadline).await?;
    // The decoded batch is about as large as its text.
    let _decoded = client.account.charge(body.bytes.len());
    client.account.works();
    let request: BatchRequest = body::parse_json(&body.bytes)?;
    let collection = request.collection.clone();
    grant.check_collection(Right::Write, &collection)?;
    let (conditions, operations) = decode(request)?;
    let returns_number: Vec<_> = operations.iter().map(|operation| returns_number(&operation.action)).collect();
    let written = app.store.write(&collection, conditions, operations, deadline.into_std()).await?;
    let timestamp = written.timestamp;
    let results = written.results.into_iter().zip(returns_number);
    let results = results.map(|(result, returns_number)| to_json(result, returns_number)).collect();
    let token = token(timestamp);
    Ok(Json(BatchReply { timestamp, token, version: timestamp, results }).into_response())
}

type Decoded = (Vec<(Bytes, Condition)>, Vec<Operation>);

pub(super) fn decode(request: BatchRequest) -> Result<Decoded, Refusal> {
    let BatchRequest { conditions, operations, .. } = request;
    if operations.is_empty() {
        return Err(invalid("`operations` is empty"));
    }
    if conditions.len() > BATCH_OPERATIONS_MAX || operations.len() > BATCH_OPERATIONS_MAX {
        return Err(too_large());
    }
    let conditions = conditions.into_iter().map(decode_condition).collect::<Result<Vec<_>, _>>()?;
    let operations = operations.into_iter().map(decode_operation).collect::<Result<Vec<_>, _>>()?;
    let keys = conditions.iter().map(|(key, _)| key.len()).sum::<usize>();
    if keys + operations.iter().map(Operation::payload_bytes).sum::<usize>() > BATCH_BYTES_MAX {
        return Err(too_large());
    }
    Ok((conditions, operations))
}

fn decode_condition(condition: BatchCondition) -> Result<(Bytes, Condition), Refusal> {
    let key = checked_key(condition.encoding.decode(&condition.key)?)?;
    match (condition.version, condition.absent, condition.present) {
        (Some(version), false, false) => Ok((key, Condition::Version(version))),
        (None, true, false) => Ok((key, Condition::Absent)),
        (None, false, true) => Ok((key, Condition::Present)),
        _ => Err(invalid("a condition needs exactly one of `version`, `absent: true` and `present: true`")),
    }
}

fn decode_operation(operation: BatchOperation) -> Result<Operation, Refusal> {
    let BatchOperation { op, key, value, encoding, delta, ttl_ms, if_version, if_absent } = operation;
    let condition = condition(if_version.map(|version| version.0), if_absent)?;
    let value = value.map(|text| encoding.decode(&text)).transpose()?.map(Bytes::from);
    if value.as_ref().is_some_and(|value| value.len() > VALUE_BYTES_MAX) {
        return Err(StoreError::ValueTooLarge { limit_bytes: VALUE_BYTES_MAX as u64 }.into());
    }
    let expiry = ttl_ms.map_or(Ok(Expiry::Never), expires_in)?;
    let action = match (op, value, delta, ttl_ms.is_some()) {
        (BatchVerb::Put, Some(value), None, _) => Action::Put { value: value.into(), expiry, return_old: false },
        (BatchVerb::Delete, None, None, false) => Action::Delete { return_old: false },
        (BatchVerb::Add, None, Some(delta), false) => Action::Add { delta },
        (BatchVerb::Append, Some(bytes), None, false) => Action::Append { bytes },
        (BatchVerb::Expire, None, None, _) => Action::Expire { expiry },
        (BatchVerb::Put, ..) => return Err(invalid("`put` takes `value` and may take `ttl_ms`")),
        (BatchVerb::Delete, ..) => return Err(invalid("`delete` takes a key only")),
        (BatchVerb::Add, ..) => return Err(invalid("`add` takes `delta` only")),
        (BatchVerb::Append, ..) => return Err(invalid("`append` takes `value` only")),
        (BatchVerb::Expire, ..) => return Err(invalid("`expire` may take `ttl_ms` only")),
    };
    Ok(Operation { key: checked_key(encoding.decode(&key)?)?, condition, otherwise: Otherwise::Refuse, action })
}

fn too_large() -> Refusal {
    StoreError::BatchTooLarge { operations_max: BATCH_OPERATIONS_MAX, bytes_max: BATCH_BYTES_MAX }.into()
}

/// Whether the number in the result of an action means something to the client.
fn returns_number(action: &Action) -> bool {
    matches!(action, Action::Add { .. } | Action::Append { .. })
}

fn to_json(result: OperationResult, returns_number: bool) -> BatchResult {
    let plain = |outcome, version| BatchResult { outcome, version, existed: None, number: None };
    match result {
        OperationResult::Written { version, existed, number, .. } => BatchResult {
            existed: Some(existed),
            number: returns_number.then_some(number),
            ..plain(Outcome::Written, Some(version))
        },
        OperationResult::Deleted { version, .. } => plain(Outcome::Deleted, Some(version)),
        OperationResult::Absent => plain(Outcome::Absent, None),
        OperationResult::Skipped { version, .. } => plain(Outcome::Skipped, version),
    }
}

#[cfg(test)]
mod tests {
    use flotilla_types::Timestamp;

    use super::*;

    fn parse(operations: &str, conditions: &str) -> Result<Decoded, ProblemType> {
        let text = format!(r#"{{"operations":[{operations}],"conditions":[{conditions}]}}"#);
        body::parse_json(text.as_bytes()).and_then(decode).map_err(|refusal| refusal.kind())
    }

    #[test]
    fn each_verb_becomes_its_action() {
        let (conditions, operations) = parse(
            r#"{"op":"put","key":"AP8=","value":"/w==","encoding":"base64","if_absent":true},
               {"op":"add","key":"n","delta":-3},{"op":"append","key":"a","value":"x"},
               {"op":"delete","key":"d","if_version":5},{"op":"expire","key":"e"}"#,
            r#"{"key":"c","version":7},{"key":"p","present":true}"#,
        )
        .expect("a batch");
        assert_eq!(operations[0].key, Bytes::from_static(b"\0\xff"));
        assert_eq!(operations[0].condition, Some(Condition::Absent));
        assert!(matches!(&operations[0].action, Action::Put { value, .. } if *value == b"\xff".to_vec().into()));
        assert_eq!(operations[1].action, Action::Add { delta: -3 });
        assert_eq!(operations[3].condition, Some(Condition::Version(Timestamp(5))));
        assert_eq!(operations[4].action, Action::Expire { expiry: Expiry::Never });
        assert_eq!(conditions[0].1, Condition::Version(Timestamp(7)));
        assert_eq!(conditions[1].1, Condition::Present);
    }

    #[test]
    fn missing_and_superfluous_fields_are_refused() {
        for bad in [
            r#"{"op":"put","key":"k"}"#,
            r#"{"op":"put","key":"k","value":"v","delta":1}"#,
            r#"{"op":"delete","key":"k","value":"v"}"#,
            r#"{"op":"add","key":"k"}"#,
            r#"{"op":"append","key":"k","value":"v","ttl_ms":5}"#,
            r#"{"op":"put","key":"k","value":"v","if_version":1,"if_absent":true}"#,
            "",
        ] {
            assert_eq!(parse(bad, "").err(), Some(ProblemType::InvalidArgument), "{bad}");
        }
        assert_eq!(parse(r#"{"op":"delete","key":"k"}"#, r#"{"key":"k"}"#).err(), Some(ProblemType::InvalidArgument));
        assert_eq!(parse(r#"{"op":"delete","key":""}"#, "").err(), Some(ProblemType::KeySize));
        assert_eq!(parse(r#"{"op":"steal","key":"k"}"#, "").err(), Some(ProblemType::MalformedRequest));
    }

    #[test]
    fn a_batch_is_bounded_in_operations_and_in_bytes() {
        let operations = |count: usize| vec![r#"{"op":"delete","key":"k"}"#; count].join(",");
        assert!(parse(&operations(BATCH_OPERATIONS_MAX), "").is_ok());
        assert_eq!(parse(&operations(BATCH_OPERATIONS_MAX + 1), "").err(), Some(ProblemType::BatchTooLarge));
        let value = "x".repeat(3 << 20);
        let put = format!(r#"{{"op":"put","key":"k","value":"{value}"}}"#);
        assert_eq!(parse(&format!("{put},{put},{put}"), "").err(), Some(ProblemType::BatchTooLarge));
    }
}
