//! The encoding of outcomes. The version of a written record is omitted if it is the command's timestamp,
//! which it nearly always is, so that most outcomes are small enough to be remembered for duplicates.

use bytes::Bytes;
use flotilla_types::Timestamp;

use super::{DecodeError, seal, unseal, value};
use crate::{OperationResult, Outcome, Refusal, Value};

const MALFORMED: DecodeError = DecodeError::Malformed("outcome");

/// Encodes an outcome.
#[must_use]
pub fn encode_outcome(outcome: &Outcome) -> Bytes {
    seal(&match outcome {
        Outcome::Done { results, timestamp } => OutcomeMessage {
            timestamp: timestamp.0,
            results: results.iter().map(|result| result_message(result, *timestamp)).collect(),
            ..OutcomeMessage::default()
        },
        Outcome::Refused(refusal) => refusal_message(refusal),
    })
}

/// Decodes an outcome. Old values are slices of `bytes`.
///
/// # Errors
/// The bytes are not an outcome of a known version.
pub fn decode_outcome(bytes: Bytes) -> Result<Outcome, DecodeError> {
    let message: OutcomeMessage = unseal("outcome", bytes)?;
    if message.refusal != 0 {
        return refusal(&message).map(Outcome::Refused);
    }
    let timestamp = Timestamp(message.timestamp);
    let results = message.results.into_iter().map(|message| result(message, timestamp)).collect::<Result<_, _>>()?;
    Ok(Outcome::Done { results, timestamp })
}

#[derive(Clone, PartialEq, prost::Message)]
struct OutcomeMessage {
    #[prost(uint64, tag = "1")]
    timestamp: u64,
    #[prost(message, repeated, tag = "2")]
    results: Vec<ResultMessage>,
    /// 0 if the command was applied.
    #[prost(uint32, tag = "3")]
    refusal: u32,
    /// The limit, or the index of the condition.
    #[prost(uint64, tag = "4")]
    number: u64,
    #[prost(uint64, optional, tag = "5")]
    found: Option<u64>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ResultMessage {
    #[prost(uint32, tag = "1")]
    kind: u32,
    #[prost(uint64, optional, tag = "2")]
    version: Option<u64>,
    #[prost(bytes = "bytes", optional, tag = "3")]
    old: Option<Bytes>,
    #[prost(bool, tag = "4")]
    existed: bool,
    #[prost(sint64, tag = "5")]
    number: i64,
    #[prost(uint32, tag = "6")]
    old_content: u32,
    #[prost(bytes = "bytes", tag = "7")]
    old_media_type: Bytes,
}

impl ResultMessage {
    fn with_old(self, old: &Option<Value>) -> Self {
        let Some(old) = old else { return self };
        let (bytes, old_content, old_media_type) = value::fields(old);
        Self { old: Some(bytes), old_content, old_media_type, ..self }
    }
}

const WRITTEN: u32 = 0;
const DELETED: u32 = 1;
const ABSENT: u32 = 2;
const SKIPPED: u32 = 3;

fn result_message(result: &OperationResult, timestamp: Timestamp) -> ResultMessage {
    match result {
        OperationResult::Written { version, old, existed, number } => ResultMessage {
            kind: WRITTEN,
            version: (*version != timestamp).then_some(version.0),
            existed: *existed,
            number: *number,
            ..ResultMessage::default()
        }
        .with_old(old),
        OperationResult::Deleted { version, old } => {
            ResultMessage { kind: DELETED, version: Some(version.0), ..ResultMessage::default() }.with_old(old)
        }
        OperationResult::Absent => ResultMessage { kind: ABSENT, ..ResultMessage::default() },
        OperationResult::Skipped { version, old } => {
            ResultMessage { kind: SKIPPED, version: version.map(|version| version.0), ..ResultMessage::default() }
                .with_old(old)
        }
    }
}

fn result(message: ResultMessage, timestamp: Timestamp) -> Result<OperationResult, DecodeError> {
    let ResultMessage { kind, version, old, existed, number, old_content, old_media_type } = message;
    let version = version.map(Timestamp);
    let old = old.map(|old| value::value("outcome", (old, old_content, old_media_type))).transpose()?;
    match kind {
        WRITTEN => Ok(OperationResult::Written { version: version.unwrap_or(timestamp), old, existed, number }),
        DELETED => Ok(OperationResult::Deleted { version: version.ok_or(MALFORMED)?, old }),
        ABSENT => Ok(OperationResult::Absent),
        SKIPPED => Ok(OperationResult::Skipped { version, old }),
        _ => Err(MALFORMED),
    }
}

fn refusal_message(refusal: &Refusal) -> OutcomeMessage {
    let (kind, number, found) = match refusal {
        Refusal::ConditionFailed { operation, found } => (1, u64::from(*operation), found.map(|found| found.0)),
        Refusal::NotAnInteger => (2, 0, None),
        Refusal::Overflow => (3, 0, None),
        Refusal::TooLarge { limit_bytes } => (4, *limit_bytes, None),
        Refusal::WrongShard => (5, 0, None),
        Refusal::Expired { clock_ms } => (6, *clock_ms, None),
        Refusal::OutcomeForgotten => (7, 0, None),
        Refusal::SessionFull => (8, 0, None),
        Refusal::Malformed => (9, 0, None),
        Refusal::TooManyOperations { limit } => (10, u64::from(*limit), None),
        Refusal::NeedsContent => (11, 0, None),
        Refusal::UnnamedObjects => (12, 0, None),
    };
    OutcomeMessage { refusal: kind, number, found, ..OutcomeMessage::default() }
}

fn refusal(message: &OutcomeMessage) -> Result<Refusal, DecodeError> {
    let small = || u32::try_from(message.number).map_err(|_| MALFORMED);
    Ok(match message.refusal {
        1 => Refusal::ConditionFailed { operation: small()?, found: message.found.map(Timestamp) },
        2 => Refusal::NotAnInteger,
        3 => Refusal::Overflow,
        4 => Refusal::TooLarge { limit_bytes: message.number },
        5 => Refusal::WrongShard,
        6 => Refusal::Expired { clock_ms: message.number },
        7 => Refusal::OutcomeForgotten,
        8 => Refusal::SessionFull,
        9 => Refusal::Malformed,
        10 => Refusal::TooManyOperations { limit: small()? },
        11 => Refusal::NeedsContent,
        12 => Refusal::UnnamedObjects,
        _ => return Err(MALFORMED),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Content, testing};

    const NOW: Timestamp = Timestamp::from_millis(1_800_000_000_000);

    #[test]
    fn every_outcome_round_trips() {
        let old = Some(Value::from(Bytes::from_static(b"old")));
        let large = |chunks| Some(Value { content: Content::Large(testing::large(chunks)), ..Value::default() });
        let typed = Some(Value { media_type: Bytes::from_static(b"text/plain"), ..Value::default() });
        let results = vec![
            OperationResult::Deleted { version: NOW, old: large(9) },
            OperationResult::Skipped { version: None, old: large(200) },
            OperationResult::Written { version: NOW, old: typed, existed: true, number: 0 },
            OperationResult::Written { version: NOW, old: old.clone(), existed: true, number: -7 },
            OperationResult::Written { version: Timestamp(3), old: Some(Value::default()), existed: false, number: 0 },
            OperationResult::Deleted { version: NOW, old: None },
            OperationResult::Absent,
            OperationResult::Skipped { version: Some(NOW), old },
            OperationResult::Skipped { version: None, old: None },
        ];
        let refusals = [
            Refusal::ConditionFailed { operation: 3, found: Some(NOW) },
            Refusal::ConditionFailed { operation: 0, found: None },
            Refusal::NotAnInteger,
            Refusal::Overflow,
            Refusal::TooLarge { limit_bytes: u64::MAX },
            Refusal::TooManyOperations { limit: 7 },
            Refusal::NeedsContent,
            Refusal::UnnamedObjects,
            Refusal::WrongShard,
            Refusal::Expired { clock_ms: 1_700_000_000_000 },
            Refusal::OutcomeForgotten,
            Refusal::SessionFull,
            Refusal::Malformed,
        ];
        let outcomes = refusals.into_iter().map(Outcome::Refused).chain([Outcome::Done { results, timestamp: NOW }]);
        for outcome in outcomes {
            assert_eq!(decode_outcome(encode_outcome(&outcome)), Ok(outcome));
        }
    }

    #[test]
    fn outcomes_of_a_few_operations_are_small_enough_to_be_remembered() {
        let written = OperationResult::Written { version: NOW, old: None, existed: true, number: 0 };
        let outcome = Outcome::Done { results: vec![written; 8], timestamp: NOW };
        assert!(encode_outcome(&outcome).len() <= crate::OUTCOME_BYTES_MAX);
    }
}
