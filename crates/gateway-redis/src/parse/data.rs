//! Commands about keys and values.

use bytes::Bytes;

use super::{Arguments, database, integer};
use crate::{
    Command, CommandError, Database, Deadline, ExpireCondition, Glob, Scan, Set, SetCondition, SetExpiry, TimeUnit,
    When, command::OTHER_DATABASE,
};

/// The latest point in time and the longest duration that a client may specify, in milliseconds: far enough
/// below 2^63 that adding the clock does not overflow.
const TIME_MS_MAX: i64 = 1 << 62;

/// Longest pattern of `SCAN`, in bytes: bounds the work for each key.
const PATTERN_BYTES_MAX: usize = 1_024;

/// Keys that `SCAN` examines without `COUNT`.
const SCAN_COUNT_DEFAULT: u64 = 10;

pub(crate) fn get(mut arguments: Arguments) -> Result<Command, CommandError> {
    Ok(Command::Get(arguments.required()?))
}

pub(crate) fn get_del(mut arguments: Arguments) -> Result<Command, CommandError> {
    Ok(Command::GetDel(arguments.required()?))
}

pub(crate) fn str_len(mut arguments: Arguments) -> Result<Command, CommandError> {
    Ok(Command::StrLen(arguments.required()?))
}

pub(crate) fn persist(mut arguments: Arguments) -> Result<Command, CommandError> {
    Ok(Command::Persist(arguments.required()?))
}

pub(crate) fn type_of(mut arguments: Arguments) -> Result<Command, CommandError> {
    Ok(Command::Type(arguments.required()?))
}

pub(crate) fn ttl(mut arguments: Arguments) -> Result<Command, CommandError> {
    Ok(Command::Ttl { key: arguments.required()?, unit: TimeUnit::Seconds })
}

pub(crate) fn pttl(mut arguments: Arguments) -> Result<Command, CommandError> {
    Ok(Command::Ttl { key: arguments.required()?, unit: TimeUnit::Milliseconds })
}

pub(crate) fn mget(arguments: Arguments) -> Result<Command, CommandError> {
    Ok(Command::MGet(arguments.remaining()))
}

pub(crate) fn del(arguments: Arguments) -> Result<Command, CommandError> {
    Ok(Command::Del(arguments.remaining()))
}

pub(crate) fn exists(arguments: Arguments) -> Result<Command, CommandError> {
    Ok(Command::Exists(arguments.remaining()))
}

pub(crate) fn multi(_: Arguments) -> Result<Command, CommandError> {
    Ok(Command::Multi)
}

pub(crate) fn exec(_: Arguments) -> Result<Command, CommandError> {
    Ok(Command::Exec)
}

pub(crate) fn discard(_: Arguments) -> Result<Command, CommandError> {
    Ok(Command::Discard)
}

pub(crate) fn watch(arguments: Arguments) -> Result<Command, CommandError> {
    Ok(Command::Watch(arguments.remaining()))
}

pub(crate) fn unwatch(_: Arguments) -> Result<Command, CommandError> {
    Ok(Command::Unwatch)
}

pub(crate) fn db_size(_: Arguments) -> Result<Command, CommandError> {
    Ok(Command::DbSize)
}

pub(crate) fn random_key(_: Arguments) -> Result<Command, CommandError> {
    Ok(Command::RandomKey)
}

pub(crate) fn time(_: Arguments) -> Result<Command, CommandError> {
    Ok(Command::Time)
}

pub(crate) fn keys(mut arguments: Arguments) -> Result<Command, CommandError> {
    Ok(Command::Keys(glob(arguments.required()?)?))
}

fn glob(pattern: Bytes) -> Result<Glob, CommandError> {
    if pattern.len() > PATTERN_BYTES_MAX { Err(CommandError::PatternTooLong) } else { Ok(Glob::new(pattern)) }
}

pub(crate) fn flush_db(arguments: Arguments) -> Result<Command, CommandError> {
    flush(arguments, Command::FlushDb)
}

pub(crate) fn flush_all(arguments: Arguments) -> Result<Command, CommandError> {
    flush(arguments, Command::FlushAll)
}

fn flush(mut arguments: Arguments, command: Command) -> Result<Command, CommandError> {
    match (arguments.next(), arguments.next()) {
        (None, _) => Ok(command),
        (Some(mode), None) if mode.eq_ignore_ascii_case(b"async") || mode.eq_ignore_ascii_case(b"sync") => Ok(command),
        _ => Err(CommandError::Syntax),
    }
}

pub(crate) fn move_key(mut arguments: Arguments) -> Result<Command, CommandError> {
    arguments.required()?;
    database(&arguments.required()?)?;
    Err(CommandError::Invalid(OTHER_DATABASE))
}

pub(crate) fn swap_db(mut arguments: Arguments) -> Result<Command, CommandError> {
    for refusal in ["ERR invalid first DB index", "ERR invalid second DB index"] {
        let number = Database::parse(&arguments.required()?).ok_or(CommandError::Invalid(refusal))?;
        number.ok_or(CommandError::Database)?;
    }
    Err(CommandError::Invalid(OTHER_DATABASE))
}

pub(crate) fn mset(arguments: Arguments) -> Result<Command, CommandError> {
    Ok(Command::MSet(pairs(arguments)?))
}

/// Keys with their values.
pub(super) fn pairs(mut arguments: Arguments) -> Result<Vec<(Bytes, Bytes)>, CommandError> {
    if !arguments.len().is_multiple_of(2) {
        return Err(CommandError::Arity { command: arguments.command });
    }
    let mut pairs = Vec::with_capacity(arguments.len() / 2);
    while let Some((key, value)) = arguments.next().zip(arguments.next()) {
        pairs.push((key, value));
    }
    Ok(pairs)
}

pub(crate) fn append(mut arguments: Arguments) -> Result<Command, CommandError> {
    Ok(Command::Append { key: arguments.required()?, value: arguments.required()? })
}

pub(crate) fn incr(mut arguments: Arguments) -> Result<Command, CommandError> {
    Ok(Command::Add { key: arguments.required()?, delta: 1 })
}

pub(crate) fn decr(mut arguments: Arguments) -> Result<Command, CommandError> {
    Ok(Command::Add { key: arguments.required()?, delta: -1 })
}

pub(crate) fn incr_by(mut arguments: Arguments) -> Result<Command, CommandError> {
    Ok(Command::Add { key: arguments.required()?, delta: integer(&arguments.required()?)? })
}

pub(crate) fn decr_by(mut arguments: Arguments) -> Result<Command, CommandError> {
    let key = arguments.required()?;
    let delta = integer(&arguments.required()?)?.checked_neg().ok_or(CommandError::DecrementOverflow)?;
    Ok(Command::Add { key, delta })
}

pub(crate) fn set_nx(mut arguments: Arguments) -> Result<Command, CommandError> {
    Ok(Command::SetNx { key: arguments.required()?, value: arguments.required()? })
}

pub(crate) fn get_set(mut arguments: Arguments) -> Result<Command, CommandError> {
    Ok(Command::Set(Set { returns_old: true, ..plain(arguments.required()?, arguments.required()?) }))
}

pub(crate) fn set_ex(arguments: Arguments) -> Result<Command, CommandError> {
    set_for(arguments, TimeUnit::Seconds)
}

pub(crate) fn pset_ex(arguments: Arguments) -> Result<Command, CommandError> {
    set_for(arguments, TimeUnit::Milliseconds)
}

fn set_for(mut arguments: Arguments, unit: TimeUnit) -> Result<Command, CommandError> {
    let (key, time, value) = (arguments.required()?, arguments.required()?, arguments.required()?);
    let expiry = SetExpiry::At(Deadline::After(positive_ms(&time, unit, arguments.command)?));
    Ok(Command::Set(Set { expiry, ..plain(key, value) }))
}

fn plain(key: Bytes, value: Bytes) -> Set {
    Set { key, value, condition: SetCondition::Always, returns_old: false, expiry: SetExpiry::Never }
}

/// A positive point in time or duration, in milliseconds.
fn positive_ms(text: &[u8], unit: TimeUnit, command: &'static str) -> Result<u64, CommandError> {
    let time_ms = in_ms(integer(text)?, unit).filter(|ms| *ms > 0);
    time_ms.and_then(|ms| u64::try_from(ms).ok()).ok_or(CommandError::ExpireTime { command })
}

/// A time in milliseconds; `None` if it is too far in the future or the past.
fn in_ms(time: i64, unit: TimeUnit) -> Option<i64> {
    let time_ms = match unit {
        TimeUnit::Seconds => time.checked_mul(1_000)?,
        TimeUnit::Milliseconds => time,
    };
    (-TIME_MS_MAX..=TIME_MS_MAX).contains(&time_ms).then_some(time_ms)
}

/// An expiry option of `SET` and `GETEX`. Its number is checked after the syntax of all options, as in Redis.
#[derive(Default)]
enum ExpiryOption {
    #[default]
    None,
    Never,
    Keep,
    After(Bytes, TimeUnit),
    At(Bytes, TimeUnit),
}

impl ExpiryOption {
    /// Parses an option that `SET` and `GETEX` share, with its value; `None` for other options.
    fn shared(option: &[u8], arguments: &mut Arguments) -> Result<Option<Self>, CommandError> {
        Ok(Some(match option.to_ascii_lowercase().as_slice() {
            b"ex" => Self::After(arguments.option_value()?, TimeUnit::Seconds),
            b"px" => Self::After(arguments.option_value()?, TimeUnit::Milliseconds),
            b"exat" => Self::At(arguments.option_value()?, TimeUnit::Seconds),
            b"pxat" => Self::At(arguments.option_value()?, TimeUnit::Milliseconds),
            _ => return Ok(None),
        }))
    }

    /// Sets the option; only one expiry option may be given.
    fn replace(&mut self, option: Self) -> Result<(), CommandError> {
        match std::mem::replace(self, option) {
            Self::None => Ok(()),
            _ => Err(CommandError::Syntax),
        }
    }

    fn resolve(self, command: &'static str) -> Result<Option<SetExpiry>, CommandError> {
        Ok(match self {
            Self::None => None,
            Self::Never => Some(SetExpiry::Never),
            Self::Keep => Some(SetExpiry::Keep),
            Self::After(time, unit) => Some(SetExpiry::At(Deadline::After(positive_ms(&time, unit, command)?))),
            Self::At(time, unit) => Some(SetExpiry::At(Deadline::At(positive_ms(&time, unit, command)?))),
        })
    }
}

pub(crate) fn set(mut arguments: Arguments) -> Result<Command, CommandError> {
    let mut set = plain(arguments.required()?, arguments.required()?);
    let mut expiry = ExpiryOption::None;
    while let Some(option) = arguments.next() {
        if let Some(shared) = ExpiryOption::shared(&option, &mut arguments)? {
            expiry.replace(shared)?;
            continue;
        }
        match option.to_ascii_lowercase().as_slice() {
            b"nx" if set.condition != SetCondition::IfPresent => set.condition = SetCondition::IfAbsent,
            b"xx" if set.condition != SetCondition::IfAbsent => set.condition = SetCondition::IfPresent,
            b"get" => set.returns_old = true,
            b"keepttl" => expiry.replace(ExpiryOption::Keep)?,
            _ => return Err(CommandError::Syntax),
        }
    }
    set.expiry = expiry.resolve(arguments.command)?.unwrap_or_default();
    Ok(Command::Set(set))
}

pub(crate) fn get_ex(mut arguments: Arguments) -> Result<Command, CommandError> {
    let key = arguments.required()?;
    let mut expiry = ExpiryOption::None;
    while let Some(option) = arguments.next() {
        match ExpiryOption::shared(&option, &mut arguments)? {
            Some(shared) => expiry.replace(shared)?,
            None if option.eq_ignore_ascii_case(b"persist") => expiry.replace(ExpiryOption::Never)?,
            None => return Err(CommandError::Syntax),
        }
    }
    Ok(Command::GetEx { key, expiry: expiry.resolve(arguments.command)? })
}

pub(crate) fn expire(arguments: Arguments) -> Result<Command, CommandError> {
    expire_when(arguments, TimeUnit::Seconds, When::After)
}

pub(crate) fn pexpire(arguments: Arguments) -> Result<Command, CommandError> {
    expire_when(arguments, TimeUnit::Milliseconds, When::After)
}

pub(crate) fn expire_at(arguments: Arguments) -> Result<Command, CommandError> {
    expire_when(arguments, TimeUnit::Seconds, When::At)
}

pub(crate) fn pexpire_at(arguments: Arguments) -> Result<Command, CommandError> {
    expire_when(arguments, TimeUnit::Milliseconds, When::At)
}

fn expire_when(mut arguments: Arguments, unit: TimeUnit, when: fn(i64) -> When) -> Result<Command, CommandError> {
    let (key, time) = (arguments.required()?, arguments.required()?);
    let command = arguments.command;
    let condition = expire_condition(&mut arguments)?;
    let when = in_ms(integer(&time)?, unit).map(when).ok_or(CommandError::ExpireTime { command })?;
    Ok(Command::Expire { key, when, condition })
}

fn expire_condition(arguments: &mut Arguments) -> Result<ExpireCondition, CommandError> {
    let (mut none, mut any, mut later, mut earlier) = (false, false, false, false);
    while let Some(option) = arguments.next() {
        match option.to_ascii_lowercase().as_slice() {
            b"nx" => none = true,
            b"xx" => any = true,
            b"gt" => later = true,
            b"lt" => earlier = true,
            _ => return Err(CommandError::ExpireOption(option)),
        }
    }
    match (none, any, later, earlier) {
        (true, true, ..) | (true, _, true, _) | (true, _, _, true) => Err(CommandError::ExpireNxWithOthers),
        (_, _, true, true) => Err(CommandError::ExpireGtWithLt),
        (true, ..) => Ok(ExpireCondition::IfNone),
        (_, _, true, _) => Ok(ExpireCondition::IfLater),
        (_, true, _, true) => Ok(ExpireCondition::IfAnyAndEarlier),
        (_, true, ..) => Ok(ExpireCondition::IfAny),
        (.., true) => Ok(ExpireCondition::IfEarlier),
        _ => Ok(ExpireCondition::Always),
    }
}

pub(crate) fn scan(mut arguments: Arguments) -> Result<Command, CommandError> {
    let cursor = cursor(&arguments.required()?).ok_or(CommandError::Cursor)?;
    let mut scan = Scan { cursor, pattern: None, count: SCAN_COUNT_DEFAULT, type_exists: true };
    while let Some(option) = arguments.next() {
        let value = arguments.option_value()?;
        match option.to_ascii_lowercase().as_slice() {
            b"match" => scan.pattern = Some(glob(value)?),
            b"count" => {
                let count = u64::try_from(integer(&value)?).map_err(|_| CommandError::Syntax)?;
                if count == 0 {
                    return Err(CommandError::Syntax);
                }
                scan.count = count;
            }
            b"type" => scan.type_exists = value.eq_ignore_ascii_case(b"string"),
            _ => return Err(CommandError::Syntax),
        }
    }
    Ok(Command::Scan(scan))
}

/// Parses a cursor: an unsigned 64-bit number of digits only.
fn cursor(text: &[u8]) -> Option<u64> {
    // `parse` alone would accept a sign.
    if !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse::testing::{error, parsed};

    fn bytes(text: &'static str) -> Bytes {
        Bytes::from_static(text.as_bytes())
    }

    fn set(line: &str) -> Set {
        match parsed(line) {
            Ok(Command::Set(set)) => set,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_form_of_set_parses() {
        let plain = plain(bytes("k"), bytes("v"));
        let with = |expiry| Set { expiry: SetExpiry::At(expiry), ..plain.clone() };
        assert_eq!(set("SET k v"), plain);
        assert_eq!(set("set k v ex 10"), with(Deadline::After(10_000)));
        assert_eq!(set("SET k v PX 10"), with(Deadline::After(10)));
        assert_eq!(set("SET k v EXAT 10"), with(Deadline::At(10_000)));
        assert_eq!(set("SET k v PXAT 10"), with(Deadline::At(10)));
        assert_eq!(set("SETEX k 10 v"), with(Deadline::After(10_000)));
        assert_eq!(set("PSETEX k 10 v"), with(Deadline::After(10)));
        assert_eq!(set("GETSET k v"), Set { returns_old: true, ..plain.clone() });
        let all =
            Set { condition: SetCondition::IfAbsent, returns_old: true, expiry: SetExpiry::Keep, ..plain.clone() };
        assert_eq!(set("SET k v GET KEEPTTL NX"), all);
        assert_eq!(set("SET k v XX"), Set { condition: SetCondition::IfPresent, ..plain });
        assert_eq!(parsed("SETNX k v"), Ok(Command::SetNx { key: bytes("k"), value: bytes("v") }));
    }

    #[test]
    fn errors_of_set_have_the_texts_of_redis() {
        for (line, text) in [
            ("SET k", "ERR wrong number of arguments for 'set' command"),
            ("SET k v FOO", "ERR syntax error"),
            ("SET k v NX XX", "ERR syntax error"),
            ("SET k v EX 1 PX 1", "ERR syntax error"),
            ("SET k v EX 1 KEEPTTL", "ERR syntax error"),
            ("SET k v EX", "ERR syntax error"),
            ("SET k v EX x FOO", "ERR syntax error"),
            ("SET k v EX x", "ERR value is not an integer or out of range"),
            ("SET k v EX 0", "ERR invalid expire time in 'set' command"),
            ("SET k v PX -1", "ERR invalid expire time in 'set' command"),
            ("SET k v EX 9223372036854775807", "ERR invalid expire time in 'set' command"),
            ("SET k v PX 9223372036854775807", "ERR invalid expire time in 'set' command"),
            ("SETEX k 0 v", "ERR invalid expire time in 'setex' command"),
            ("PSETEX k x v", "ERR value is not an integer or out of range"),
            ("GETEX k EX -1", "ERR invalid expire time in 'getex' command"),
            ("GETEX k PERSIST EX 1", "ERR syntax error"),
            ("GETEX k KEEPTTL", "ERR syntax error"),
        ] {
            assert_eq!(error(line), text, "{line}");
        }
    }

    #[test]
    fn keys_and_numbers_parse() {
        let k = || bytes("k");
        let expire = |after_ms, condition| Command::Expire { key: bytes("k"), when: When::After(after_ms), condition };
        for (line, command) in [
            ("GET k", Command::Get(k())),
            ("GETDEL k", Command::GetDel(k())),
            ("GETEX k", Command::GetEx { key: k(), expiry: None }),
            ("GETEX k persist", Command::GetEx { key: k(), expiry: Some(SetExpiry::Never) }),
            ("MGET k k", Command::MGet(vec![k(), k()])),
            ("MSET k k", Command::MSet(vec![(k(), k())])),
            ("DEL k", Command::Del(vec![k()])),
            ("UNLINK k", Command::Del(vec![k()])),
            ("EXISTS k k", Command::Exists(vec![k(), k()])),
            ("STRLEN k", Command::StrLen(k())),
            ("APPEND k v", Command::Append { key: k(), value: bytes("v") }),
            ("INCR k", Command::Add { key: k(), delta: 1 }),
            ("DECR k", Command::Add { key: k(), delta: -1 }),
            ("INCRBY k -5", Command::Add { key: k(), delta: -5 }),
            ("DECRBY k 5", Command::Add { key: k(), delta: -5 }),
            ("EXPIRE k 5", expire(5_000, ExpireCondition::Always)),
            ("PEXPIRE k -5 nx", expire(-5, ExpireCondition::IfNone)),
            ("EXPIRE k 5 XX", expire(5_000, ExpireCondition::IfAny)),
            ("EXPIRE k 5 GT XX", expire(5_000, ExpireCondition::IfLater)),
            ("EXPIRE k 5 LT", expire(5_000, ExpireCondition::IfEarlier)),
            ("EXPIRE k 5 XX LT", expire(5_000, ExpireCondition::IfAnyAndEarlier)),
            ("TTL k", Command::Ttl { key: k(), unit: TimeUnit::Seconds }),
            ("PTTL k", Command::Ttl { key: k(), unit: TimeUnit::Milliseconds }),
            ("PERSIST k", Command::Persist(k())),
            ("TYPE k", Command::Type(k())),
            ("DBSIZE", Command::DbSize),
            ("SCAN 0", Command::Scan(Scan { cursor: 0, pattern: None, count: 10, type_exists: true })),
            (
                "SCAN 18446744073709551615 MATCH a* COUNT 100 TYPE list",
                Command::Scan(Scan {
                    cursor: u64::MAX,
                    pattern: Some(Glob::new(bytes("a*"))),
                    count: 100,
                    type_exists: false,
                }),
            ),
        ] {
            assert_eq!(parsed(line), Ok(command), "{line}");
        }
    }

    #[test]
    fn errors_of_other_commands_have_the_texts_of_redis() {
        assert_eq!(error(&format!("SCAN 0 MATCH {}", "*".repeat(1_025))), "ERR pattern is too long");
        for (line, text) in [
            ("INCRBY k +5", "ERR value is not an integer or out of range"),
            ("DECRBY k -9223372036854775808", "ERR decrement would overflow"),
            ("MSET k v k", "ERR wrong number of arguments for 'mset' command"),
            ("EXPIRE k x", "ERR value is not an integer or out of range"),
            ("EXPIRE k 9223372036854775807", "ERR invalid expire time in 'expire' command"),
            ("PEXPIRE k -9223372036854775808", "ERR invalid expire time in 'pexpire' command"),
            ("EXPIRE k 5 NX XX", "ERR NX and XX, GT or LT options at the same time are not compatible"),
            ("EXPIRE k 5 GT LT", "ERR GT and LT options at the same time are not compatible"),
            ("EXPIRE k 5 FOO", "ERR Unsupported option FOO"),
            ("SCAN x", "ERR invalid cursor"),
            ("SCAN -1", "ERR invalid cursor"),
            ("SCAN 0 COUNT 0", "ERR syntax error"),
            ("SCAN 0 COUNT x", "ERR value is not an integer or out of range"),
            ("SCAN 0 MATCH", "ERR syntax error"),
        ] {
            assert_eq!(error(line), text, "{line}");
        }
    }
}
