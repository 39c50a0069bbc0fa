//! One connection: decodes requests into the pipeline window, runs them on the store, and sends replies in
//! order.
//!
//! One task owns all of it; calls are futures inside that task. It stops reading while too many requests or
//! bytes are held (see [`super::ServerConfig`]), so that a client that sends faster than it is served, or
//! does not read its replies, is slowed down by its own socket. Replies that are ready at the same time are
//! sent in one write.
//!
//! Everything that a connection holds counts on the node's budget. A connection that must close to relieve the
//! budget, or whose request is overdue, gets an error first where that can be read.

use std::{
    future::{pending, poll_fn},
    io,
    sync::{Arc, atomic::Ordering},
    task::Poll,
    time::Instant,
};

use bytes::{Buf as _, Bytes, BytesMut};
use flotilla_gateway::{Account, Charge, Linger, StoreError};
use futures_util::{
    StreamExt as _,
    future::{BoxFuture, FutureExt as _},
    stream::FuturesUnordered,
};
use tokio::{io::Interest, net::TcpStream, sync::watch, task::yield_now, time::sleep_until};

use super::{
    Shared,
    deadlines::{Deadlines, Overdue},
    session::Session,
};
use crate::{
    Decoder, DecoderLimits, Protocol, Reply,
    answer::{error_reply, held_bytes},
    clients::Client,
    clock,
    execute::{Answered, Chain, Job, read_all, run, write_all},
    parse,
    plan::Plan,
    window::{Ordinal, Window},
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
    plan: Plan,
    protocol: Protocol,
    deadline: Instant,
}

pub(super) struct Connection {
    shared: Arc<Shared>,
    stream: TcpStream,
    session: Session,
    decoder: Decoder,
    input: BytesMut,
    /// Capacity for the next read.
    read_bytes: usize,
    /// Bytes read since other tasks last had their turn.
    unyielded_bytes: usize,
    output: BytesMut,
    window: Window<Pending, (Protocol, Reply)>,
    running: FuturesUnordered<BoxFuture<'static, Vec<Answered>>>,
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
    /// No further requests are taken: the client quit or violated the protocol, or the server stops.
    is_closing: bool,
    /// The client may still be sending when the connection closes.
    lingers: bool,
}

impl Connection {
    pub(super) fn new(stream: TcpStream, shared: Arc<Shared>, client: Arc<Client>) -> Self {
        let account = Arc::new(shared.budget.open());
        Self {
            shared,
            stream,
            session: Session::new(client),
            decoder: Decoder::new(DecoderLimits::default()),
            input: BytesMut::new(),
            read_bytes: READ_BYTES_MIN,
            unyielded_bytes: 0,
            output: BytesMut::new(),
            window: Window::default(),
            running: FuturesUnordered::new(),
            reply_bytes: REPLY_BYTES_INITIAL,
            counted_bytes: 0,
            charge: account.charge(0),
            account,
            deadlines: Deadlines::new(Instant::now().into()),
            has_progressed: false,
            needs_input: true,
            is_eof: false,
            is_closing: false,
            lingers: false,
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
            let is_last = self.is_closing || self.is_eof && self.needs_input;
            if is_last && self.window.is_empty() && self.output.is_empty() {
                if self.lingers {
                    self.release_input();
                    self.charge.set(0);
                    let mut linger = Linger::default();
                    poll_fn(|context| linger.poll(&mut self.stream, context)).await;
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

    /// Whether another request that has arrived may start. One at a time also starts without room in the budget,
    /// because that frees its bytes.
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
            && self.window.len() < config.in_flight_max
            && own < config.buffered_bytes_max
            && (self.window.is_empty() || own.saturating_add(others) < config.buffered_bytes_total_max)
    }

    /// Bytes of requests in flight, and of replies, also of those that are only expected.
    fn pipeline_bytes(&self) -> usize {
        self.window.held_bytes() + self.window.expected_bytes() + self.output.len()
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
        self.charge.set(self.window.held_bytes() + self.output.capacity() + input);
        let is_partial = self.needs_input && (self.decoder.is_mid_request() || !self.input.is_empty());
        let progressed = std::mem::take(&mut self.has_progressed);
        self.deadlines.request(is_partial, progressed, Instant::now().into());
        if progressed || !self.deadlines.waits_for_client() {
            self.account.works();
        }
        if self.deadlines.waits_for_client() {
            self.account.waits_for_client();
        }
    }

    /// Drops what has arrived of a request.
    fn release_input(&mut self) {
        self.decoder = Decoder::new(DecoderLimits::default());
        self.input = BytesMut::new();
        self.needs_input = true;
    }

    /// Drops an incomplete request and closes, with this error if the client can still read it.
    fn give_up(&mut self, reason: &'static str) -> io::Result<()> {
        if !self.output.is_empty() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.release_input();
        self.answer_now(Reply::Error(reason.into()));
        (self.is_closing, self.lingers) = (true, true);
        Ok(())
    }

    /// Moves requests from the input to the window.
    fn decode(&mut self) {
        if self.needs_input {
            return;
        }
        let (now, now_ms) = (Instant::now(), clock::wall_ms());
        let mut commands = 0;
        while self.takes_requests() {
            match self.decoder.decode(&mut self.input) {
                Ok(Some(request)) => {
                    commands += 1;
                    self.accept(request, now, now_ms);
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

    fn accept(&mut self, request: Vec<Bytes>, now: Instant, now_ms: u64) {
        let bytes: usize = request.iter().map(|argument| argument.len() + size_of::<Bytes>()).sum();
        let command = match parse(request) {
            Ok(command) => command,
            Err(error) => return self.answer_now(Reply::error(error)),
        };
        match Plan::of(command, now_ms) {
            Ok(plan) => {
                let deadline = now + self.shared.config.request_timeout;
                let footprint = plan.footprint();
                let pending = Pending { plan, protocol: self.session.protocol, deadline };
                self.window.push(footprint, pending, bytes, self.reply_bytes);
            }
            Err(command) => {
                let reply = self.session.answer(command, &self.shared.clients, now);
                self.answer_now(reply);
                self.is_closing |= self.session.has_quit;
            }
        }
    }

    fn answer_now(&mut self, reply: Reply) {
        let bytes = held_bytes(&reply);
        self.window.push_done((self.session.protocol, reply), bytes);
    }

    /// Starts the calls for all requests that are ready.
    fn start(&mut self) {
        let now = Instant::now();
        let (mut chains, mut reads) = (Vec::new(), Vec::new());
        while let Some((ordinal, Pending { plan, protocol, deadline })) = self.window.take_ready() {
            if deadline <= now {
                let reply = error_reply(&StoreError::DeadlineExceeded { shard: None });
                self.finish(Answered { ordinal, protocol, reply });
                continue;
            }
            match plan {
                Plan::Write(work) => chains.push(self.chain(Job { ordinal, protocol, deadline, work }, now)),
                Plan::Read(work) => reads.push(Job { ordinal, protocol, deadline, work }),
                Plan::Task(task) => {
                    let (shared, account) = (self.shared.clone(), self.account.clone());
                    let reply = async move { run(&shared, &account, task, deadline).await };
                    let answered = reply.map(move |reply| vec![Answered { ordinal, protocol, reply }]);
                    self.running.push(answered.boxed());
                }
            }
        }
        self.running.extend(write_all(&self.shared.store, chains));
        self.running.extend(read_all(&self.shared.store, reads));
    }

    /// A write, together with the writes of the same key that follow it.
    fn chain(&mut self, first: Job<crate::plan::Write>, now: Instant) -> Chain {
        let mut last: Ordinal = first.ordinal;
        let mut chain = Chain::new(first);
        let joins = |chain: &Chain, next: &Pending| {
            next.deadline > now && matches!(&next.plan, Plan::Write(write) if chain.accepts(write))
        };
        while let Some((ordinal, Pending { plan: Plan::Write(work), protocol, deadline })) =
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
            while self.output.len() < OUTPUT_BYTES_MAX
                && let Some((protocol, reply)) = self.window.pop()
            {
                reply.encode(protocol, &mut self.output);
            }
            if self.output.is_empty() {
                if self.output.capacity() > IDLE_OUTPUT_BYTES_MAX {
                    self.output = BytesMut::new();
                }
                self.deadlines.replies(sent, false, Instant::now().into());
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
        let interest = match (reads, !self.output.is_empty()) {
            (true, true) => Some(Interest::READABLE | Interest::WRITABLE),
            (true, false) => Some(Interest::READABLE),
            (false, true) => Some(Interest::WRITABLE),
            (false, false) => None,
        };
        let (stream, running) = (&self.stream, &mut self.running);
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
            _ = stopping.wait_for(|stop| *stop), if !self.is_closing => self.is_closing = true,
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
                if bytes == spare {
                    self.read_bytes = (2 * self.read_bytes).min(READ_BYTES_MAX);
                }
            }
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
