//! One line: a flat record whose fields depend on the operation, and its conversion to and from an
//! [`Operation`].

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize};

use crate::{
    json::Problem,
    operation::{Condition, Kind, Operation, Outcome, Write},
};

/// An operation as stored in a file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Line {
    client: u64,
    call: u64,
    #[serde(default)]
    ret: Option<u64>,
    op: Name,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<Text>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    keys: Option<Vec<Text>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    value: Option<Text>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    delta: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expected: Option<Expected>,
    /// `null` deletes.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "nullable")]
    new: Option<Option<Text>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    conditions: Option<Vec<ConditionLine>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    writes: Option<Vec<WriteLine>>,
    outcome: OutcomeLine,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Name {
    Get,
    Read,
    Put,
    Delete,
    Add,
    Append,
    CompareAndSet,
    Batch,
}

/// Bytes: plain text when they are UTF-8.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Text {
    Plain(String),
    Encoded(Base64),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Base64 {
    base64: String,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Expected {
    Absent,
    Present,
    Equals(Text),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConditionLine {
    key: Text,
    expected: Expected,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WriteLine {
    op: Name,
    key: Text,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    value: Option<Text>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    delta: Option<i64>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum OutcomeLine {
    Unknown,
    Refused,
    ConditionFailed,
    Done,
    Existed(bool),
    Value(Option<Text>),
    Values(Vec<Option<Text>>),
    Number(i64),
}

/// Distinguishes a field that is `null` from one that is absent.
fn nullable<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<Text>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

impl Text {
    fn new(bytes: &Bytes) -> Self {
        match std::str::from_utf8(bytes) {
            Ok(text) => Self::Plain(text.to_owned()),
            Err(_) => Self::Encoded(Base64 { base64: STANDARD.encode(bytes) }),
        }
    }

    fn bytes(self, field: &'static str) -> Result<Bytes, Problem> {
        match self {
            Self::Plain(text) => Ok(text.into()),
            Self::Encoded(text) => Ok(STANDARD.decode(text.base64).map_err(|_| Problem::NotBase64(field))?.into()),
        }
    }
}

/// Takes a required field.
fn take<T>(field: &mut Option<T>, name: &'static str) -> Result<T, Problem> {
    field.take().ok_or(Problem::Missing(name))
}

impl Line {
    pub(crate) fn into_operation(mut self) -> Result<Operation, Problem> {
        let kind = self.take_kind()?;
        let left_over = [
            (self.key.is_some(), "key"),
            (self.keys.is_some(), "keys"),
            (self.value.is_some(), "value"),
            (self.delta.is_some(), "delta"),
            (self.expected.is_some(), "expected"),
            (self.new.is_some(), "new"),
            (self.conditions.is_some(), "conditions"),
            (self.writes.is_some(), "writes"),
        ];
        if let Some((_, field)) = left_over.into_iter().find(|(is_there, _)| *is_there) {
            return Err(Problem::Misplaced(field));
        }
        let outcome = self.outcome.into_outcome()?;
        if !kind.allows(&outcome) {
            return Err(Problem::Outcome);
        }
        if self.ret.is_some_and(|ret| ret < self.call) {
            return Err(Problem::ReturnsBeforeCall);
        }
        if self.ret.is_none() && outcome != Outcome::Unknown {
            return Err(Problem::NeverReturns);
        }
        Ok(Operation { client: self.client, call: self.call, ret: self.ret, kind, outcome })
    }

    fn take_kind(&mut self) -> Result<Kind, Problem> {
        Ok(match self.op {
            Name::Get => Kind::Get { key: self.take_key()? },
            Name::Read => {
                let keys = take(&mut self.keys, "keys")?;
                Kind::Read { keys: keys.into_iter().map(|key| key.bytes("keys")).collect::<Result<_, _>>()? }
            }
            Name::CompareAndSet => Kind::CompareAndSet {
                key: self.take_key()?,
                expected: take(&mut self.expected, "expected")?.into_condition()?,
                new: take(&mut self.new, "new")?.map(|new| new.bytes("new")).transpose()?,
            },
            Name::Batch => {
                let conditions = take(&mut self.conditions, "conditions")?.into_iter();
                let writes = take(&mut self.writes, "writes")?.into_iter();
                Kind::Batch {
                    conditions: conditions.map(ConditionLine::into_condition).collect::<Result<_, _>>()?,
                    writes: writes.map(WriteLine::into_write).collect::<Result<_, _>>()?,
                }
            }
            op @ (Name::Put | Name::Delete | Name::Add | Name::Append) => {
                let key = take(&mut self.key, "key")?;
                let (key, write) =
                    WriteLine { op, key, value: self.value.take(), delta: self.delta.take() }.into_write()?;
                Kind::Write { key, write }
            }
        })
    }

    fn take_key(&mut self) -> Result<Bytes, Problem> {
        take(&mut self.key, "key")?.bytes("key")
    }

    pub(crate) fn from_operation(operation: &Operation) -> Self {
        let mut line = Self {
            client: operation.client,
            call: operation.call,
            ret: operation.ret,
            op: Name::Get,
            key: None,
            keys: None,
            value: None,
            delta: None,
            expected: None,
            new: None,
            conditions: None,
            writes: None,
            outcome: OutcomeLine::new(&operation.outcome),
        };
        match &operation.kind {
            Kind::Get { key } => line.key = Some(Text::new(key)),
            Kind::Read { keys } => {
                line.op = Name::Read;
                line.keys = Some(keys.iter().map(Text::new).collect());
            }
            Kind::Write { key, write } => {
                let write = WriteLine::new(key, write);
                (line.op, line.key, line.value, line.delta) = (write.op, Some(write.key), write.value, write.delta);
            }
            Kind::CompareAndSet { key, expected, new } => {
                line.op = Name::CompareAndSet;
                line.key = Some(Text::new(key));
                line.expected = Some(Expected::new(expected));
                line.new = Some(new.as_ref().map(Text::new));
            }
            Kind::Batch { conditions, writes } => {
                line.op = Name::Batch;
                let condition = |(key, condition): &(Bytes, Condition)| ConditionLine {
                    key: Text::new(key),
                    expected: Expected::new(condition),
                };
                line.conditions = Some(conditions.iter().map(condition).collect());
                line.writes = Some(writes.iter().map(|(key, write)| WriteLine::new(key, write)).collect());
            }
        }
        line
    }
}

impl ConditionLine {
    fn into_condition(self) -> Result<(Bytes, Condition), Problem> {
        Ok((self.key.bytes("key")?, self.expected.into_condition()?))
    }
}

impl Expected {
    fn new(condition: &Condition) -> Self {
        match condition {
            Condition::Absent => Self::Absent,
            Condition::Present => Self::Present,
            Condition::Equals(value) => Self::Equals(Text::new(value)),
        }
    }

    fn into_condition(self) -> Result<Condition, Problem> {
        Ok(match self {
            Self::Absent => Condition::Absent,
            Self::Present => Condition::Present,
            Self::Equals(value) => Condition::Equals(value.bytes("expected")?),
        })
    }
}

impl WriteLine {
    fn new(key: &Bytes, write: &Write) -> Self {
        let (op, value, delta) = match write {
            Write::Put(value) => (Name::Put, Some(Text::new(value)), None),
            Write::Delete => (Name::Delete, None, None),
            Write::Add(delta) => (Name::Add, None, Some(*delta)),
            Write::Append(bytes) => (Name::Append, Some(Text::new(bytes)), None),
        };
        Self { op, key: Text::new(key), value, delta }
    }

    fn into_write(mut self) -> Result<(Bytes, Write), Problem> {
        let write = match self.op {
            Name::Put => Write::Put(take(&mut self.value, "value")?.bytes("value")?),
            Name::Append => Write::Append(take(&mut self.value, "value")?.bytes("value")?),
            Name::Add => Write::Add(take(&mut self.delta, "delta")?),
            Name::Delete => Write::Delete,
            Name::Get | Name::Read | Name::CompareAndSet | Name::Batch => return Err(Problem::NotAWrite),
        };
        match (self.value, self.delta) {
            (Some(_), _) => Err(Problem::Misplaced("value")),
            (_, Some(_)) => Err(Problem::Misplaced("delta")),
            (None, None) => Ok((self.key.bytes("key")?, write)),
        }
    }
}

impl OutcomeLine {
    fn new(outcome: &Outcome) -> Self {
        match outcome {
            Outcome::Unknown => Self::Unknown,
            Outcome::Refused => Self::Refused,
            Outcome::ConditionFailed => Self::ConditionFailed,
            Outcome::Done => Self::Done,
            Outcome::Existed(existed) => Self::Existed(*existed),
            Outcome::Value(value) => Self::Value(value.as_ref().map(Text::new)),
            Outcome::Values(values) => Self::Values(values.iter().map(|value| value.as_ref().map(Text::new)).collect()),
            Outcome::Number(number) => Self::Number(*number),
        }
    }

    fn into_outcome(self) -> Result<Outcome, Problem> {
        let bytes = |value: Option<Text>| value.map(|text| text.bytes("outcome")).transpose();
        Ok(match self {
            Self::Unknown => Outcome::Unknown,
            Self::Refused => Outcome::Refused,
            Self::ConditionFailed => Outcome::ConditionFailed,
            Self::Done => Outcome::Done,
            Self::Existed(existed) => Outcome::Existed(existed),
            Self::Value(value) => Outcome::Value(bytes(value)?),
            Self::Values(values) => Outcome::Values(values.into_iter().map(bytes).collect::<Result<_, _>>()?),
            Self::Number(number) => Outcome::Number(number),
        })
    }
}
