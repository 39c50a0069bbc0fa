//! One connection: decodes requests into the pipeline window, runs them on the store, and sends replies in
//! order.
//!
//! One task owns all of it; calls are futures inside that task. It stops reading while too many requests or
//! bytes are held (see [`super::ServerConfig`]), so that a client that sends faster than it is served, or
//! does not read its replies, is slowed down by its own socket. Replies that are ready at the same time are
//! sent in one write.

use std::{
    future::{pending, poll_fn},
    io,
    sync::{Arc, atomic::Ordering},
    task::Poll,
    time::Instant,
};

use bytes::{Buf as _, Bytes, BytesMut};
use flotilla_gateway::{ClientStream, StoreError};
use futures_util::{
    StreamExt as _,
    future::{BoxFuture, FutureExt as _},
    stream::FuturesUnordered,
};
use tokio::{io::Interest, sync::watch};

use super::{Shared, session::Session};
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

/// Capacity reserved before a read.
const READ_BYTES: usize = 64 << 10;
/// Spare capacity that is enough for a read.
const READ_BYTES_MIN: usize = 4 << 10;
/// Encoded bytes that wait for the socket; further replies are encoded once there is room.
const OUTPUT_BYTES_MAX: usize = 256 << 10;
/// Expected size of the first reply. Large, so that a long pipeline starts only once a real size is known.
const REPLY_BYTES_INITIAL: usize = 256 << 10;
/// Capacity that an empty output buffer may keep.
const IDLE_OUTPUT_BYTES_MAX: usize = 64 << 10;

/// A request that waits until it may run.
struct Pending {
    plan: Plan,
    protocol: Protocol,
    deadline: Instant,
}

pub(super) struct Connection {
    shared: Arc<Shared>,
    stream: ClientStream,
    session: Session,
    decoder: Decoder,
    input: BytesMut,
    output: BytesMut,
    window: Window<Pending, (Protocol, Reply)>,
    running: FuturesUnordered<BoxFuture<'static, Vec<Answered>>>,
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
}

impl Connection {
    pub(super) fn new(stream: ClientStream, shared: Arc<Shared>, client: Arc<Client>) -> Self {
        Self {
            shared,
            stream,
            session: Session::new(client),
            decoder: Decoder::new(DecoderLimits::default()),
            input: BytesMut::new(),
            output: BytesMut::new(),
            window: Window::default(),
            running: FuturesUnordered::new(),
            reply_bytes: REPLY_BYTES_INITIAL,
            counted_bytes: 0,
            needs_input: true,
            is_eof: false,
            is_closing: false,
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
            if is_last && self.window.is_empty() && self.output.is_empty() && !self.stream.wants_write() {
                return Ok(());
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
            && self.window.len() < config.in_flight_max
            && own < config.buffered_bytes_max
            && (self.window.is_empty() || own.saturating_add(others) < config.buffered_bytes_total_max)
    }

    fn held_bytes(&self) -> usize {
        self.window.held_bytes() + self.output.len()
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
                    self.is_closing = true;
                }
            }
        }
        if commands > 0 {
            self.shared.commands.fetch_add(commands, Ordering::Relaxed);
            metrics::counter!("flotilla_redis_commands_total").increment(commands);
        }
    }

    fn accept(&mut self, request: Vec<Bytes>, now: Instant, now_ms: u64) {
        if let Err(refusal) = self.session.authorize(&request, &self.shared.access, now_ms) {
            return self.answer_now(refusal);
        }
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
                self.window.push(footprint, pending, bytes + self.reply_bytes);
            }
            Err(command) => {
                let reply = self.session.answer(command, &self.shared.clients, &self.shared.access, now, now_ms);
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
                    let shared = self.shared.clone();
                    let reply = async move { run(&shared, task, deadline).await };
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
