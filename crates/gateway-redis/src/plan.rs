//! Plans a command's use of the store: a write or a read of one key, which can share a call with others, or a
//! task that needs several calls.
//!
//! Pure: the wall clock is an argument, for relative expiries.

use bytes::Bytes;
use flotilla_kv::{Action, Condition, Expiry, Operation, Otherwise};

use crate::{
    Command, Compute, Deadline, ExpireCondition, Glob, Scan, Set, SetCondition, SetExpiry, TimeUnit,
    window::{Access, Footprint},
};

/// Keys of one request that are distinguished from others.
const FOOTPRINT_KEYS_MAX: usize = 4_096;

/// How a command runs on the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Plan {
    Write(Write),
    Read(Read),
    Task(Task),
}

/// One operation on one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Write {
    pub(crate) operation: Operation,
    pub(crate) answer: WriteAnswer,
}

/// How the reply to a write is formed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WriteAnswer {
    /// `OK`, or null if its condition did not hold.
    Stored,
    /// The previous value.
    Old,
    /// 1 if something changed, else 0.
    Changed,
    /// The number in the operation's result; 0 if there was no record.
    Number,
}

/// A read of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Read {
    pub(crate) key: Bytes,
    pub(crate) answer: ReadAnswer,
}

/// How the reply to a read is formed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReadAnswer {
    Value,
    Length,
    Exists,
    Ttl(TimeUnit),
    Type,
}

/// A command that needs several calls, or a call that it does not share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Task {
    MGet(Vec<Bytes>),
    MSet(Vec<(Bytes, Bytes)>),
    Del(Vec<Bytes>),
    Exists(Vec<Bytes>),
    GetRange {
        key: Bytes,
        start: i64,
        end: i64,
    },
    /// A command whose writes are computed from what it reads.
    Evaluate(Command),
    Scan(Scan),
    Keys(Glob),
    RandomKey,
    FlushDb,
    FlushAll,
    DbSize,
    Info(Vec<Bytes>),
}

impl Plan {
    /// Plans a command at `now_ms` in Unix milliseconds.
    ///
    /// # Errors
    /// Returns the command itself if it does not use the store.
    pub(crate) fn of(command: Command, now_ms: u64) -> Result<Self, Command> {
        Ok(match command {
            Command::Get(key) => read(key, ReadAnswer::Value),
            Command::StrLen(key) => read(key, ReadAnswer::Length),
            Command::Ttl { key, unit } => read(key, ReadAnswer::Ttl(unit)),
            Command::Type(key) => read(key, ReadAnswer::Type),
            Command::GetEx { key, expiry: None } => read(key, ReadAnswer::Value),
            Command::GetEx { expiry: Some(_), .. } => Self::Task(Task::Evaluate(command)),
            Command::Set(set) => set_plan(set, now_ms),
            Command::SetNx { key, value } => {
                let action = Action::Put { value: value.into(), expiry: Expiry::Never, return_old: false };
                write(key, Some(Condition::Absent), action, WriteAnswer::Changed)
            }
            Command::GetDel(key) => write(key, None, Action::Delete { return_old: true }, WriteAnswer::Old),
            Command::Append { key, value } => write(key, None, Action::Append { bytes: value }, WriteAnswer::Number),
            Command::Add { key, delta } => write(key, None, Action::Add { delta }, WriteAnswer::Number),
            Command::Persist(key) => write(key, None, Action::Expire { expiry: Expiry::Never }, WriteAnswer::Number),
            Command::Expire { key, when, condition: ExpireCondition::Always } => {
                write(key, None, expire_action(when.at_ms(now_ms)), WriteAnswer::Changed)
            }
            Command::Expire { .. } => Self::Task(Task::Evaluate(command)),
            Command::Del(keys) => match <[Bytes; 1]>::try_from(keys) {
                Ok([key]) => write(key, None, Action::Delete { return_old: false }, WriteAnswer::Changed),
                Err(keys) => Self::Task(Task::Del(keys)),
            },
            Command::Exists(keys) => match <[Bytes; 1]>::try_from(keys) {
                Ok([key]) => read(key, ReadAnswer::Exists),
                Err(keys) => Self::Task(Task::Exists(keys)),
            },
            Command::MGet(keys) => Self::Task(Task::MGet(keys)),
            Command::MSet(pairs) => Self::Task(Task::MSet(pairs)),
            Command::Compute(Compute::GetRange { key, start, end }) => Self::Task(Task::GetRange { key, start, end }),
            Command::Compute(_) | Command::Eval(_) => Self::Task(Task::Evaluate(command)),
            Command::Scan(scan) => Self::Task(Task::Scan(scan)),
            Command::Keys(pattern) => Self::Task(Task::Keys(pattern)),
            Command::RandomKey => Self::Task(Task::RandomKey),
            Command::FlushDb => Self::Task(Task::FlushDb),
            Command::FlushAll => Self::Task(Task::FlushAll),
            Command::DbSize => Self::Task(Task::DbSize),
            Command::Info(sections) => Self::Task(Task::Info(sections)),
            other => return Err(other),
        })
    }

    /// The keys that it touches. So many that each would cost memory count as everything.
    pub(crate) fn footprint(&self) -> Footprint {
        match self.exact_footprint() {
            Footprint::Keys(keys, _) if keys.len() > FOOTPRINT_KEYS_MAX => Footprint::Everything,
            footprint => footprint,
        }
    }

    fn exact_footprint(&self) -> Footprint {
        match self {
            Self::Write(write) => Footprint::Key(write.operation.key.clone(), Access::Write),
            Self::Read(read) => Footprint::Key(read.key.clone(), Access::Read),
            Self::Task(Task::GetRange { key, .. }) => Footprint::Key(key.clone(), Access::Read),
            Self::Task(Task::MGet(keys) | Task::Exists(keys)) => Footprint::Keys(keys.clone(), Access::Read),
            Self::Task(Task::Del(keys)) => Footprint::Keys(keys.clone(), Access::Write),
            Self::Task(Task::MSet(pairs)) => {
                Footprint::Keys(pairs.iter().map(|(key, _)| key.clone()).collect(), Access::Write)
            }
            Self::Task(Task::Evaluate(command)) if command.only_reads() => {
                Footprint::Keys(command.keys(), Access::Read)
            }
            Self::Task(Task::Evaluate(command)) => Footprint::Keys(command.keys(), Access::Write),
            Self::Task(
                Task::Scan(_) | Task::Keys(_) | Task::RandomKey | Task::FlushDb | Task::FlushAll | Task::DbSize,
            ) => Footprint::Everything,
            // It describes the node, whatever else is in flight.
            Self::Task(Task::Info(_)) => Footprint::Keys(Vec::new(), Access::Read),
        }
    }
}

fn read(key: Bytes, answer: ReadAnswer) -> Plan {
    Plan::Read(Read { key, answer })
}

fn write(key: Bytes, condition: Option<Condition>, action: Action, answer: WriteAnswer) -> Plan {
    Plan::Write(Write { operation: operation(key, condition, action), answer })
}

/// An operation that is skipped when its condition does not hold.
pub(crate) fn operation(key: Bytes, condition: Option<Condition>, action: Action) -> Operation {
    Operation { key, condition, otherwise: Otherwise::Skip, action }
}

fn set_plan(set: Set, now_ms: u64) -> Plan {
    let condition = match set.condition {
        SetCondition::Always => None,
        SetCondition::IfAbsent => Some(Condition::Absent),
        SetCondition::IfPresent => Some(Condition::Present),
    };
    let answer = if set.returns_old { WriteAnswer::Old } else { WriteAnswer::Stored };
    let expiry = expiry(set.expiry, now_ms);
    write(set.key, condition, Action::Put { value: set.value.into(), expiry, return_old: set.returns_old }, answer)
}

/// Sets an expiry; one in the past (`None`) removes the key.
fn expire_action(at_ms: Option<u64>) -> Action {
    match at_ms {
        Some(at_ms) => Action::Expire { expiry: Expiry::At(at_ms) },
        None => Action::Delete { return_old: false },
    }
}

/// The expiry to store, at `now_ms`.
fn expiry(expiry: SetExpiry, now_ms: u64) -> Expiry {
    match expiry {
        SetExpiry::Never => Expiry::Never,
        SetExpiry::Keep => Expiry::Keep,
        SetExpiry::At(Deadline::After(after_ms)) => Expiry::At(now_ms + after_ms),
        SetExpiry::At(Deadline::At(at_ms)) => Expiry::At(at_ms),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse::testing::parsed;

    fn plan(line: &str) -> Plan {
        Plan::of(parsed(line).unwrap(), 1_000).unwrap()
    }

    fn key() -> Bytes {
        Bytes::from_static(b"k")
    }

    fn put(expiry: Expiry, return_old: bool) -> Action {
        Action::Put { value: "v".into(), expiry, return_old }
    }

    #[test]
    fn writes_of_one_key_become_one_operation() {
        use WriteAnswer::{Changed, Number, Old, Stored};
        let (absent, present) = (Some(Condition::Absent), Some(Condition::Present));
        for (line, condition, action, answer) in [
            ("SET k v", None, put(Expiry::Never, false), Stored),
            ("SET k v PX 5 NX", absent, put(Expiry::At(1_005), false), Stored),
            ("SET k v XX GET KEEPTTL", present, put(Expiry::Keep, true), Old),
            ("SET k v EXAT 9", None, put(Expiry::At(9_000), false), Stored),
            ("GETSET k v", None, put(Expiry::Never, true), Old),
            ("SETEX k 2 v", None, put(Expiry::At(3_000), false), Stored),
            ("SETNX k v", absent, put(Expiry::Never, false), Changed),
            ("GETDEL k", None, Action::Delete { return_old: true }, Old),
            ("DEL k", None, Action::Delete { return_old: false }, Changed),
            ("DECRBY k 3", None, Action::Add { delta: -3 }, Number),
            ("APPEND k v", None, Action::Append { bytes: Bytes::from_static(b"v") }, Number),
            ("PERSIST k", None, Action::Expire { expiry: Expiry::Never }, Number),
            ("EXPIRE k 1", None, Action::Expire { expiry: Expiry::At(2_000) }, Changed),
            ("PEXPIRE k 0", None, Action::Delete { return_old: false }, Changed),
            ("EXPIRE k -1", None, Action::Delete { return_old: false }, Changed),
        ] {
            let plan = plan(line);
            assert_eq!(plan.footprint(), Footprint::Key(key(), Access::Write), "{line}");
            assert_eq!(plan, Plan::Write(Write { operation: operation(key(), condition, action), answer }), "{line}");
        }
    }

    #[test]
    fn conditional_expiries_and_several_keys_are_tasks() {
        let keys = || vec![key(), Bytes::from_static(b"l")];
        for (line, task, footprint) in [
            ("EXPIRE k -1 GT", Task::Evaluate(parsed("EXPIRE k -1 GT").unwrap()), {
                Footprint::Keys(vec![key()], Access::Write)
            }),
            ("GETEX k PX 5", Task::Evaluate(parsed("GETEX k PX 5").unwrap()), {
                Footprint::Keys(vec![key()], Access::Write)
            }),
            ("MGET k l", Task::MGet(keys()), Footprint::Keys(keys(), Access::Read)),
            ("UNLINK k l", Task::Del(keys()), Footprint::Keys(keys(), Access::Write)),
            ("MSET k 1 l 2", Task::MSet(keys().into_iter().zip(["1", "2"].map(Bytes::from)).collect()), {
                Footprint::Keys(keys(), Access::Write)
            }),
            ("DBSIZE", Task::DbSize, Footprint::Everything),
        ] {
            assert_eq!(plan(line).footprint(), footprint, "{line}");
            assert_eq!(plan(line), Plan::Task(task), "{line}");
        }
    }

    #[test]
    fn commands_about_the_connection_do_not_use_the_store() {
        for line in ["PING", "HELLO 3", "CLIENT ID", "COMMAND", "CONFIG GET *", "QUIT", "SELECT 0"] {
            assert!(Plan::of(parsed(line).unwrap(), 0).is_err(), "{line}");
        }
    }
}
