//! The encoding of queries and answers.

use bytes::Bytes;
use flotilla_types::{KeyRange, Timestamp};

use super::{DecodeError, seal, unseal, value};
use crate::{Answer, Query, Record};

/// Encodes a query.
#[must_use]
pub fn encode_query(query: &Query) -> Bytes {
    encode_query_as_of(query, None)
}

/// Encodes a query of a reader that has advanced the shard's clock, after [`Answer::ClockAdvanceNeeded`], to
/// this time (Unix milliseconds of hybrid time). Records that expire later count as live, unless the clock
/// has passed them: the read takes effect at that time, which is after it began.
#[must_use]
pub fn encode_query_as_of(query: &Query, as_of_ms: Option<u64>) -> Bytes {
    let of_range = |kind, range: &KeyRange| QueryMessage {
        kind,
        start: range.start.clone(),
        end: range.end.clone(),
        ..QueryMessage::default()
    };
    let message = match query {
        Query::Get { keys, values } => {
            QueryMessage { kind: GET, keys: keys.clone(), values: *values, ..QueryMessage::default() }
        }
        Query::Scan { range, items_max, bytes_max, values } => {
            QueryMessage { items_max: *items_max, bytes_max: *bytes_max, values: *values, ..of_range(SCAN, range) }
        }
        Query::Count { range } => of_range(COUNT, range),
    };
    seal(&QueryMessage { as_of_ms, ..message })
}

/// Decodes a query.
///
/// # Errors
/// The bytes are not a query of a known version.
pub fn decode_query(bytes: Bytes) -> Result<Query, DecodeError> {
    decode_query_as_of(bytes).map(|(query, _)| query)
}

/// As [`decode_query`], with the time to which the reader has advanced the clock.
pub(crate) fn decode_query_as_of(bytes: Bytes) -> Result<(Query, Option<u64>), DecodeError> {
    let message: QueryMessage = unseal("query", bytes)?;
    let as_of_ms = message.as_of_ms;
    let query = query_of(message)?;
    Ok((query, as_of_ms))
}

fn query_of(message: QueryMessage) -> Result<Query, DecodeError> {
    let range = KeyRange { start: message.start, end: message.end };
    match message.kind {
        GET => Ok(Query::Get { keys: message.keys, values: message.values }),
        SCAN => Ok(Query::Scan {
            range,
            items_max: message.items_max,
            bytes_max: message.bytes_max,
            values: message.values,
        }),
        COUNT => Ok(Query::Count { range }),
        _ => Err(DecodeError::Malformed("query")),
    }
}

/// Encodes an answer.
#[must_use]
pub fn encode_answer(answer: &Answer) -> Bytes {
    seal(&match answer {
        Answer::Records(records) => AnswerMessage {
            kind: RECORDS,
            records: records.iter().map(|record| record.as_ref().map_or_else(absent, record_message)).collect(),
            ..AnswerMessage::default()
        },
        Answer::Page { records, next } => AnswerMessage {
            kind: PAGE,
            records: records.iter().map(record_message).collect(),
            next: next.clone(),
            ..AnswerMessage::default()
        },
        Answer::Count { records, bytes, expiring, mean_expiry_ms } => AnswerMessage {
            kind: COUNTED,
            count: *records,
            bytes: *bytes,
            expiring: *expiring,
            mean_expiry_ms: *mean_expiry_ms,
            ..AnswerMessage::default()
        },
        Answer::ClockAdvanceNeeded => AnswerMessage { kind: TIME_NEEDED, ..AnswerMessage::default() },
        Answer::TooLarge => AnswerMessage { kind: TOO_LARGE, ..AnswerMessage::default() },
        Answer::WrongShard => AnswerMessage { kind: WRONG_SHARD, ..AnswerMessage::default() },
        Answer::Malformed => AnswerMessage { kind: MALFORMED, ..AnswerMessage::default() },
    })
}

/// Decodes an answer. Keys and values are slices of `bytes`.
///
/// # Errors
/// The bytes are not an answer of a known version.
pub fn decode_answer(bytes: Bytes) -> Result<Answer, DecodeError> {
    let message: AnswerMessage = unseal("answer", bytes)?;
    Ok(match message.kind {
        RECORDS => Answer::Records(message.records.into_iter().map(record).collect::<Result<_, _>>()?),
        PAGE => Answer::Page {
            records: message
                .records
                .into_iter()
                .map(|message| record(message)?.ok_or(DecodeError::Malformed("answer")))
                .collect::<Result<_, _>>()?,
            next: message.next,
        },
        COUNTED => Answer::Count {
            records: message.count,
            bytes: message.bytes,
            expiring: message.expiring,
            mean_expiry_ms: message.mean_expiry_ms,
        },
        TIME_NEEDED => Answer::ClockAdvanceNeeded,
        TOO_LARGE => Answer::TooLarge,
        WRONG_SHARD => Answer::WrongShard,
        MALFORMED => Answer::Malformed,
        _ => return Err(DecodeError::Malformed("answer")),
    })
}

const GET: u32 = 1;
const SCAN: u32 = 2;
const COUNT: u32 = 3;

#[derive(Clone, PartialEq, prost::Message)]
struct QueryMessage {
    #[prost(uint32, tag = "1")]
    kind: u32,
    #[prost(bytes = "bytes", repeated, tag = "2")]
    keys: Vec<Bytes>,
    #[prost(bool, tag = "3")]
    values: bool,
    #[prost(bytes = "bytes", tag = "4")]
    start: Bytes,
    #[prost(bytes = "bytes", tag = "5")]
    end: Bytes,
    #[prost(uint32, tag = "6")]
    items_max: u32,
    #[prost(uint32, tag = "7")]
    bytes_max: u32,
    #[prost(uint64, optional, tag = "8")]
    as_of_ms: Option<u64>,
}

const RECORDS: u32 = 1;
const PAGE: u32 = 2;
const COUNTED: u32 = 3;
const TIME_NEEDED: u32 = 4;
const WRONG_SHARD: u32 = 5;
const MALFORMED: u32 = 6;
const TOO_LARGE: u32 = 7;

#[derive(Clone, PartialEq, prost::Message)]
struct AnswerMessage {
    #[prost(uint32, tag = "1")]
    kind: u32,
    #[prost(message, repeated, tag = "2")]
    records: Vec<RecordMessage>,
    #[prost(bytes = "bytes", optional, tag = "3")]
    next: Option<Bytes>,
    #[prost(uint64, tag = "4")]
    count: u64,
    #[prost(uint64, tag = "5")]
    bytes: u64,
    #[prost(uint64, tag = "6")]
    expiring: u64,
    #[prost(uint64, tag = "7")]
    mean_expiry_ms: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RecordMessage {
    #[prost(bool, tag = "1")]
    absent: bool,
    #[prost(bytes = "bytes", tag = "2")]
    key: Bytes,
    #[prost(bytes = "bytes", tag = "3")]
    value: Bytes,
    #[prost(uint64, tag = "4")]
    version: u64,
    #[prost(uint64, optional, tag = "5")]
    expires_at_ms: Option<u64>,
    /// Omitted if it is the length of `value`.
    #[prost(uint64, optional, tag = "6")]
    value_bytes: Option<u64>,
    #[prost(uint32, tag = "7")]
    content: u32,
    #[prost(bytes = "bytes", tag = "8")]
    media_type: Bytes,
}

fn absent() -> RecordMessage {
    RecordMessage { absent: true, ..RecordMessage::default() }
}

fn record_message(record: &Record) -> RecordMessage {
    let (value, content, media_type) = value::fields(&record.value);
    RecordMessage {
        absent: false,
        key: record.key.clone(),
        value_bytes: (record.value_bytes != value.len() as u64).then_some(record.value_bytes),
        value,
        content,
        media_type,
        version: record.version.0,
        expires_at_ms: record.expires_at_ms,
    }
}

fn record(message: RecordMessage) -> Result<Option<Record>, DecodeError> {
    if message.absent {
        return Ok(None);
    }
    Ok(Some(Record {
        value_bytes: message.value_bytes.unwrap_or(message.value.len() as u64),
        key: message.key,
        value: value::value("answer", (message.value, message.content, message.media_type))?,
        version: Timestamp(message.version),
        expires_at_ms: message.expires_at_ms,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Content, Value, testing};

    fn bytes(text: &'static str) -> Bytes {
        Bytes::from_static(text.as_bytes())
    }

    #[test]
    fn every_query_round_trips() {
        let range = KeyRange { start: bytes("a"), end: bytes("b") };
        for query in [
            Query::Get { keys: vec![bytes("k"), Bytes::new()], values: true },
            Query::Get { keys: vec![], values: false },
            Query::Scan { range: range.clone(), items_max: 7, bytes_max: 9, values: true },
            Query::Count { range },
            Query::Count { range: KeyRange::all() },
        ] {
            assert_eq!(decode_query(encode_query(&query)), Ok(query));
        }
    }

    #[test]
    fn every_answer_round_trips() {
        let whole = Record {
            key: bytes("k"),
            value: bytes("v").into(),
            version: Timestamp(7),
            expires_at_ms: Some(0),
            value_bytes: 1,
        };
        let content = Content::Large(testing::large(200));
        let large = Value { content, media_type: bytes("image/png") };
        let large = Record { value_bytes: large.bytes(), value: large, ..whole.clone() };
        let without_value =
            Record { value: Value::default(), value_bytes: 1_000, expires_at_ms: None, ..whole.clone() };
        for answer in [
            Answer::Records(vec![Some(whole.clone()), None, Some(large), Some(without_value.clone())]),
            Answer::Page { records: vec![whole, without_value], next: Some(bytes("z")) },
            Answer::Page { records: vec![], next: None },
            Answer::Count { records: 3, bytes: 4, expiring: 2, mean_expiry_ms: 9 },
            Answer::ClockAdvanceNeeded,
            Answer::TooLarge,
            Answer::WrongShard,
            Answer::Malformed,
        ] {
            assert_eq!(decode_answer(encode_answer(&answer)), Ok(answer));
        }
    }

    #[test]
    fn a_page_cannot_hold_an_absent_record() {
        let page = AnswerMessage { kind: PAGE, records: vec![absent()], ..AnswerMessage::default() };
        assert_eq!(decode_answer(seal(&page)), Err(DecodeError::Malformed("answer")));
    }
}
