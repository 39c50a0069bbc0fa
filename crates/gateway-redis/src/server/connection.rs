//! One connection: decodes requests into the pipeline window, runs them on the store, and sends replies in
//! order.
//!
//! One task owns all of it; calls are futures inside that task. It stops reading while too many requests or
//! bytes are held (see [`super::ServerConfig`]), so that a client that sends faster than it is served, or
//! does not read its replies, is slowed down by its own socket. Replies that are ready at the same time are
//! sent in one write.
//!
//! Everything that a connection holds counts on the node's budget. A connection that must close to relieve
//! the budget, or whose request is overdue, gets an error first where that can be read.

mod ending;

use std::{
    collections::VecDeque,
    future::{Future, pending, poll_fn},
    io,
    sync::{Arc, atomic::Ordering},
    task::Poll,
    time::Instant,
};

use bytes::{Buf as _, Bytes, BytesMut};
use flotilla_gateway::{Account, Charge, ClientStream, StoreError};
use futures_util::{
    StreamExt as _,
    future::{BoxFuture, FutureExt as _},
    stream::FuturesUnordered,
};
use tokio::{io::Interest, sync::watch, task::yield_now, time::sleep_until};

use super::{
    Shared,
    deadlines::{Deadlines, Overdue},
    multi::{Admitted, Multi, Queued},
    session::Session,
};
use crate::{
    Command, CommandError, Decoder, DecoderLimits, Protocol, Reply, ReplyMode, Script, Spec, TABLE,
    answer::{error_reply, held_bytes},
    clients::Client,
    clock,
    execute::{Answered, COLLECTION, Chain, Job, Step, Watch, exec, read_all, run, watch, write_all},
    parse::parse_as,
    plan::Plan,
    window::{Access, Footprint, Ordinal, Window},
};

/// Capacity for a read: it doubles when a read fills it, so that quiet connections hold little.
const READ_BYTES_MIN: usize = 4 << 10;
/// Upper bound of that capacity.
const READ_BYTES_MAX: usize = 64 << 10;
/// Encoded bytes that wait for the socket; further replies are encoded once there is room.
const OUTPUT_BYTES_MAX: usize = 256 << 10;
/// Expected size of the first reply. Large, so that a long pipeline starts only once a real size is known.
const REPLY_BYTES_INITIAL: usize = 256 << 10;
/// Capacity that an empty output buffer may keep.
const IDLE_OUTPUT_BYTES_MAX: usize = 64 << 10;

const TOO_MANY_BYTES: &str = "TRYAGAIN the clients of this node hold too many bytes; this request was not executed";
const OVERDUE: &str = "ERR the request did not arrive in time; it was not executed";

/// A request that waits until it may run.
struct Pending {
    work: Work,
    protocol: Protocol,
    deadline: Instant,
}

/// What a request does.
enum Work {
    Plan(Plan),
    Watch(Vec<Bytes>, Arc<Watch>),
    Exec(Vec<Step>, Option<Arc<Watch>>),
}

pub(super) struct Connection {
    shared: Arc<Shared>,
    stream: ClientStream,
    session: Session,
    multi: Multi,
    decoder: Decoder,
    input: BytesMut,
    /// Capacity for the next read.
    read_bytes: usize,
    /// Bytes read since other tasks last had their turn.
    unyielded_bytes: usize,
    output: BytesMut,
    window: Window<Pending, (Protocol, Reply)>,
    running: FuturesUnordered<BoxFuture<'static, Vec<Answered>>>,
    /// Requests that are not to be answered.
    silent: VecDeque<Ordinal>,
    /// A request that waits for the end of a pause.
    postponed: Option<Vec<Bytes>>,
    /// Approximately the largest of the recent replies.
    reply_bytes: usize,
    /// This connection's share of [`Shared::buffered_bytes`].
    counted_bytes: usize,
    account: Arc<Account>,
    /// What is really held, on the node's budget.
    charge: Charge,
    deadlines: Deadlines,
    /// A request was taken since the bytes were last counted.
    has_progressed: bool,
    /// The input holds no further complete request.
    needs_input: bool,
    /// The client has closed its side of the connection.
    is_eof: bool,
    /// No further requests are taken: the client quit or violated the protocol, or got its last reply.
    is_closing: bool,
    /// The client may still be sending when the connection closes.
    lingers: bool,
    /// The server stops; until then input is read.
    read_until: Option<tokio::time::Instant>,
}

impl Connection {
    /// `opened`: when the connection was accepted, before a handshake.
    pub(super) fn new(
        stream: ClientStream,
        opened: Instant,
        account: Account,
        shared: Arc<Shared>,
        client: Arc<Client>,
    ) -> Self {
        Self {
            shared,
            stream,
            session: Session::new(client),
            multi: Multi::default(),
            decoder: Decoder::new(DecoderLimits::default()),
            input: BytesMut::new(),
            read_bytes: READ_BYTES_MIN,
            unyielded_bytes: 0,
            output: BytesMut::new(),
            window: Window::default(),
            running: FuturesUnordered::new(),
            silent: VecDeque::new(),
            postponed: None,
            reply_bytes: REPLY_BYTES_INITIAL,
            counted_bytes: 0,
            charge: account.charge(0),
            account: Arc::new(account),
            deadlines: Deadlines::new(opened.into()),
            has_progressed: false,
            needs_input: true,
            is_eof: false,
            is_closing: false,
            lingers: false,
            read_until: None,
        }
    }

    /// Serves until the client disconnects or the server stops; requests already taken are answered first.
    pub(super) async fn run(mut self, mut stopping: watch::Receiver<bool>) -> io::Result<()> {
        loop {
            self.decode();
            self.start();
            self.send()?;
            if self.takes_requests() && !self.needs_input {
                continue;
            }
            let is_last = self.is_closing || self.is_eof && self.needs_input && self.postponed.is_none();
            if is_last && self.window.is_empty() && !self.has_output() {
                if self.lingers {
                    self.release_requests();
                    self.charge.set(0);
                    self.stream.linger().await?;
                }
                return Ok(());
            }
            self.count_bytes();
            self.wait(&mut stopping).await?;
            // A client that sends without a pause must not keep the thread from other connections and peers.
            if self.unyielded_bytes >= READ_BYTES_MAX {
                self.unyielded_bytes = 0;
                yield_now().await;
            }
        }
    }

    /// Whether another request that has arrived may start. One at a time also starts without room in the
    /// budget, because that frees its bytes.
    fn takes_requests(&self) -> bool {
        self.is_within_limits() && (self.window.is_empty() || self.account.has_room(0))
    }

    /// Whether more input is wanted.
    fn wants_input(&self) -> bool {
        self.is_within_limits() && self.needs_input && !self.is_eof
    }

    /// By how much the input buffer must grow before the next read. Buffers double.
    fn growth(&self) -> usize {
        let (capacity, len) = (self.input.capacity(), self.input.len());
        if capacity - len >= READ_BYTES_MIN { 0 } else { (2 * capacity).max(len + self.read_bytes) - capacity }
    }

    /// Whether another request may start as far as the limits of connections go. One at a time is always
    /// allowed.
    fn is_within_limits(&self) -> bool {
        let config = &self.shared.config;
        let others = self.shared.buffered_bytes.load(Ordering::Relaxed).saturating_sub(self.counted_bytes);
        let own = self.pipeline_bytes();
        !self.is_closing
            && self.postponed.is_none()
            && self.window.len() < config.in_flight_max
            && own < config.buffered_bytes_max
            && (self.window.is_empty() || own.saturating_add(others) < config.buffered_bytes_total_max)
    }

    /// Bytes of requests in flight or queued, and of replies, also of those that are only expected.
    fn pipeline_bytes(&self) -> usize {
        self.window.held_bytes()
            + self.window.expected_bytes()
            + self.output.len()
            + self.multi.held_bytes()
            + self.postponed.as_deref().map_or(0, request_bytes)
    }

    /// Whether replies wait for the socket.
    fn has_output(&self) -> bool {
        !self.output.is_empty() || self.stream.wants_write()
    }

    /// Bytes that a transaction may still queue. Half of the connection's own are left for everything else.
    fn queue_room(&self) -> usize {
        let config = &self.shared.config;
        let others = self.shared.buffered_bytes.load(Ordering::Relaxed).saturating_sub(self.counted_bytes);
        let total = config.buffered_bytes_total_max.saturating_sub(others.saturating_add(self.pipeline_bytes()));
        total.min((config.buffered_bytes_max / 2).saturating_sub(self.multi.held_bytes()))
    }

    /// Updates this connection's share of the shared byte count and of the node's budget.
    fn count_bytes(&mut self) {
        let pipeline = self.pipeline_bytes();
        if pipeline > self.counted_bytes {
            self.shared.buffered_bytes.fetch_add(pipeline - self.counted_bytes, Ordering::Relaxed);
        } else {
            self.shared.buffered_bytes.fetch_sub(self.counted_bytes - pipeline, Ordering::Relaxed);
        }
        self.counted_bytes = pipeline;
        if self.input.is_empty() {
            // An idle connection keeps no buffer.
            self.input = BytesMut::new();
        }
        let input = self.input.capacity() + self.decoder.held_bytes();
        let output = self.output.capacity() + self.stream.held_bytes();
        let waiting = self.multi.held_bytes() + self.postponed.as_deref().map_or(0, request_bytes);
        self.charge.set(self.window.held_bytes() + output + input + waiting);
        let is_partial = self.needs_input && (self.decoder.is_mid_request() || !self.input.is_empty());
        let progressed = std::mem::take(&mut self.has_progressed);
        self.deadlines.request(is_partial, progressed, Instant::now().into());
        // A transaction that is queued waits for its client from the first of its commands to the last.
        let is_queuing = self.multi.held_bytes() > 0 && self.window.is_empty();
        let waits = self.deadlines.waits_for_client() || is_queuing;
        if !waits || progressed && !is_queuing {
            self.account.works();
        }
        if waits {
            self.account.waits_for_client();
        }
    }

    /// Drops what has arrived of requests that did not start.
    fn release_requests(&mut self) {
        self.decoder = Decoder::new(DecoderLimits::default());
        self.input = BytesMut::new();
        (self.multi, self.postponed) = (Multi::default(), None);
        self.needs_input = true;
    }

    /// Drops an incomplete request and closes, with this error if the client can still read it.
    fn give_up(&mut self, reason: &'static str) -> io::Result<()> {
        if self.has_output() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.release_requests();
        self.answer_now(Reply::Error(reason.into()));
        (self.is_closing, self.lingers) = (true, true);
        Ok(())
    }

    /// Moves requests from the input to the window.
    fn decode(&mut self) {
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
        let allowed = self.session.authorize(spec, &request, &self.shared.access, now_ms);
        if allowed.is_err() && spec.is_some_and(|spec| spec.name == "multi") {
            self.multi.refused();
        }
        let request = allowed.and_then(|()| parse_as(spec, request)).and_then(|command| self.with_script(command));
        if matches!(request, Err(CommandError::Database)) {
            // What follows is meant for another database, and must not reach this one.
            self.answer_now(Reply::error(CommandError::Database));
            (self.is_closing, self.lingers) = (true, true);
            return;
        }
        let may_queue = self.multi.queued() >= 0 || matches!(request, Ok(Command::Watch(_)));
        let (room, store) = (if may_queue { self.queue_room() } else { 0 }, &self.shared.store);
        // Without a shard map, `EXEC` reports the error.
        let shards_of = |keys: &[Bytes]| store.shards_of(COLLECTION, keys.iter()).unwrap_or_default();
        match self.multi.admit(request, bytes, room, shards_of) {
            Admitted::Answer(reply) => self.answer_now(reply),
            Admitted::Run(command) => self.run_command(command, bytes, now, now_ms),
            // Later requests may rely on what was read before them, so they wait for the versions.
            Admitted::Watch(keys, watch) => self.push(Footprint::Everything, Work::Watch(keys, watch), bytes, now),
            Admitted::Exec { queued, bytes, watch } => self.exec(queued, bytes, watch, now),
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
            Ok(plan) => self.push(plan.footprint(), Work::Plan(plan), bytes, now),
            Err(command) => {
                let reply = self.session.answer(command, &self.shared.context(now, now_ms));
                self.answer_now(reply);
                self.is_closing |= self.session.has_quit;
            }
        }
    }

    /// Adds a transaction, in which commands about the connection are answered at once.
    fn exec(&mut self, queued: Vec<Queued>, bytes: usize, watch: Option<Arc<Watch>>, now: Instant) {
        let (session, shared) = (&mut self.session, &self.shared);
        let now_ms = clock::wall_ms();
        let mut answer = |command| session.answer(command, &shared.context(now, now_ms));
        let steps: Vec<Step> = queued.into_iter().map(|queued| queued.step(&mut answer)).collect();
        let keys =
            steps.iter().flat_map(|step| if let Step::Run(command) = step { command.keys() } else { Vec::new() });
        let keys = keys.collect();
        self.push(Footprint::Keys(keys, Access::Write), Work::Exec(steps, watch), bytes, now);
    }

    fn push(&mut self, footprint: Footprint, work: Work, bytes: usize, now: Instant) {
        let deadline = now + self.shared.config.request_timeout;
        let pending = Pending { work, protocol: self.session.protocol, deadline };
        self.window.push(footprint, pending, bytes, self.reply_bytes);
    }

    fn answer_now(&mut self, reply: Reply) {
        let bytes = held_bytes(&reply);
        self.window.push_done((self.session.protocol, reply), bytes);
    }

    /// Starts the calls for all requests that are ready.
    fn start(&mut self) {
        let now = Instant::now();
        let (mut chains, mut reads) = (Vec::new(), Vec::new());
        while let Some((ordinal, Pending { work, protocol, deadline })) = self.window.take_ready() {
            if deadline <= now {
                let reply = error_reply(&StoreError::DeadlineExceeded { shard: None });
                self.finish(Answered { ordinal, protocol, reply });
                continue;
            }
            let plan = match work {
                Work::Plan(plan) => plan,
                Work::Watch(keys, of) => {
                    self.spawn(ordinal, protocol, |shared| async move { watch(&shared, keys, &of, deadline).await });
                    continue;
                }
                Work::Exec(steps, watch) => {
                    self.spawn(ordinal, protocol, |shared| async move { exec(&shared, steps, watch, deadline).await });
                    continue;
                }
            };
            match plan {
                Plan::Write(work) => chains.push(self.chain(Job { ordinal, protocol, deadline, work }, now)),
                Plan::Read(work) => reads.push(Job { ordinal, protocol, deadline, work }),
                Plan::Task(task) => {
                    let account = self.account.clone();
                    self.spawn(ordinal, protocol, |shared| async move { run(&shared, &account, task, deadline).await });
                }
            }
        }
        self.running.extend(write_all(&self.shared.store, chains));
        self.running.extend(read_all(&self.shared.store, reads));
    }

    /// Starts a call of its own for a request.
    fn spawn<F>(&self, ordinal: Ordinal, protocol: Protocol, call: impl FnOnce(Arc<Shared>) -> F)
    where
        F: Future<Output = Reply> + Send + 'static,
    {
        let answered = call(self.shared.clone()).map(move |reply| vec![Answered { ordinal, protocol, reply }]);
        self.running.push(answered.boxed());
    }

    /// A write, together with the writes of the same key that follow it.
    fn chain(&mut self, first: Job<crate::plan::Write>, now: Instant) -> Chain {
        let mut last: Ordinal = first.ordinal;
        let mut chain = Chain::new(first);
        let joins = |chain: &Chain, next: &Pending| {
            next.deadline > now && matches!(&next.work, Work::Plan(Plan::Write(write)) if chain.accepts(write))
        };
        while let Some((ordinal, Pending { work: Work::Plan(Plan::Write(work)), protocol, deadline })) =
            self.window.take_follower(last, |next| joins(&chain, next))
        {
            chain.push(Job { ordinal, protocol, deadline, work });
            last = ordinal;
        }
        chain
    }

    fn finish(&mut self, answered: Answered) {
        let Answered { ordinal, protocol, reply } = answered;
        let bytes = held_bytes(&reply);
        self.reply_bytes = bytes.max(self.reply_bytes / 8 * 7);
        self.window.finish(ordinal, (protocol, reply), bytes);
    }

    /// Sends the replies that are ready, as far as the socket accepts them.
    fn send(&mut self) -> io::Result<()> {
        let mut sent = 0;
        loop {
            while self.output.len() < OUTPUT_BYTES_MAX {
                let ordinal = self.window.first();
                let Some((protocol, reply)) = self.window.pop() else { break };
                if self.silent.front() == Some(&ordinal) {
                    self.silent.pop_front();
                } else {
                    reply.encode(protocol, &mut self.output);
                }
            }
            self.end_with_replies()?;
            if self.output.is_empty() {
                if self.output.capacity() > IDLE_OUTPUT_BYTES_MAX {
                    self.output = BytesMut::new();
                }
                // A stream that encrypts may still hold some of them.
                self.deadlines.replies(sent, self.stream.wants_write(), Instant::now().into());
                return Ok(());
            }
            match self.stream.try_write(&self.output) {
                Ok(written) => {
                    self.output.advance(written);
                    sent += written;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.deadlines.replies(sent, true, Instant::now().into());
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Waits until something can be read or written, a call has finished, there is room in the budget, a
    /// deadline is over, the budget wants the connection closed, or the server stops.
    async fn wait(&mut self, stopping: &mut watch::Receiver<bool>) -> io::Result<()> {
        let (growth, account) = (self.growth(), self.account.clone());
        let reads = self.wants_input() && account.has_room(growth);
        let lacks_room = self.wants_input() && !reads;
        let overdue = self.deadlines.next(&self.shared.config);
        let deadline = async {
            match overdue {
                Some((at, what)) => {
                    sleep_until(at).await;
                    what
                }
                None => pending().await,
            }
        };
        let interest = match (reads, self.has_output()) {
            (true, true) => Some(Interest::READABLE | Interest::WRITABLE),
            (true, false) => Some(Interest::READABLE),
            (false, true) => Some(Interest::WRITABLE),
            (false, false) => None,
        };
        let read_until = self.read_until.filter(|_| !self.is_eof && !self.is_closing);
        let last_read = async {
            match read_until {
                Some(at) => sleep_until(at).await,
                None => pending().await,
            }
        };
        let (stream, running) = (&mut self.stream, &mut self.running);
        let socket = async {
            match interest {
                Some(interest) => stream.ready(interest).await,
                None => pending().await,
            }
        };
        // Collects all finished calls, so that their replies are sent together.
        let finished = poll_fn(|context| {
            let mut all = Vec::new();
            while let Poll::Ready(Some(answered)) = running.poll_next_unpin(context) {
                all.extend(answered);
            }
            if all.is_empty() { Poll::Pending } else { Poll::Ready(all) }
        });
        tokio::select! {
            ready = socket => {
                if ready?.is_readable() && reads {
                    self.read()?;
                }
            }
            () = self.session.connection().killed() => return Err(io::ErrorKind::ConnectionAborted.into()),
            () = self.shared.pause.changed(), if self.postponed.is_some() => {}
            answered = finished => answered.into_iter().for_each(|answered| self.finish(answered)),
            () = account.room(growth), if lacks_room => {}
            () = account.closing(), if !self.is_closing => self.give_up(TOO_MANY_BYTES)?,
            what = deadline => match what {
                Overdue::Request if !self.is_closing => self.give_up(OVERDUE)?,
                Overdue::FirstByte | Overdue::Request | Overdue::Replies => {
                    return Err(io::ErrorKind::TimedOut.into());
                }
            },
            // An error means that the sender was dropped: the server has stopped, too.
            () = last_read => self.stop_reading(),
            _ = stopping.wait_for(|stop| *stop), if self.read_until.is_none() => self.stop(),
        }
        Ok(())
    }

    fn read(&mut self) -> io::Result<()> {
        if self.input.capacity() - self.input.len() < READ_BYTES_MIN {
            self.input.reserve(self.read_bytes);
        }
        let spare = self.input.capacity() - self.input.len();
        match self.stream.try_read_buf(&mut self.input) {
            Ok(0) => self.is_eof = true,
            Ok(bytes) => {
                self.needs_input = false;
                self.unyielded_bytes += bytes;
                self.deadlines.received();
                if bytes >= spare {
                    self.read_bytes = (2 * self.read_bytes).min(READ_BYTES_MAX);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

/// Bytes that a request takes.
fn request_bytes(request: &[Bytes]) -> usize {
    request.iter().map(|argument| argument.len() + size_of::<Bytes>()).sum()
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.shared.buffered_bytes.fetch_sub(self.counted_bytes, Ordering::Relaxed);
    }
}
