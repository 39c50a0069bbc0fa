//! The transaction of a connection: commands that are queued between `MULTI` and `EXEC`, and watched keys.
//!
//! Pure. Invariants: once a command was refused, `EXEC` executes nothing; a command that follows a refused
//! `MULTI` is never executed either, up to the next `EXEC` or `DISCARD`, because its client may not have read
//! the refusal. All keys of a transaction and all watched keys are of one database, and live in one shard, as
//! far as is known when they are named.

use std::sync::Arc;

use bytes::Bytes;
use flotilla_types::ShardId;

use crate::{
    Command, CommandError, Database, Reply,
    execute::{Step, Watch},
};

/// Keys that a connection may watch: the conditions that a command of a shard may have, less those for keys
/// that it reads.
const WATCHED_KEYS_MAX: usize = 512;
/// Commands of one transaction.
const COMMANDS_MAX: usize = 16_384;
/// Bytes of the queued commands and watched keys: what a shard takes as one command.
pub(super) const QUEUED_BYTES_MAX: usize = flotilla_api::BATCH_BYTES_MAX;

const CROSS_SLOT: &str = "CROSSSLOT Keys in request don't hash to the same slot";
const CROSS_DATABASE: &str = "CROSSSLOT Keys of a transaction must be of one database";
const ABORTED: &str = "EXECABORT Transaction discarded because of previous errors.";
const NOT_STARTED: &str = "EXECABORT MULTI was refused, so this command was not executed.";
const NOT_ALLOWED: &str = "ERR Command not allowed inside a transaction";
const TOO_MUCH: &str = "ERR the transaction is too large; it is discarded";

/// The transaction of a connection.
#[derive(Debug, Default)]
pub(super) struct Multi {
    state: State,
    watch: Option<Arc<Watch>>,
    watched_keys: usize,
    watched_bytes: usize,
    /// Database and shard of all keys so far.
    home: Option<(Database, Option<ShardId>)>,
    /// The database that a queued `SELECT` chose for what follows.
    selected: Option<Database>,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Outside,
    Queuing {
        steps: Vec<Queued>,
        bytes: usize,
    },
    /// A command was refused.
    Aborted,
    /// `MULTI` itself was refused.
    Refused,
}

/// A queued command.
#[derive(Debug)]
pub(super) enum Queued {
    Command(Command),
    /// A command whose arguments are not valid: its error is its reply.
    Invalid(CommandError),
}

/// What becomes of a request.
#[derive(Debug)]
pub(super) enum Admitted {
    /// It runs at once, outside of any transaction.
    Run(Command),
    Answer(Reply),
    Watch(Vec<Bytes>, Arc<Watch>),
    Exec(Transaction),
}

/// A transaction to execute.
#[derive(Debug)]
pub(super) struct Transaction {
    pub(super) queued: Vec<Queued>,
    pub(super) bytes: usize,
    pub(super) watch: Option<Arc<Watch>>,
    /// The database of its keys, if it has any.
    pub(super) database: Option<Database>,
    /// The database of what follows it, if it is executed.
    pub(super) selected: Option<Database>,
}

impl Queued {
    /// What `EXEC` runs. `answer` answers commands that are about the connection.
    pub(super) fn step(self, answer: &mut impl FnMut(Command) -> Reply) -> Step {
        match self {
            Self::Command(command @ Command::Eval(_)) => Step::Run(command),
            Self::Command(command) if command.keys().is_empty() => Step::Done(answer(command)),
            Self::Command(command) => Step::Run(command),
            Self::Invalid(error) => Step::Done(Reply::error(error)),
        }
    }
}

impl Multi {
    /// Bytes of queued commands and watched keys.
    pub(super) fn held_bytes(&self) -> usize {
        let queued = if let State::Queuing { bytes, .. } = &self.state { *bytes } else { 0 };
        queued + self.watched_bytes
    }

    /// Queued commands; -1 outside a transaction.
    pub(super) fn queued(&self) -> i64 {
        match &self.state {
            State::Outside => -1,
            State::Queuing { steps, .. } => steps.len() as i64,
            State::Aborted | State::Refused => 0,
        }
    }

    /// The database that a queued `SELECT` chose.
    pub(super) fn selected(&self) -> Option<Database> {
        self.selected
    }

    /// Decides about a request for a database, of `bytes`, of which `room` may still be queued. `shards_of`
    /// looks up keys.
    pub(super) fn admit(
        &mut self,
        request: Result<Command, CommandError>,
        database: Database,
        bytes: usize,
        room: usize,
        shards_of: impl FnOnce(&[Bytes]) -> Vec<Option<ShardId>>,
    ) -> Admitted {
        match (&self.state, request) {
            (_, Ok(command @ (Command::Quit | Command::Reset))) => {
                self.end();
                Admitted::Run(command)
            }
            (State::Outside, Ok(Command::Exec)) => refuse("ERR EXEC without MULTI"),
            (State::Outside, Ok(Command::Discard)) => refuse("ERR DISCARD without MULTI"),
            (_, Ok(Command::Discard)) => {
                self.end();
                Admitted::Answer(Reply::OK)
            }
            (_, Ok(Command::Exec)) => self.exec(),
            (State::Outside, Ok(Command::Multi)) => {
                self.state = State::Queuing { steps: Vec::new(), bytes: 0 };
                Admitted::Answer(Reply::OK)
            }
            (State::Outside, Ok(Command::Watch(keys))) => self.watch(keys, database, bytes, room, shards_of),
            (State::Outside, Ok(Command::Unwatch)) => {
                self.end();
                Admitted::Answer(Reply::OK)
            }
            (State::Outside, Ok(command)) => Admitted::Run(command),
            (State::Outside, Err(error)) => {
                if matches!(error, CommandError::Arity { command: "multi" }) {
                    self.refused();
                }
                Admitted::Answer(Reply::error(error))
            }
            (State::Refused, _) => refuse(NOT_STARTED),
            (_, Ok(Command::Multi)) => refuse("ERR MULTI calls can not be nested"),
            (_, Ok(Command::Watch(_))) => refuse("ERR WATCH inside MULTI is not allowed"),
            (_, request) => self.queue(request, database, bytes, room, shards_of),
        }
    }

    /// `MULTI` was refused: what follows must not be executed.
    pub(super) fn refused(&mut self) {
        self.state = State::Refused;
    }

    fn queue(
        &mut self,
        request: Result<Command, CommandError>,
        database: Database,
        bytes: usize,
        room: usize,
        shards_of: impl FnOnce(&[Bytes]) -> Vec<Option<ShardId>>,
    ) -> Admitted {
        let refusal = match &request {
            Err(error) if error.is_about_the_command() => Some(Reply::error(error)),
            Ok(command) if !may_queue(command) => Some(Reply::Error(NOT_ALLOWED.into())),
            Ok(command) => self.place(&command.keys(), database, shards_of).err(),
            Err(_) => None,
        };
        if let Some(refusal) = refusal {
            self.state = State::Aborted;
            return Admitted::Answer(refusal);
        }
        if let State::Queuing { steps, bytes: queued } = &mut self.state {
            if steps.len() == COMMANDS_MAX || bytes > room || *queued + bytes > QUEUED_BYTES_MAX {
                self.state = State::Aborted;
                return refuse(TOO_MUCH);
            }
            *queued += bytes;
            if let Ok(Command::Select(database)) = &request {
                self.selected = Some(*database);
            }
            steps.push(request.map_or_else(Queued::Invalid, Queued::Command));
        }
        Admitted::Answer(Reply::Simple("QUEUED"))
    }

    fn watch(
        &mut self,
        keys: Vec<Bytes>,
        database: Database,
        bytes: usize,
        room: usize,
        shards_of: impl FnOnce(&[Bytes]) -> Vec<Option<ShardId>>,
    ) -> Admitted {
        let watched_keys = self.watched_keys + keys.len();
        if watched_keys > WATCHED_KEYS_MAX || bytes > room {
            return refuse("ERR too many watched keys");
        }
        if let Err(refusal) = self.place(&keys, database, shards_of) {
            return Admitted::Answer(refusal);
        }
        self.watched_keys = watched_keys;
        self.watched_bytes += bytes;
        Admitted::Watch(keys, self.watch.get_or_insert_default().clone())
    }

    /// Refuses keys of another database or shard than those before. Keys whose shard is not known are left to
    /// `EXEC`.
    fn place(
        &mut self,
        keys: &[Bytes],
        database: Database,
        shards_of: impl FnOnce(&[Bytes]) -> Vec<Option<ShardId>>,
    ) -> Result<(), Reply> {
        if keys.is_empty() {
            return Ok(());
        }
        let (of_others, mut shard) = self.home.unwrap_or((database, None));
        if database != of_others {
            return Err(Reply::Error(CROSS_DATABASE.into()));
        }
        for of_key in shards_of(keys).into_iter().flatten() {
            if *shard.get_or_insert(of_key) != of_key {
                return Err(Reply::Error(CROSS_SLOT.into()));
            }
        }
        self.home = Some((database, shard));
        Ok(())
    }

    fn exec(&mut self) -> Admitted {
        match std::mem::take(self) {
            Self { state: State::Queuing { steps: queued, bytes }, watch, home, selected, .. } => {
                let database = home.map(|(database, _)| database);
                Admitted::Exec(Transaction { queued, bytes, watch, database, selected })
            }
            _ => refuse(ABORTED),
        }
    }

    fn end(&mut self) {
        *self = Self::default();
    }
}

/// Whether a command may be part of a transaction: it is about keys, or about the connection alone.
fn may_queue(command: &Command) -> bool {
    let about_connection = matches!(
        command,
        Command::Ping(_)
            | Command::Echo(_)
            | Command::Select(_)
            | Command::Client(_)
            | Command::Introspection(_)
            | Command::ConfigGet(_)
            | Command::Time
            | Command::Help(_)
            | Command::Script(_)
            | Command::Eval(_)
            | Command::Unwatch
    );
    about_connection || !command.keys().is_empty()
}

fn refuse(text: &'static str) -> Admitted {
    Admitted::Answer(Reply::Error(text.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse::testing::parsed;

    /// Keys live in the shard of their first letter.
    fn shards_of(keys: &[Bytes]) -> Vec<Option<ShardId>> {
        keys.iter().map(|key| Some(ShardId(u64::from(key[0])))).collect()
    }

    fn admit(multi: &mut Multi, line: &str) -> Admitted {
        let database = multi.selected().unwrap_or_default();
        multi.admit(parsed(line), database, 100, 1_000, shards_of)
    }

    /// What becomes of each line, in one word or the error's text.
    fn outcomes(lines: &[&str]) -> Vec<String> {
        let mut multi = Multi::default();
        let outcome = |line: &&str| match admit(&mut multi, line) {
            Admitted::Run(_) => "run".to_owned(),
            Admitted::Answer(Reply::Error(text)) => text.into_owned(),
            Admitted::Answer(Reply::Simple(text)) => text.to_owned(),
            Admitted::Answer(other) => format!("{other:?}"),
            Admitted::Watch(..) => "watch".to_owned(),
            Admitted::Exec(Transaction { queued, watch, database, selected, .. }) => {
                let watches = if watch.is_some() { " w" } else { "" };
                let selects = selected.map(|selected| format!(" in {} then {selected}", database.unwrap_or_default()));
                format!("exec {}{watches}{}", queued.len(), selects.unwrap_or_default())
            }
        };
        lines.iter().map(outcome).collect()
    }

    #[test]
    fn commands_are_queued_between_multi_and_exec() {
        assert_eq!(
            outcomes(&["GET a", "MULTI", "GET a", "PING", "EXEC", "GET a"]),
            ["run", "OK", "QUEUED", "QUEUED", "exec 2", "run"]
        );
        assert_eq!(outcomes(&["MULTI", "DEL a", "DISCARD", "GET a"]), ["OK", "QUEUED", "OK", "run"]);
        assert_eq!(outcomes(&["EXEC", "DISCARD"]), ["ERR EXEC without MULTI", "ERR DISCARD without MULTI"]);
        assert_eq!(
            outcomes(&["MULTI", "MULTI", "WATCH a", "EXEC"]),
            ["OK", "ERR MULTI calls can not be nested", "ERR WATCH inside MULTI is not allowed", "exec 0"]
        );
        assert_eq!(outcomes(&["MULTI", "DEL a", "RESET", "EXEC"])[2..], ["run", "ERR EXEC without MULTI"]);
    }

    #[test]
    fn a_refused_command_aborts_the_transaction() {
        for (line, text) in [
            ("NOPE", "ERR unknown command"),
            ("GET", "ERR wrong number of arguments"),
            ("CLIENT NOPE", "ERR unknown subcommand"),
            ("SCAN 0", NOT_ALLOWED),
            ("DBSIZE", NOT_ALLOWED),
            ("MGET a b", CROSS_SLOT),
        ] {
            let outcomes = outcomes(&["MULTI", "SET a 1", line, "SET a 2", "EXEC", "GET a"]);
            assert!(outcomes[2].starts_with(text), "{line}: {outcomes:?}");
            assert_eq!(outcomes[3..], ["QUEUED", ABORTED, "run"], "{line}");
        }
    }

    #[test]
    fn an_invalid_argument_is_the_reply_of_its_command_only() {
        assert_eq!(outcomes(&["MULTI", "SET a 1 FOO", "INCRBY a x", "EXEC"])[1..], ["QUEUED", "QUEUED", "exec 2"]);
    }

    #[test]
    fn nothing_after_a_refused_multi_is_executed() {
        let outcomes = outcomes(&["MULTI x", "INCR a", "NOPE", "MULTI", "EXEC", "INCR a"]);
        assert!(outcomes[0].starts_with("ERR wrong number of arguments"));
        assert_eq!(outcomes[1..], [NOT_STARTED, NOT_STARTED, NOT_STARTED, ABORTED, "run"]);
    }

    #[test]
    fn all_keys_of_a_transaction_and_all_watched_keys_share_a_shard() {
        assert_eq!(
            outcomes(&["WATCH a", "WATCH b", "WATCH a2", "MULTI", "GET a3", "EXEC"]),
            ["watch", CROSS_SLOT, "watch", "OK", "QUEUED", "exec 1 w"]
        );
        assert_eq!(outcomes(&["WATCH a", "MULTI", "GET b", "GET a", "EXEC"])[2..], [CROSS_SLOT, "QUEUED", ABORTED]);
        assert_eq!(outcomes(&["WATCH a", "UNWATCH", "MULTI", "GET b", "EXEC"])[2..], ["OK", "QUEUED", "exec 1"]);
        assert_eq!(outcomes(&["WATCH a", "MULTI", "DISCARD", "WATCH b"])[3], "watch");
    }

    #[test]
    fn all_keys_of_a_transaction_and_all_watched_keys_are_of_one_database() {
        assert_eq!(
            outcomes(&["MULTI", "SELECT 2", "GET a", "SELECT 3", "EXEC"])[1..],
            ["QUEUED", "QUEUED", "QUEUED", "exec 3 in 2 then 3"]
        );
        assert_eq!(outcomes(&["MULTI", "GET a", "SELECT 2", "GET a", "EXEC"])[3..], [CROSS_DATABASE, ABORTED]);
        assert_eq!(outcomes(&["WATCH a", "MULTI", "SELECT 2", "GET a", "EXEC"])[3..], [CROSS_DATABASE, ABORTED]);
        assert_eq!(
            outcomes(&["MULTI", "SELECT 2", "DISCARD", "MULTI", "GET a", "EXEC"])[4..],
            ["QUEUED", "exec 1"],
            "what was discarded selects nothing"
        );
        assert_eq!(outcomes(&["MULTI", "SELECT 16", "GET a", "EXEC"])[1..], ["QUEUED", "QUEUED", "exec 2"]);
    }

    #[test]
    fn a_transaction_above_its_limits_is_discarded_and_its_memory_freed() {
        let mut multi = Multi::default();
        admit(&mut multi, "MULTI");
        admit(&mut multi, "SET a 1");
        assert_eq!(multi.held_bytes(), 100);
        let too_much = multi.admit(parsed("SET a 2"), Database::default(), 1_001, 1_000, shards_of);
        assert!(matches!(too_much, Admitted::Answer(Reply::Error(text)) if text == TOO_MUCH));
        assert_eq!(multi.held_bytes(), 0);
        assert!(matches!(admit(&mut multi, "EXEC"), Admitted::Answer(Reply::Error(text)) if text == ABORTED));
        let keys = vec!["a"; WATCHED_KEYS_MAX + 1].join(" ");
        let refused = multi.admit(parsed(&format!("WATCH {keys}")), Database::default(), 100, 1_000, shards_of);
        assert!(matches!(refused, Admitted::Answer(Reply::Error(_))));
    }
}
