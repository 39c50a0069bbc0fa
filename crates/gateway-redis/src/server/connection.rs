//! One connection: decodes requests into the pipeline window, runs them on the store, and sends replies in
//! order.
//!
//! One task owns all of it; calls are futures inside that task. It stops reading while too many requests or
//! bytes are held (see [`super::ServerConfig`]), so that a client that sends faster than it is served, or
//! does not read its replies, is slowed down by its own socket. Replies that are ready at the same time are
//! sent in one write.

use std::{
    collections::VecDeque,
    future::{Future, pending, poll_fn},
    io,
    sync::{Arc, atomic::Ordering},
    task::Poll,
    time::{Duration, Instant},
};

use bytes::{Buf as _, Bytes, BytesMut};
use flotilla_gateway::{ClientStream, StoreError};
use futures_util::{
    StreamExt as _,
    future::{BoxFuture, FutureExt as _},
    stream::FuturesUnordered,
};
use tokio::{io::Interest, sync::watch};

use super::{
    Shared,
    multi::{Admitted, Multi, Queued},
    session::Session,
};
use crate::{
    Command, CommandError, Decoder, DecoderLimits, Protocol, Reply, ReplyMode, Script, Spec,
    answer::{error_reply, held_bytes},
    clients::Client,
    clock,
    execute::{Answered, COLLECTION, Chain, Job, Step, Watch, exec, read_all, run, watch, write_all},
    parse,
    plan::Plan,
    window::{Access, Footprint, Ordinal, Window},
};

/// Capacity reserved before a read.
const READ_BYTES: usize = 64 << 10;
/// Spare capacity that is enough for a read.
const READ_BYTES_MIN: usize = 4 << 10;
/// Encoded bytes that wait for the socket; further replies are encoded once there is room.
const OUTPUT_BYTES_MAX: usize = 256 << 10;
/// Expected size of the first reply. Large, so that a long pipeline starts only once a real size is known.
const REPLY_BYTES_INITIAL: usize = 256 << 10;
/// How long, and how many bytes, are read after a violation of the protocol, so that the client sees the error.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES_MAX: usize = 64 << 20;
/// Capacity that an empty output buffer may keep.
const IDLE_OUTPUT_BYTES_MAX: usize = 64 << 10;

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
    /// The input holds no further complete request.
    needs_input: bool,
    /// The client has closed its side of the connection.
    is_eof: bool,
    /// No further requests are taken: the client quit or violated the protocol, or the server stops.
    is_closing: bool,
    /// The client violated the protocol, perhaps in the middle of a request that it still sends.
    has_erred: bool,
}

impl Connection {
    pub(super) fn new(stream: ClientStream, shared: Arc<Shared>, client: Arc<Client>) -> Self {
        Self {
            shared,
            stream,
            session: Session::new(client),
            multi: Multi::default(),
            decoder: Decoder::new(DecoderLimits::default()),
            input: BytesMut::new(),
            output: BytesMut::new(),
            window: Window::default(),
            running: FuturesUnordered::new(),
            silent: VecDeque::new(),
            postponed: None,
            reply_bytes: REPLY_BYTES_INITIAL,
            counted_bytes: 0,
            needs_input: true,
            is_eof: false,
            is_closing: false,
            has_erred: false,
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
            if is_last && self.window.is_empty() && self.output.is_empty() && !self.stream.wants_write() {
                return if self.has_erred { self.stream.linger(LINGER_BYTES_MAX, LINGER).await } else { Ok(()) };
            }
            self.count_bytes();
            self.wait(&mut stopping).await?;
        }
    }

    /// Whether another request may start. One at a time is always allowed.
    fn takes_requests(&self) -> bool {
        let config = &self.shared.config;
        let others = self.shared.buffered_bytes.load(Ordering::Relaxed).saturating_sub(self.counted_bytes);
        let own = self.held_bytes();
        !self.is_closing
            && self.postponed.is_none()
            && self.window.len() < config.in_flight_max
            && own < config.buffered_bytes_max
            && (self.window.is_empty() || own.saturating_add(others) < config.buffered_bytes_total_max)
    }

    fn held_bytes(&self) -> usize {
        self.window.held_bytes() + self.output.len() + self.multi.held_bytes()
    }

    /// Bytes that a transaction may still queue. Half of the connection's own are left for everything else.
    fn queue_room(&self) -> usize {
        let config = &self.shared.config;
        let others = self.shared.buffered_bytes.load(Ordering::Relaxed).saturating_sub(self.counted_bytes);
        let total = config.buffered_bytes_total_max.saturating_sub(others.saturating_add(self.held_bytes()));
        total.min((config.buffered_bytes_max / 2).saturating_sub(self.multi.held_bytes()))
    }

    /// Updates this connection's share of the shared byte count.
    fn count_bytes(&mut self) {
        let held = self.held_bytes();
        if held > self.counted_bytes {
            self.shared.buffered_bytes.fetch_add(held - self.counted_bytes, Ordering::Relaxed);
        } else {
            self.shared.buffered_bytes.fetch_sub(self.counted_bytes - held, Ordering::Relaxed);
        }
        self.counted_bytes = held;
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
                    (self.is_closing, self.has_erred) = (true, true);
                }
            }
        }
        if commands > 0 {
            self.shared.commands.fetch_add(commands, Ordering::Relaxed);
            metrics::counter!("flotilla_redis_commands_total").increment(commands);
        }
    }

    /// Accepts a request, unless it must wait for the end of a pause.
    fn take(&mut self, request: Vec<Bytes>, now: Instant, now_ms: u64) {
        let spec = request.first().and_then(|name| Spec::find(name));
        // A server that stops answers what was read.
        if !self.is_closing && self.shared.pause.holds(spec.is_some_and(Spec::writes), now) {
            self.postponed = Some(request);
            return;
        }
        let ordinal = self.window.first() + self.window.len() as u64;
        let before = self.session.reply_mode;
        self.session.connection().used(spec.map_or("unknown", |spec| spec.name), now);
        self.accept(request, now, now_ms);
        self.session.connection().set_queued(self.multi.queued());
        if self.session.reply_mode != ReplyMode::On {
            self.silent.push_back(ordinal);
        }
        if before == ReplyMode::Skip && self.session.reply_mode == ReplyMode::Skip {
            self.session.reply_mode = ReplyMode::On;
        }
    }

    fn accept(&mut self, request: Vec<Bytes>, now: Instant, now_ms: u64) {
        let bytes: usize = request.iter().map(|argument| argument.len() + size_of::<Bytes>()).sum();
        // A refusal inside a transaction aborts it, as an unknown command does.
        let allowed = self.session.authorize(&request, &self.shared.access, now_ms);
        let request = allowed.and_then(|()| parse(request)).and_then(|command| self.with_script(command));
        let (room, store) = (self.queue_room(), &self.shared.store);
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
        self.window.push(footprint, pending, bytes + self.reply_bytes);
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
                    self.spawn(ordinal, protocol, |shared| async move { run(&shared, task, deadline).await });
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
            if self.output.is_empty() {
                if self.output.capacity() > IDLE_OUTPUT_BYTES_MAX {
                    self.output = BytesMut::new();
                }
                return Ok(());
            }
            match self.stream.try_write(&self.output) {
                Ok(written) => self.output.advance(written),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    /// Waits until something can be read or written, a call has finished, or the server stops.
    async fn wait(&mut self, stopping: &mut watch::Receiver<bool>) -> io::Result<()> {
        let reads = self.takes_requests() && !self.is_eof;
        let writes = !self.output.is_empty() || self.stream.wants_write();
        let interest = match (reads, writes) {
            (true, true) => Some(Interest::READABLE | Interest::WRITABLE),
            (true, false) => Some(Interest::READABLE),
            (false, true) => Some(Interest::WRITABLE),
            (false, false) => None,
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
            // An error means that the sender was dropped: the server has stopped, too.
            _ = stopping.wait_for(|stop| *stop), if !self.is_closing => self.is_closing = true,
        }
        Ok(())
    }

    fn read(&mut self) -> io::Result<()> {
        if self.input.capacity() - self.input.len() < READ_BYTES_MIN {
            self.input.reserve(READ_BYTES);
        }
        match self.stream.try_read_buf(&mut self.input) {
            Ok(0) => self.is_eof = true,
            Ok(_) => self.needs_input = false,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.shared.buffered_bytes.fetch_sub(self.counted_bytes, Ordering::Relaxed);
    }
}
