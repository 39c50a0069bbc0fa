//! The closed loop: one thread, any number of connections, and on each of them a fixed number of requests in flight at any time.
//!
//! A new request goes out as soon as an answer is here, never in lockstep with others. All answers that one read brings are taken
//! together, and what they let out leaves in one write. Nothing is allocated per request.

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use mio::{Events, Interest, Poll, Token};

use super::{
    keys::{self, Random},
    protocol::{Admission, Protocol, Request, Ticket, Wire},
    workload::{Operation, Values},
};

/// Longest time without any answer: longer than any of the servers takes to refuse by itself.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// Longest time between two looks at the clock.
const TICK: Duration = Duration::from_millis(5);
/// Bytes of a connection's first buffer for answers, and its largest.
const INPUT_BYTES: usize = 64 << 10;
const INPUT_BYTES_MAX: usize = 32 << 20;
/// Events taken at once.
const EVENTS: usize = 1_024;

/// Where the load goes, and how much of it is on the way.
#[derive(Debug)]
pub(super) struct Lanes<'a> {
    /// One connection for each.
    pub(super) servers: &'a [SocketAddr],
    pub(super) wire: Wire,
    /// On each connection.
    pub(super) in_flight: usize,
    pub(super) values: &'a Values,
}

/// Decides what is asked, and hears what came of it. Connections are numbered in the order of [`Lanes::servers`].
pub(super) trait Driver {
    /// All connections are open. Many take seconds.
    fn begin(&mut self, _now: Instant) {}
    /// What goes out next on a connection that has room for it.
    fn next(&mut self, connection: usize, now: Instant) -> Next;
    /// An answer came; with the reason when it is a refusal.
    fn answered(&mut self, connection: usize, ticket: Ticket, now: Instant, refusal: Option<String>);
    /// So many requests are given up, since nothing has come for [`ANSWER_WITHIN`]. An error ends the run as one.
    fn lost(&mut self, requests: usize) -> Result<()> {
        bail!("{requests} requests have no answer within {ANSWER_WITHIN:?}")
    }
    /// Called often, whether or not answers come.
    fn tick(&mut self, _now: Instant) -> Result<()> {
        Ok(())
    }
}

/// What goes out next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// A request for this key.
    Send(Operation, u64),
    /// Nothing yet: ask again at the next tick.
    Wait,
    /// Nothing any more.
    End,
}

struct Connection {
    stream: mio::net::TcpStream,
    protocol: Box<dyn Protocol>,
    input: Vec<u8>,
    filled: usize,
    output: Vec<u8>,
    written: usize,
    /// Requests that may go out now.
    owed: usize,
    /// The next request, which the server had no room for.
    held: Option<(Operation, u64)>,
    /// The driver had nothing yet.
    waits: bool,
    is_finished: bool,
    random: Random,
}

/// Runs until the driver has no more to ask and everything is answered.
pub(super) fn drive(lanes: &Lanes<'_>, driver: &mut dyn Driver) -> Result<()> {
    let mut poll = Poll::new()?;
    let mut connections = (0..lanes.servers.len()).map(|i| connect(lanes, i)).collect::<Result<Vec<_>>>()?;
    driver.begin(Instant::now());
    for (i, connection) in connections.iter_mut().enumerate() {
        poll.registry().register(&mut connection.stream, Token(i), Interest::READABLE | Interest::WRITABLE)?;
        connection.send(i, lanes, driver)?;
    }
    let (mut events, mut last) = (Events::with_capacity(EVENTS), Instant::now());
    while !connections.iter().all(|connection| connection.is_finished && connection.owed == lanes.in_flight) {
        match poll.poll(&mut events, Some(TICK)) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            polled => polled?,
        }
        driver.tick(Instant::now())?;
        for (i, connection) in connections.iter_mut().enumerate().filter(|(_, connection)| connection.waits) {
            connection.send(i, lanes, driver)?;
        }
        for event in &events {
            let Token(i) = event.token();
            let connection = &mut connections[i];
            let took = connection.pump(i, lanes, driver).with_context(|| format!("{}", lanes.servers[i]))?;
            if took == Took::Answers {
                last = Instant::now();
            }
        }
        if last.elapsed() >= ANSWER_WITHIN {
            driver.lost(connections.iter().map(|connection| lanes.in_flight - connection.owed).sum())?;
            break;
        }
    }
    driver.tick(Instant::now())
}

fn connect(lanes: &Lanes<'_>, i: usize) -> Result<Connection> {
    let server = lanes.servers[i];
    let stream = TcpStream::connect(server).with_context(|| format!("cannot connect to {server}"))?;
    stream.set_nodelay(true)?;
    stream.set_nonblocking(true)?;
    let mut connection = Connection {
        stream: mio::net::TcpStream::from_std(stream),
        protocol: lanes.wire.open(lanes.values.length()),
        input: vec![0; INPUT_BYTES],
        filled: 0,
        output: Vec::new(),
        written: 0,
        owed: lanes.in_flight,
        held: None,
        waits: false,
        is_finished: false,
        random: Random::new(i as u64),
    };
    connection.protocol.begin(&mut connection.output);
    Ok(connection)
}

/// Whether anything was heard.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Took {
    Nothing,
    Answers,
}

impl Connection {
    /// Takes everything that arrived, and sends what may go out.
    fn pump(&mut self, number: usize, lanes: &Lanes<'_>, driver: &mut dyn Driver) -> Result<Took> {
        let mut took = Took::Nothing;
        loop {
            if self.filled == self.input.len() {
                ensure!(self.filled < INPUT_BYTES_MAX, "an answer of more than {INPUT_BYTES_MAX} bytes");
                self.input.resize(2 * self.filled, 0);
            }
            let room = self.input.len() - self.filled;
            match self.stream.read(&mut self.input[self.filled..]) {
                Ok(0) => bail!("the server closed the connection"),
                Ok(read) => {
                    took = Took::Answers;
                    self.filled += read;
                    self.take(number, driver)?;
                    self.send(number, lanes, driver)?;
                    // A socket that gave less than there was room for is empty: its next bytes are a new event.
                    if read < room {
                        return Ok(took);
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.send(number, lanes, driver)?;
        Ok(took)
    }

    fn take(&mut self, number: usize, driver: &mut dyn Driver) -> Result<()> {
        let (now, owed) = (Instant::now(), &mut self.owed);
        let mut on_answer = |ticket, refusal| {
            *owed += 1;
            driver.answered(number, ticket, now, refusal);
        };
        let used = self.protocol.answers(&self.input[..self.filled], &mut self.output, &mut on_answer)?;
        self.input.copy_within(used..self.filled, 0);
        self.filled -= used;
        Ok(())
    }

    fn send(&mut self, number: usize, lanes: &Lanes<'_>, driver: &mut dyn Driver) -> Result<()> {
        let sent = Instant::now();
        self.waits = false;
        while self.owed > 0 && !self.is_finished {
            let held = self.held.take().map(|(operation, key)| Next::Send(operation, key));
            let (operation, key) = match held.unwrap_or_else(|| driver.next(number, sent)) {
                Next::Send(operation, key) => (operation, key),
                Next::Wait => {
                    self.waits = true;
                    break;
                }
                Next::End => {
                    self.is_finished = true;
                    break;
                }
            };
            let value = lanes.values.pick(&mut self.random);
            let request = Request { key: keys::name(key), value, ticket: Ticket { operation, sent } };
            match self.protocol.request(&request, &mut self.output) {
                Admission::Sent => self.owed -= 1,
                Admission::Held => {
                    self.held = Some((operation, key));
                    break;
                }
            }
        }
        self.flush()
    }

    fn flush(&mut self) -> Result<()> {
        while self.written < self.output.len() {
            match self.stream.write(&self.output[self.written..]) {
                Ok(written) => self.written += written,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.output.clear();
        self.written = 0;
        Ok(())
    }
}

#[cfg(test)]
#[path = "load_tests.rs"]
mod tests;
