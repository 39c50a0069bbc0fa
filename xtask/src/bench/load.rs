//! The closed load loop: one thread, any number of connections, and a fixed number of requests in flight on
//! each.
//!
//! A new request is sent as soon as a response arrives, never in lockstep with others. All responses of one
//! read are processed together, and the requests that follow are sent in one write. Nothing is allocated per
//! request.

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

/// Longest time without any response: longer than the servers' own request deadlines.
const RESPONSE_WITHIN: Duration = Duration::from_secs(10);
/// Longest time between two ticks.
const TICK: Duration = Duration::from_millis(5);
/// Initial and maximum size of a connection's receive buffer, in bytes.
const INPUT_BYTES: usize = 64 << 10;
const INPUT_BYTES_MAX: usize = 32 << 20;
/// Events processed per poll.
const EVENTS: usize = 1_024;

/// The connections of a load, and the requests in flight on each.
#[derive(Debug)]
pub(super) struct LoadOptions<'a> {
    /// One connection for each.
    pub(super) servers: &'a [SocketAddr],
    pub(super) wire: Wire,
    /// On each connection.
    pub(super) in_flight: usize,
    pub(super) values: &'a Values,
}

/// Chooses requests and receives their results. Connections are numbered in the order of
/// [`LoadOptions::servers`].
pub(super) trait Driver {
    /// Called when all connections are open, which can take seconds.
    fn begin(&mut self, _now: Instant) {}
    /// The next request of a connection that has a free slot.
    fn next(&mut self, connection: usize, now: Instant) -> Next;
    /// A response arrived, with the reason if it is a refusal.
    fn answered(&mut self, connection: usize, ticket: Ticket, now: Instant, refusal: Option<String>);
    /// `requests` requests are abandoned, because no response arrived for [`RESPONSE_WITHIN`]. An error fails
    /// the run.
    fn lost(&mut self, requests: usize) -> Result<()> {
        bail!("{requests} requests got no response within {RESPONSE_WITHIN:?}")
    }
    /// Called at least every [`TICK`].
    fn tick(&mut self, _now: Instant) -> Result<()> {
        Ok(())
    }
}

/// A driver's decision for a free slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// Send a request for this key.
    Send(Operation, u64),
    /// Nothing yet: call again at the next tick.
    Wait,
    /// No more requests.
    End,
}

struct Connection {
    stream: mio::net::TcpStream,
    protocol: Box<dyn Protocol>,
    input: Vec<u8>,
    filled: usize,
    output: Vec<u8>,
    written: usize,
    /// Requests that may be sent now.
    free_slots: usize,
    /// The next request, if the server's flow control blocked it.
    blocked: Option<(Operation, u64)>,
    /// The driver had no request yet.
    is_waiting: bool,
    is_finished: bool,
    random: Random,
}

/// Runs until the driver has no more requests and all responses have arrived.
pub(super) fn drive(options: &LoadOptions<'_>, driver: &mut dyn Driver) -> Result<()> {
    let mut poll = Poll::new()?;
    let mut connections = (0..options.servers.len()).map(|i| connect(options, i)).collect::<Result<Vec<_>>>()?;
    driver.begin(Instant::now());
    for (i, connection) in connections.iter_mut().enumerate() {
        poll.registry().register(&mut connection.stream, Token(i), Interest::READABLE | Interest::WRITABLE)?;
        connection.send(i, options, driver)?;
    }
    let (mut events, mut last) = (Events::with_capacity(EVENTS), Instant::now());
    while !connections.iter().all(|connection| connection.is_finished && connection.free_slots == options.in_flight) {
        match poll.poll(&mut events, Some(TICK)) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            polled => polled?,
        }
        driver.tick(Instant::now())?;
        for (i, connection) in connections.iter_mut().enumerate().filter(|(_, connection)| connection.is_waiting) {
            connection.send(i, options, driver)?;
        }
        for event in &events {
            let Token(i) = event.token();
            let connection = &mut connections[i];
            let received = connection.pump(i, options, driver).with_context(|| format!("{}", options.servers[i]))?;
            if received == Received::Bytes {
                last = Instant::now();
            }
        }
        if last.elapsed() >= RESPONSE_WITHIN {
            driver.lost(connections.iter().map(|connection| options.in_flight - connection.free_slots).sum())?;
            break;
        }
    }
    driver.tick(Instant::now())
}

fn connect(options: &LoadOptions<'_>, i: usize) -> Result<Connection> {
    let server = options.servers[i];
    let stream = TcpStream::connect(server).with_context(|| format!("cannot connect to {server}"))?;
    stream.set_nodelay(true)?;
    stream.set_nonblocking(true)?;
    let mut connection = Connection {
        stream: mio::net::TcpStream::from_std(stream),
        protocol: options.wire.open(options.values.length()),
        input: vec![0; INPUT_BYTES],
        filled: 0,
        output: Vec::new(),
        written: 0,
        free_slots: options.in_flight,
        blocked: None,
        is_waiting: false,
        is_finished: false,
        random: Random::new(i as u64),
    };
    connection.protocol.begin(&mut connection.output);
    Ok(connection)
}

/// Whether anything was received.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Received {
    Nothing,
    Bytes,
}

impl Connection {
    /// Receives and processes everything that arrived, and sends new requests.
    fn pump(&mut self, number: usize, options: &LoadOptions<'_>, driver: &mut dyn Driver) -> Result<Received> {
        let mut received = Received::Nothing;
        loop {
            if self.filled == self.input.len() {
                ensure!(self.filled < INPUT_BYTES_MAX, "a response of more than {INPUT_BYTES_MAX} bytes");
                self.input.resize(2 * self.filled, 0);
            }
            let room = self.input.len() - self.filled;
            match self.stream.read(&mut self.input[self.filled..]) {
                Ok(0) => bail!("the server closed the connection"),
                Ok(read) => {
                    received = Received::Bytes;
                    self.filled += read;
                    self.process(number, driver)?;
                    self.send(number, options, driver)?;
                    // A short read means that the socket is empty: further bytes raise a new event.
                    if read < room {
                        return Ok(received);
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.send(number, options, driver)?;
        Ok(received)
    }

    fn process(&mut self, number: usize, driver: &mut dyn Driver) -> Result<()> {
        let (now, free_slots) = (Instant::now(), &mut self.free_slots);
        let mut on_answer = |ticket, refusal| {
            *free_slots += 1;
            driver.answered(number, ticket, now, refusal);
        };
        let used = self.protocol.answers(&self.input[..self.filled], &mut self.output, &mut on_answer)?;
        self.input.copy_within(used..self.filled, 0);
        self.filled -= used;
        Ok(())
    }

    fn send(&mut self, number: usize, options: &LoadOptions<'_>, driver: &mut dyn Driver) -> Result<()> {
        let sent = Instant::now();
        self.is_waiting = false;
        while self.free_slots > 0 && !self.is_finished {
            let blocked = self.blocked.take().map(|(operation, key)| Next::Send(operation, key));
            let (operation, key) = match blocked.unwrap_or_else(|| driver.next(number, sent)) {
                Next::Send(operation, key) => (operation, key),
                Next::Wait => {
                    self.is_waiting = true;
                    break;
                }
                Next::End => {
                    self.is_finished = true;
                    break;
                }
            };
            let value = options.values.pick(&mut self.random);
            let request = Request { key: keys::name(key), value, ticket: Ticket { operation, sent } };
            match self.protocol.request(&request, &mut self.output) {
                Admission::Sent => self.free_slots -= 1,
                Admission::Blocked => {
                    self.blocked = Some((operation, key));
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
