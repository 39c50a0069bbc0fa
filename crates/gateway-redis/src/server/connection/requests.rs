//! From bytes to requests: which of them are answered at once, queued, or run.

use std::{sync::atomic::Ordering, time::Instant};

use bytes::Bytes;

use super::{
    super::multi::{self, Admitted},
    Connection,
    calls::{Pending, Work},
    limits::request_bytes,
};
use crate::{
    Command, CommandError, Database, Reply, ReplyMode, Script, Spec, TABLE,
    answer::held_bytes,
    clock,
    execute::Step,
    parse::parse_as,
    plan::Plan,
    window::{Access, Footprint},
};

impl Connection {
    /// Moves requests from the input to the window.
    pub(super) fn decode(&mut self) {
        let postponed = self.postponed.take();
        if self.needs_input && postponed.is_none() {
            return;
        }
        let (now, now_ms) = (Instant::now(), clock::wall_ms());
        let mut commands = 0;
        if let Some(request) = postponed {
            self.take(request, now, now_ms);
        }
        while self.takes_requests() && !self.needs_input {
            // The request before may have authenticated the client.
            self.decoder.set_sender(self.session.sender(&self.shared.access));
            match self.decoder.decode(&mut self.input) {
                Ok(Some(request)) => {
                    commands += 1;
                    self.take(request, now, now_ms);
                }
                Ok(None) => {
                    self.needs_input = true;
                    break;
                }
                Err(error) => {
                    self.answer_now(Reply::error(error));
                    (self.is_closing, self.lingers) = (true, true);
                }
            }
        }
        if commands > 0 {
            self.has_progressed = true;
            self.shared.commands.fetch_add(commands, Ordering::Relaxed);
            metrics::counter!("flotilla_redis_commands_total").increment(commands);
        }
    }

    /// Accepts a request, unless it must wait for the end of a pause.
    fn take(&mut self, request: Vec<Bytes>, now: Instant, now_ms: u64) {
        let place = request.first().and_then(|name| Spec::place_of(name));
        let spec = place.map(|place| &TABLE[place]);
        // A server that stops answers what was read.
        if !self.is_closing && self.read_until.is_none() && self.shared.pause.holds(spec.is_some_and(Spec::writes), now)
        {
            self.postponed = Some(request);
            return;
        }
        let ordinal = self.window.first() + self.window.len() as u64;
        let before = self.session.reply_mode;
        self.session.connection().used(place, now);
        self.accept(spec, request, now, now_ms);
        self.session.connection().set_queued(self.multi.queued());
        if self.session.reply_mode != ReplyMode::On {
            self.silent.push_back(ordinal);
        }
        if before == ReplyMode::Skip && self.session.reply_mode == ReplyMode::Skip {
            self.session.reply_mode = ReplyMode::On;
        }
    }

    fn accept(&mut self, spec: Option<&'static Spec>, request: Vec<Bytes>, now: Instant, now_ms: u64) {
        let bytes = request_bytes(&request);
        // A refusal inside a transaction aborts it, as an unknown command does.
        let database = self.multi.selected().unwrap_or(self.session.database());
        let allowed = self.session.authorize(spec, &request, database, &self.shared.access, now_ms);
        if allowed.is_err() && spec.is_some_and(|spec| spec.name == "multi") {
            self.multi.refused();
        }
        let request = allowed.and_then(|()| parse_as(spec, request));
        let request =
            request.and_then(|command| command.within(database)).and_then(|command| self.with_script(command));
        let may_queue = self.multi.queued() >= 0 || matches!(request, Ok(Command::Watch(_)));
        let (room, keyspace) = (if may_queue { self.queue_room() } else { 0 }, self.keyspace(database));
        // Without a shard map, `EXEC` reports the error.
        let shards_of = |keys: &[Bytes]| keyspace.shards_of(keys.iter()).unwrap_or_default();
        match self.multi.admit(request, database, bytes, room, shards_of) {
            Admitted::Answer(reply) => self.answer_now(reply),
            Admitted::Run(command) => self.run_command(command, bytes, now, now_ms),
            // Later requests may rely on what was read before them, so they wait for the versions.
            Admitted::Watch(keys, watch) => {
                self.push(Footprint::Everything, Work::Watch(keys, watch), database, bytes, now);
            }
            Admitted::Exec(transaction) => self.exec(transaction, now),
        }
    }

    /// Finds the text of a script that is named by its digest, and remembers one that is given.
    fn with_script(&self, mut command: Command) -> Result<Command, CommandError> {
        if let Command::Eval(eval) = &mut command {
            match &eval.script {
                Script::Text(text) => drop(self.shared.scripts.insert(text)),
                Script::Digest(digest) => {
                    eval.script = Script::Text(self.shared.scripts.find(digest).ok_or(CommandError::NoScript)?);
                }
            }
        }
        Ok(command)
    }

    fn run_command(&mut self, command: Command, bytes: usize, now: Instant, now_ms: u64) {
        match Plan::of(command, now_ms) {
            Ok(plan) => self.push(plan.footprint(), Work::Plan(plan), self.session.database(), bytes, now),
            Err(command) => {
                let reply = self.session.answer(command, &self.shared.context(now, now_ms));
                self.answer_now(reply);
                self.is_closing |= self.session.has_quit;
            }
        }
    }

    /// Adds a transaction, in which commands about the connection are answered at once.
    fn exec(&mut self, transaction: multi::Transaction, now: Instant) {
        let multi::Transaction { queued, bytes, watch, database, selected } = transaction;
        let (session, shared) = (&mut self.session, &self.shared);
        let now_ms = clock::wall_ms();
        let mut answer = |command| match command {
            // Only what is executed selects.
            Command::Select(_) => Reply::OK,
            other => session.answer(other, &shared.context(now, now_ms)),
        };
        let steps: Vec<Step> = queued.into_iter().map(|queued| queued.step(&mut answer)).collect();
        let keys =
            steps.iter().flat_map(|step| if let Step::Run(command) = step { command.keys() } else { Vec::new() });
        let (keys, database) = (keys.collect(), database.unwrap_or(session.database()));
        self.push(Footprint::Keys(keys, Access::Write), Work::Exec(steps, watch), database, bytes, now);
        let ordinal = self.window.first() + self.window.len() as u64 - 1;
        self.selecting = selected.map(|selected| (ordinal, selected));
    }

    fn push(&mut self, footprint: Footprint, work: Work, database: Database, bytes: usize, now: Instant) {
        let deadline = now + self.shared.config.request_timeout;
        let pending = Pending { work, database, protocol: self.session.protocol, deadline };
        self.window.push(footprint, pending, bytes, self.reply_bytes);
    }

    pub(super) fn answer_now(&mut self, reply: Reply) {
        let bytes = held_bytes(&reply);
        self.window.push_done((self.session.protocol, reply), bytes);
    }
}
