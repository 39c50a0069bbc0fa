//! Displays operations as short text: `put x "1"`, `get x → nothing`, `add n 2 → 5`.

use std::fmt::{self, Display, Formatter};

use bytes::Bytes;

use crate::operation::{Condition, Kind, Operation, Outcome, Write};

/// Maximum characters shown of a key or a value.
const TEXT_MAX: usize = 24;

impl Display for Operation {
    /// The operation and its outcome, without client and times.
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match (&self.kind, &self.outcome) {
            (kind, Outcome::Done) => kind.fmt(f),
            (Kind::Read { keys }, Outcome::Values(values)) => {
                f.write_str("read")?;
                for (at, (key, value)) in keys.iter().zip(values).enumerate() {
                    let comma = if at > 0 { "," } else { "" };
                    write!(f, "{comma} {} → {}", name(key), found(value.as_ref()))?;
                }
                Ok(())
            }
            (kind, outcome) => write!(f, "{kind} → {outcome}"),
        }
    }
}

impl Display for Kind {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Get { key } => write!(f, "get {}", name(key)),
            Self::Read { keys } => {
                f.write_str("read")?;
                keys.iter().try_for_each(|key| write!(f, " {}", name(key)))
            }
            Self::Write { key, write } => show_write(f, key, write),
            Self::CompareAndSet { key, expected, new } => {
                f.write_str("if ")?;
                show_condition(f, key, expected)?;
                match new {
                    Some(new) => write!(f, ": put {}", quoted(new)),
                    None => f.write_str(": delete"),
                }
            }
            Self::Batch { conditions, writes } => {
                f.write_str("batch")?;
                for (at, (key, condition)) in conditions.iter().enumerate() {
                    f.write_str(if at > 0 { ", " } else { " if " })?;
                    show_condition(f, key, condition)?;
                }
                for (at, (key, write)) in writes.iter().enumerate() {
                    f.write_str(if at > 0 { ", " } else { ": " })?;
                    show_write(f, key, write)?;
                }
                Ok(())
            }
        }
    }
}

impl Display for Outcome {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => f.write_str("unknown"),
            Self::Refused => f.write_str("refused"),
            Self::ConditionFailed => f.write_str("failed"),
            Self::Done => f.write_str("done"),
            Self::Existed(true) => f.write_str("existed"),
            Self::Existed(false) => f.write_str("nothing there"),
            Self::Value(value) => f.write_str(&found(value.as_ref())),
            Self::Values(values) => values.iter().enumerate().try_for_each(|(at, value)| {
                let comma = if at > 0 { ", " } else { "" };
                write!(f, "{comma}{}", found(value.as_ref()))
            }),
            Self::Number(number) => number.fmt(f),
        }
    }
}

fn show_write(f: &mut Formatter<'_>, key: &Bytes, write: &Write) -> fmt::Result {
    match write {
        Write::Put(value) => write!(f, "put {} {}", name(key), quoted(value)),
        Write::Delete => write!(f, "delete {}", name(key)),
        Write::Add(delta) => write!(f, "add {} {delta}", name(key)),
        Write::Append(bytes) => write!(f, "append {} {}", name(key), quoted(bytes)),
    }
}

fn show_condition(f: &mut Formatter<'_>, key: &Bytes, condition: &Condition) -> fmt::Result {
    match condition {
        Condition::Absent => write!(f, "{} is absent", name(key)),
        Condition::Present => write!(f, "{} is present", name(key)),
        Condition::Equals(value) => write!(f, "{} is {}", name(key), quoted(value)),
    }
}

/// A value that was found, or `nothing`.
pub(crate) fn found(value: Option<&Bytes>) -> String {
    value.map_or("nothing".to_owned(), quoted)
}

/// A key: unquoted when it is a plain word.
pub(crate) fn name(key: &Bytes) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"_-./:{}".contains(byte);
    let bare = !key.is_empty() && key.len() <= TEXT_MAX && key.iter().all(plain);
    if bare { key.escape_ascii().to_string() } else { quoted(key) }
}

fn quoted(bytes: &Bytes) -> String {
    let text: String = String::from_utf8_lossy(bytes).chars().flat_map(char::escape_debug).collect();
    if text.chars().count() <= TEXT_MAX {
        return format!("\"{text}\"");
    }
    let start: String = text.chars().take(TEXT_MAX).collect();
    format!("\"{start}…\" ({} bytes)", bytes.len())
}
