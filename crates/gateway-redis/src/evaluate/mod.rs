//! Evaluates commands on a view of their keys: the reply, and the changes that the view collects.
//!
//! Pure, so a transaction can be evaluated again when another client wrote one of its keys before the commit.
//! A command that fails changes nothing; those after it in a transaction still run, as in Redis.

mod bits;
mod keyspace;
mod lcs;
mod strings;

pub(crate) use strings::clamp;

use bytes::Bytes;

use crate::{
    Command, Compute, Deadline, ExpireCondition, Reply, Set, SetCondition, SetExpiry,
    answer::{ttl_reply, type_reply},
    dump::dump,
    script,
    view::View,
};

/// The reply to one command. A command without keys is refused: it cannot be part of a transaction.
pub(crate) fn evaluate(command: &Command, view: &mut View) -> Reply {
    run(command, view).unwrap_or_else(|refusal| refusal)
}

fn run(command: &Command, view: &mut View) -> Result<Reply, Reply> {
    Ok(match command {
        Command::Get(key) => get(key, view)?,
        Command::MGet(keys) => Reply::Array(keys.iter().map(|key| get(key, view)).collect::<Result<_, _>>()?),
        Command::StrLen(key) => Reply::Integer(view.value_bytes(key) as i64),
        Command::Type(key) => type_reply(view.exists(key)),
        Command::Exists(keys) => Reply::Integer(keys.iter().filter(|key| view.exists(key)).count() as i64),
        Command::Ttl { key, unit } => {
            ttl_reply(view.exists(key).then(|| view.expires_at_ms(key)), *unit, view.now_ms())
        }
        Command::Set(set) => strings::set(set, view)?,
        Command::SetNx { key, value } => {
            let absent = !view.exists(key);
            if absent {
                view.put(key, value.clone(), None)?;
            }
            Reply::Integer(absent.into())
        }
        Command::MSet(pairs) => strings::mset(pairs, view)?,
        Command::GetDel(key) => {
            let old = get(key, view)?;
            view.remove(key);
            old
        }
        Command::GetEx { key, expiry } => get_ex(key, *expiry, view)?,
        Command::Del(keys) => Reply::Integer(keys.iter().filter(|key| view.remove(key)).count() as i64),
        Command::Append { key, value } => strings::append(key, value, view)?,
        Command::Add { key, delta } => strings::add(key, *delta, view)?,
        Command::Expire { key, when, condition } => {
            let at_ms = when.at_ms(view.now_ms());
            let holds = view.exists(key) && allows(*condition, view.expires_at_ms(key), at_ms);
            if holds {
                // A time in the past removes the key.
                view.expire(key, Some(at_ms.unwrap_or(0)));
            }
            Reply::Integer(holds.into())
        }
        Command::Persist(key) => {
            let had_expiry = view.expires_at_ms(key).is_some();
            if had_expiry {
                view.expire(key, None);
            }
            Reply::Integer(had_expiry.into())
        }
        Command::Compute(command) => compute(command, view)?,
        Command::Eval(eval) => script::run(eval, view)?,
        _ => return Err(Reply::Error("ERR Command not allowed inside a transaction".into())),
    })
}

fn compute(command: &Compute, view: &mut View) -> Result<Reply, Reply> {
    match command {
        Compute::GetRange { key, start, end } => strings::get_range(key, *start, *end, view),
        Compute::SetRange { key, offset, value } => strings::set_range(key, *offset, value, view),
        Compute::AddFloat { key, delta } => strings::add_float(key, *delta, view),
        Compute::MSetNx(pairs) => strings::mset_nx(pairs, view),
        Compute::Lcs(query) => lcs::lcs(query, view),
        Compute::SetBit { key, at, bit } => bits::set(key, *at, *bit, view),
        Compute::GetBit { key, at } => Ok(bits::get(key, *at, view)),
        Compute::BitCount { key, range, unit } => bits::count(key, *range, *unit, view),
        Compute::BitPos { key, bit, start, end, unit } => bits::position(key, *bit, (*start, *end), *unit, view),
        Compute::BitOp { operation, to, from } => bits::combine(*operation, to, from, view),
        Compute::BitField { key, steps } => bits::field(key, steps, view),
        Compute::Rename { from, to, if_absent } => keyspace::rename(from, to, *if_absent, view),
        Compute::Copy { from, to, replace, .. } => keyspace::copy(from, to, *replace, view),
        Compute::ExpireTime { key, unit } => Ok(keyspace::expire_time(key, *unit, view)),
        Compute::Object(query, key) => keyspace::object(*query, key, view),
        Compute::Dump(key) => {
            view.spend(view.value_bytes(key))?;
            Ok(Reply::bulk_or_null(view.shared_value(key).map(|value| dump(&value))))
        }
        Compute::Restore { key, value, expiry, replace } => {
            if view.exists(key) && !replace {
                return Err(Reply::Error("BUSYKEY Target key name already exists.".into()));
            }
            let expires_at_ms = resolve(*expiry, key, view);
            view.put(key, value.clone(), expires_at_ms)?;
            Ok(Reply::OK)
        }
        Compute::MemoryUsage(key) => Ok(keyspace::memory_usage(key, view)),
    }
}

fn get(key: &Bytes, view: &mut View) -> Result<Reply, Reply> {
    view.spend(view.value_bytes(key))?;
    Ok(Reply::bulk_or_null(view.shared_value(key)))
}

fn get_ex(key: &Bytes, expiry: Option<SetExpiry>, view: &mut View) -> Result<Reply, Reply> {
    let value = get(key, view)?;
    match expiry {
        Some(expiry) if resolve(expiry, key, view) != view.expires_at_ms(key) => {
            view.expire(key, resolve(expiry, key, view));
        }
        _ => {}
    }
    Ok(value)
}

/// The expiry that a command sets.
fn resolve(expiry: SetExpiry, key: &Bytes, view: &View) -> Option<u64> {
    match expiry {
        SetExpiry::Never => None,
        SetExpiry::Keep => view.expires_at_ms(key),
        SetExpiry::At(Deadline::After(after_ms)) => Some(view.now_ms().saturating_add(after_ms)),
        SetExpiry::At(Deadline::At(at_ms)) => Some(at_ms),
    }
}

/// Whether `SET` may set a key.
fn may_set(set: &Set, view: &View) -> bool {
    match set.condition {
        SetCondition::Always => true,
        SetCondition::IfAbsent => !view.exists(&set.key),
        SetCondition::IfPresent => view.exists(&set.key),
    }
}

/// Whether `EXPIRE` may replace an expiry. `None` as the new one means a time in the past.
fn allows(condition: ExpireCondition, current_ms: Option<u64>, new_ms: Option<u64>) -> bool {
    let new_ms = new_ms.unwrap_or(0);
    match condition {
        ExpireCondition::Always => true,
        ExpireCondition::IfNone => current_ms.is_none(),
        ExpireCondition::IfAny => current_ms.is_some(),
        ExpireCondition::IfLater => current_ms.is_some_and(|current_ms| new_ms > current_ms),
        ExpireCondition::IfEarlier => current_ms.is_none_or(|current_ms| new_ms < current_ms),
        ExpireCondition::IfAnyAndEarlier => current_ms.is_some_and(|current_ms| new_ms < current_ms),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        parse::testing::parsed,
        view::testing::{absent, found},
    };

    #[test]
    fn conditions_of_an_expiry_follow_redis() {
        use ExpireCondition::{Always, IfAny, IfAnyAndEarlier, IfEarlier, IfLater, IfNone};
        for (condition, none, later, earlier) in [
            (Always, true, true, true),
            (IfNone, true, false, false),
            (IfAny, false, true, true),
            (IfLater, false, true, false),
            (IfEarlier, true, false, true),
            (IfAnyAndEarlier, false, false, true),
        ] {
            assert_eq!(allows(condition, None, Some(5)), none, "{condition:?} without an expiry");
            assert_eq!(allows(condition, Some(4), Some(5)), later, "{condition:?} to a later one");
            assert_eq!(allows(condition, Some(6), Some(5)), earlier, "{condition:?} to an earlier one");
            assert_eq!(allows(condition, Some(5), None), earlier, "{condition:?} into the past");
        }
        assert!(!allows(IfLater, Some(5), Some(5)) && !allows(IfEarlier, Some(5), Some(5)));
    }

    /// A number, a text, a number that expires at 60 s, and two absent keys, at 10 s.
    fn view() -> View {
        let records = [found("n", b"5", None), found("t", b"text", None), found("e", b"1", Some(60_000))];
        View::new(records.into_iter().chain([absent("a"), absent("b")]), true, flotilla_api::VALUE_BYTES_MAX, 10_000)
    }

    fn reply(line: &str, view: &mut View) -> String {
        match evaluate(&parsed(line).unwrap(), view) {
            Reply::Bulk(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Reply::Null => "nil".into(),
            Reply::Simple(text) => text.into(),
            Reply::Error(text) => text.into(),
            Reply::Integer(number) => number.to_string(),
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn each_command_sees_the_writes_before_it_and_an_error_changes_nothing() {
        for script in [
            "SET a 1=OK; GET a=1; INCR a=2; APPEND a 3=2; GET a=23; DEL a b=1; GET a=nil; EXISTS a n n=2",
            "INCR t=ERR value is not an integer or out of range; GET t=text; INCRBY n 7=12; STRLEN n=2",
            "SETNX a 1=1; SETNX a 2=0; GET a=1; GETDEL a=1; GETDEL a=nil; TYPE a=none; TYPE n=string",
            "TTL e=50; TTL n=-1; TTL a=-2; PERSIST e=1; PERSIST e=0; TTL e=-1; EXPIRE e 5=1; PTTL e=5000",
            "SET e 2 KEEPTTL=OK; TTL e=50; SET e 3=OK; TTL e=-1; SET e 4 EX 7=OK; TTL e=7; INCR e=5; TTL e=7",
            "SET a 1 XX=nil; SET n 6 NX=nil; GET n=5; SET n 6 XX GET=5; SET n 7 NX GET=6; GET n=6; SET a 1 NX GET=nil",
            "EXPIRE n 0=1; EXISTS n=0; EXPIRE n 5=0; EXPIRE e 70 GT=1; TTL e=70; EXPIRE e 60 GT=0; EXPIRE e 3 LT=1",
            "GETEX e PERSIST=1; TTL e=-1; GETEX e EX 9=1; TTL e=9; GETEX e=1; TTL e=9; GETEX e PXAT 1=1; GET e=nil",
            "GETEX a EX 9=nil; SET a x PXAT 1=OK; GET a=nil",
            "MSET a 1 b 2=OK; GET b=2; DECRBY b 5=-3; SET b 9223372036854775807=OK; INCR b=ERR increment or decrement would overflow",
        ] {
            let mut view = view();
            for step in script.split("; ") {
                let (line, expected) = step.split_once('=').unwrap();
                assert_eq!(reply(line, &mut view), expected, "{line} in {script}");
            }
        }
    }

    #[test]
    fn what_is_not_about_keys_cannot_be_part_of_a_transaction() {
        for line in ["SCAN 0", "DBSIZE", "INFO"] {
            assert!(reply(line, &mut view()).starts_with("ERR Command not allowed"), "{line}");
        }
    }
}
