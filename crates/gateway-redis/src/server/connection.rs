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

mod calls;
mod ending;
mod limits;
mod requests;

use std::{
    collections::VecDeque,
    future::{pending, poll_fn},
    io,
    sync::{Arc, atomic::Ordering},
    task::Poll,
    time::Instant,
};

use bytes::{Buf as _, Bytes, BytesMut};
use flotilla_gateway::{Account, Charge, ClientStream};
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use tokio::{io::Interest, sync::watch, task::yield_now, time::sleep_until};

use self::calls::Pending;
use super::{
    Shared,
    deadlines::{Deadlines, Overdue},
    multi::Multi,
    session::Session,
};
use crate::{
    Database, Decoder, DecoderLimits, Protocol, Reply,
    clients::Client,
    execute::{Call, Done},
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

/// One connection.
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
    running: FuturesUnordered<Call>,
    /// Requests that are not to be answered.
    silent: VecDeque<Ordinal>,
    /// A request that waits for the end of a pause.
    postponed: Option<Vec<Bytes>>,
    /// A transaction that selects a database if it is executed. What follows it waits for its outcome.
    selecting: Option<(Ordinal, Database)>,
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
            selecting: None,
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

    /// Whether replies wait for the socket.
    fn has_output(&self) -> bool {
        !self.output.is_empty() || self.stream.wants_write()
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
            while let Poll::Ready(Some(done)) = running.poll_next_unpin(context) {
                all.push(done);
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
            all = finished => {
                for Done { answered, rest } in all {
                    answered.into_iter().for_each(|answered| self.finish(answered));
                    self.running.extend(rest);
                }
            }
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
            // Reserving would double it.
            let mut grown = BytesMut::with_capacity(self.grown());
            grown.extend_from_slice(&self.input);
            self.input = grown;
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

impl Drop for Connection {
    fn drop(&mut self) {
        self.shared.buffered_bytes.fetch_sub(self.counted_bytes, Ordering::Relaxed);
    }
}
