//! The encoding of commands. An operation is one flat message, which keeps the overhead of a small put low.

use bytes::Bytes;
use flotilla_types::{SessionId, Timestamp};

use super::{DecodeError, EXTENDED_VERSION, FORMAT_VERSION, seal_at, unseal, unseal_message, value};
use crate::{Action, Command, Condition, Expiry, Operation, Otherwise};

const MALFORMED: DecodeError = DecodeError::Malformed("command");

/// Encodes a command.
#[must_use]
pub fn encode_command(command: &Command) -> Bytes {
    let version = if command.is_extended() { EXTENDED_VERSION } else { FORMAT_VERSION };
    let message = CommandMessage {
        session: command.session.get(),
        sequence: command.sequence,
        expires_at_ms: command.expires_at_ms,
        acked_below: command.acked_below,
        conditions: command.conditions.iter().map(condition_message).collect(),
        operations: command.operations.iter().map(operation_message).collect(),
    };
    seal_at(version, &message)
}

/// Decodes a command. Keys and values are slices of `bytes`.
///
/// # Errors
/// The bytes are not a command of a known version.
pub fn decode_command(bytes: Bytes) -> Result<Command, DecodeError> {
    let is_extended = bytes.first() == Some(&EXTENDED_VERSION);
    let message: CommandMessage =
        if is_extended { unseal_message("command", bytes)? } else { unseal("command", bytes)? };
    let command = Command {
        session: SessionId(message.session),
        sequence: message.sequence,
        expires_at_ms: message.expires_at_ms,
        acked_below: message.acked_below,
        conditions: message
            .conditions
            .into_iter()
            .map(|message| Ok((message.key, condition(message.kind, message.version)?.ok_or(MALFORMED)?)))
            .collect::<Result<_, _>>()?,
        operations: message.operations.into_iter().map(operation).collect::<Result<_, _>>()?,
    };
    if command.is_extended() == is_extended { Ok(command) } else { Err(MALFORMED) }
}

#[derive(Clone, PartialEq, prost::Message)]
struct CommandMessage {
    // Session ids are random, so eight fixed bytes are shorter than a varint.
    #[prost(fixed64, tag = "1")]
    session: u64,
    #[prost(uint64, tag = "2")]
    sequence: u64,
    #[prost(uint64, tag = "3")]
    expires_at_ms: u64,
    #[prost(uint64, tag = "4")]
    acked_below: u64,
    #[prost(message, repeated, tag = "5")]
    conditions: Vec<ConditionMessage>,
    #[prost(message, repeated, tag = "6")]
    operations: Vec<OperationMessage>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ConditionMessage {
    #[prost(bytes = "bytes", tag = "1")]
    key: Bytes,
    #[prost(uint32, tag = "2")]
    kind: u32,
    #[prost(uint64, tag = "3")]
    version: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct OperationMessage {
    #[prost(bytes = "bytes", tag = "1")]
    key: Bytes,
    #[prost(uint32, tag = "2")]
    action: u32,
    #[prost(bytes = "bytes", tag = "3")]
    value: Bytes,
    #[prost(sint64, tag = "4")]
    delta: i64,
    #[prost(uint32, tag = "5")]
    expiry: u32,
    #[prost(uint64, tag = "6")]
    expires_at_ms: u64,
    #[prost(bool, tag = "7")]
    return_old: bool,
    #[prost(uint32, tag = "8")]
    condition: u32,
    #[prost(uint64, tag = "9")]
    condition_version: u64,
    #[prost(uint32, tag = "10")]
    otherwise: u32,
    #[prost(uint32, tag = "11")]
    content: u32,
    #[prost(bytes = "bytes", tag = "12")]
    media_type: Bytes,
}

const ABSENT: u32 = 1;
const PRESENT: u32 = 2;
const VERSION: u32 = 3;

/// Kind and version on the wire; kind 0 means no condition.
fn condition_parts(condition: Condition) -> (u32, u64) {
    match condition {
        Condition::Absent => (ABSENT, 0),
        Condition::Present => (PRESENT, 0),
        Condition::Version(version) => (VERSION, version.0),
    }
}

fn condition(kind: u32, version: u64) -> Result<Option<Condition>, DecodeError> {
    match kind {
        0 => Ok(None),
        ABSENT => Ok(Some(Condition::Absent)),
        PRESENT => Ok(Some(Condition::Present)),
        VERSION => Ok(Some(Condition::Version(Timestamp(version)))),
        _ => Err(MALFORMED),
    }
}

fn condition_message((key, condition): &(Bytes, Condition)) -> ConditionMessage {
    let (kind, version) = condition_parts(*condition);
    ConditionMessage { key: key.clone(), kind, version }
}

const NEVER: u32 = 0;
const KEEP: u32 = 1;
const AT: u32 = 2;

fn expiry(kind: u32, at_ms: u64) -> Result<Expiry, DecodeError> {
    match kind {
        NEVER => Ok(Expiry::Never),
        KEEP => Ok(Expiry::Keep),
        AT => Ok(Expiry::At(at_ms)),
        _ => Err(MALFORMED),
    }
}

const PUT: u32 = 1;
const DELETE: u32 = 2;
const ADD: u32 = 3;
const APPEND: u32 = 4;
const EXPIRE: u32 = 5;

fn operation_message(operation: &Operation) -> OperationMessage {
    let mut message = OperationMessage { key: operation.key.clone(), ..OperationMessage::default() };
    let expiry_parts = |expiry: Expiry| match expiry {
        Expiry::Never => (NEVER, 0),
        Expiry::Keep => (KEEP, 0),
        Expiry::At(at_ms) => (AT, at_ms),
    };
    match &operation.action {
        Action::Put { value, expiry, return_old } => {
            message.action = PUT;
            (message.value, message.content, message.media_type) = value::fields(value);
            (message.expiry, message.expires_at_ms) = expiry_parts(*expiry);
            message.return_old = *return_old;
        }
        Action::Delete { return_old } => {
            message.action = DELETE;
            message.return_old = *return_old;
        }
        Action::Add { delta } => {
            message.action = ADD;
            message.delta = *delta;
        }
        Action::Append { bytes } => {
            message.action = APPEND;
            message.value = bytes.clone();
        }
        Action::Expire { expiry } => {
            message.action = EXPIRE;
            (message.expiry, message.expires_at_ms) = expiry_parts(*expiry);
        }
    }
    if let Some(condition) = operation.condition {
        (message.condition, message.condition_version) = condition_parts(condition);
    }
    message.otherwise = match operation.otherwise {
        Otherwise::Refuse => 0,
        Otherwise::Skip => 1,
    };
    message
}

fn operation(message: OperationMessage) -> Result<Operation, DecodeError> {
    let expiry = expiry(message.expiry, message.expires_at_ms)?;
    Ok(Operation {
        key: message.key,
        condition: condition(message.condition, message.condition_version)?,
        otherwise: match message.otherwise {
            0 => Otherwise::Refuse,
            1 => Otherwise::Skip,
            _ => return Err(MALFORMED),
        },
        action: match message.action {
            PUT => {
                let value = value::value("command", (message.value, message.content, message.media_type))?;
                Action::Put { value, expiry, return_old: message.return_old }
            }
            DELETE => Action::Delete { return_old: message.return_old },
            ADD => Action::Add { delta: message.delta },
            APPEND => Action::Append { bytes: message.value },
            EXPIRE => Action::Expire { expiry },
            _ => return Err(MALFORMED),
        },
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{codec::seal, testing};

    proptest! {
        #[test]
        fn commands_round_trip(command in testing::command()) {
            prop_assert_eq!(decode_command(encode_command(&command)), Ok(command));
        }
    }

    #[test]
    fn values_are_slices_of_the_input() {
        let bytes = encode_command(&testing::put("key", "a value that must not be copied"));
        let range = bytes.as_ptr_range();
        let command = decode_command(bytes.clone()).unwrap();
        let Action::Put { value, .. } = &command.operations[0].action else { panic!("not a put") };
        let value = value.inline().unwrap();
        assert!(range.contains(&value.as_ptr()) && range.contains(&command.operations[0].key.as_ptr()));
    }

    #[test]
    fn a_small_put_has_little_overhead() {
        let mut command = testing::put("key", "value");
        command.session = SessionId(u64::MAX);
        command.sequence = 1_000_000;
        command.expires_at_ms = 1_800_000_000_000;
        command.acked_below = 999_900;
        let payload = command.operations[0].key.len() + "value".len();
        assert!(encode_command(&command).len() - payload <= 36, "{}", encode_command(&command).len() - payload);
    }

    #[test]
    fn unknown_kinds_are_refused() {
        let operation = OperationMessage { action: 9, ..OperationMessage::default() };
        let command = CommandMessage { operations: vec![operation], ..CommandMessage::default() };
        assert_eq!(decode_command(seal(&command)), Err(MALFORMED));
        let condition = ConditionMessage { kind: 0, ..ConditionMessage::default() };
        let command = CommandMessage { conditions: vec![condition], ..CommandMessage::default() };
        assert_eq!(decode_command(seal(&command)), Err(MALFORMED));
    }
}
