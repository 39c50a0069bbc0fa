//! One row: runs a workload on a system for a while, and measures latencies and resource usage.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use hdrhistogram::Histogram;

use super::{
    keys::{Keys, Random},
    load::{Driver, LoadOptions, Next, drive},
    processes::{Usage, machine_cpu},
    protocol::{Ticket, Wire},
    workload::{Operation, Values, Workload},
};

/// Longest latency that is recorded exactly, in microseconds.
const LATENCY_US_MAX: u64 = 60_000_000;
/// Connections while filling in keys, and requests in flight on each.
const FILL_CONNECTIONS: usize = 6;
const FILL_IN_FLIGHT: usize = 128;

/// The kind of a system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    Flotilla,
    Etcd,
    Redis,
    /// Running servers named by their addresses.
    External,
}

/// Servers that hold the same data.
#[derive(Debug, Clone)]
pub(super) struct System {
    pub(super) family: Family,
    pub(super) name: String,
    pub(super) wire: Wire,
    /// Server addresses, used round-robin.
    pub(super) servers: Vec<SocketAddr>,
    /// Process ids of the servers; empty if unknown.
    pub(super) pids: Vec<u32>,
}

/// The load: connections, and requests in flight on each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Concurrency {
    pub(super) connections: usize,
    pub(super) in_flight: usize,
}

impl Concurrency {
    pub(super) const fn requests(self) -> usize {
        self.connections * self.in_flight
    }

    /// The same number of requests, each on its own connection.
    pub(super) const fn unpipelined(self) -> Self {
        Self { connections: self.requests(), in_flight: 1 }
    }
}

/// Duration of a measurement.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timing {
    /// Not measured.
    pub(super) warm_up: Duration,
    pub(super) time: Duration,
}

/// The result of a measurement.
#[derive(Debug)]
pub(super) struct Outcome {
    /// Latencies in microseconds of responses other than refusals.
    pub(super) latencies: Histogram<u64>,
    pub(super) refused: u64,
    pub(super) first_refusal: Option<String>,
    pub(super) elapsed: Duration,
    /// Usage of each server process during the measurement; peak memory since its start. Empty if unknown.
    pub(super) servers: Vec<Usage>,
    /// CPU time of the load generator.
    pub(super) load_cpu: Duration,
    /// CPU time that the machine spent on everything else, including kernel threads.
    pub(super) others_cpu: Duration,
}

/// Runs a workload, and measures it after the warm-up.
pub(super) fn measure(
    system: &System,
    (workload, keys): (Workload, &Keys),
    concurrency: Concurrency,
    timing: Timing,
    values: &Values,
) -> Result<Outcome> {
    let servers: Vec<_> = system.servers.iter().copied().cycle().take(concurrency.connections).collect();
    let options = LoadOptions { servers: &servers, wire: system.wire, in_flight: concurrency.in_flight, values };
    let mut measured = Measurement {
        workload,
        keys,
        random: Random::new(0),
        pids: &system.pids,
        timing,
        begin: Instant::now(),
        before: None,
        after: None,
        latencies: Histogram::new_with_bounds(1, LATENCY_US_MAX, 3)?,
        refused: 0,
        first_refusal: None,
    };
    drive(&options, &mut measured).with_context(|| format!("{}, {}", system.name, workload.name()))?;
    measured.outcome()
}

/// Writes each key below `keys` once.
pub(super) fn fill(system: &System, keys: u64, values: &Values) -> Result<()> {
    let servers: Vec<_> = system.servers.iter().copied().cycle().take(FILL_CONNECTIONS).collect();
    let options = LoadOptions { servers: &servers, wire: system.wire, in_flight: FILL_IN_FLIGHT, values };
    let mut filling = Fill { next: 0, keys, refusal: None };
    drive(&options, &mut filling).with_context(|| format!("cannot fill {}", system.name))?;
    filling.refusal.map_or(Ok(()), |refusal| Err(anyhow!("{} refuses a key: {refusal}", system.name)))
}

struct Fill {
    next: u64,
    keys: u64,
    refusal: Option<String>,
}

impl Driver for Fill {
    fn next(&mut self, _: usize, _: Instant) -> Next {
        let key = self.next;
        if key >= self.keys || self.refusal.is_some() {
            return Next::End;
        }
        self.next += 1;
        Next::Send(Operation::Set, key)
    }

    fn answered(&mut self, _: usize, _: Ticket, _: Instant, refusal: Option<String>) {
        self.refusal = self.refusal.take().or(refusal);
    }
}

/// Time and resource usage at one moment.
#[derive(Debug)]
struct Sample {
    at: Instant,
    servers: Vec<Usage>,
    own: Usage,
    machine: Duration,
}

struct Measurement<'a> {
    workload: Workload,
    keys: &'a Keys,
    random: Random,
    pids: &'a [u32],
    timing: Timing,
    /// End of the warm-up; set when all connections are open.
    begin: Instant,
    before: Option<Sample>,
    after: Option<Sample>,
    latencies: Histogram<u64>,
    refused: u64,
    first_refusal: Option<String>,
}

impl Measurement<'_> {
    fn end(&self) -> Instant {
        self.begin + self.timing.time
    }

    fn sample(&self, at: Instant) -> Sample {
        let servers: Option<Vec<_>> = self.pids.iter().map(|pid| Usage::of(*pid)).collect();
        let own = Usage::of(std::process::id()).unwrap_or_default();
        Sample { at, servers: servers.unwrap_or_default(), own, machine: machine_cpu().unwrap_or_default() }
    }

    fn outcome(self) -> Result<Outcome> {
        let (before, after) =
            (self.before.context("the warm-up did not end")?, self.after.context("the measurement did not end")?);
        ensure!(self.latencies.len() + self.refused > 0, "no response at all");
        let used = |(before, after): (&Usage, &Usage)| Usage {
            cpu: after.cpu.saturating_sub(before.cpu),
            written_bytes: after.written_bytes.saturating_sub(before.written_bytes),
            peak_bytes: after.peak_bytes,
        };
        let servers: Vec<Usage> = before.servers.iter().zip(&after.servers).map(used).collect();
        let load_cpu = after.own.cpu.saturating_sub(before.own.cpu);
        let known = load_cpu + servers.iter().map(|server| server.cpu).sum::<Duration>();
        Ok(Outcome {
            latencies: self.latencies,
            refused: self.refused,
            first_refusal: self.first_refusal,
            elapsed: after.at - before.at,
            servers,
            load_cpu,
            others_cpu: after.machine.saturating_sub(before.machine).saturating_sub(known),
        })
    }
}

impl Driver for Measurement<'_> {
    fn begin(&mut self, now: Instant) {
        self.begin = now + self.timing.warm_up;
    }

    fn next(&mut self, _: usize, now: Instant) -> Next {
        if now >= self.end() {
            return Next::End;
        }
        Next::Send(self.workload.draw(&mut self.random), self.keys.pick(&mut self.random))
    }

    fn answered(&mut self, _: usize, ticket: Ticket, now: Instant, refusal: Option<String>) {
        // Only responses between the two samples count, so that they match the usage.
        if self.before.is_none() || self.after.is_some() {
            return;
        }
        if refusal.is_some() {
            self.refused += 1;
            self.first_refusal = self.first_refusal.take().or(refusal);
        } else {
            self.latencies.saturating_record((now - ticket.sent).as_micros() as u64);
        }
    }

    fn lost(&mut self, requests: usize) -> Result<()> {
        self.refused += requests as u64;
        self.first_refusal.get_or_insert_with(|| "no response".to_owned());
        Ok(())
    }

    fn tick(&mut self, now: Instant) -> Result<()> {
        if self.before.is_none() && now >= self.begin {
            self.before = Some(self.sample(now));
        }
        if self.after.is_none() && now >= self.end() {
            self.after = Some(self.sample(now));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers(measured: &mut Measurement<'_>, at: Instant, sent: Instant) {
        let ticket = Ticket { operation: Operation::Get, sent };
        measured.answered(0, ticket, at, None);
        measured.answered(0, ticket, at, Some("no".to_owned()));
    }

    #[test]
    fn only_responses_between_warm_up_and_end_count() {
        let (start, ms) = (Instant::now(), Duration::from_millis);
        let keys = Keys::Uniform(5);
        let mut measured = Measurement {
            workload: Workload::Get,
            keys: &keys,
            random: Random::new(0),
            pids: &[std::process::id()],
            timing: Timing { warm_up: ms(10), time: ms(10) },
            // In the past, but `begin` resets it when the connections are open.
            begin: start - ms(20),
            before: None,
            after: None,
            latencies: Histogram::new_with_bounds(1, LATENCY_US_MAX, 3).expect("bounds"),
            refused: 0,
            first_refusal: None,
        };
        measured.begin(start);
        for (at, asks) in [(5, true), (12, true), (15, true), (21, false), (25, false)] {
            measured.tick(start + ms(at)).expect("no error");
            assert_eq!(measured.next(0, start + ms(at)) != Next::End, asks);
            answers(&mut measured, start + ms(at), start + ms(at - 2));
        }
        measured.lost(3).expect("lost requests do not end a measurement");
        let outcome = measured.outcome().expect("a beginning and an end");
        assert_eq!((outcome.latencies.len(), outcome.refused), (2, 5));
        assert_eq!((outcome.elapsed, outcome.first_refusal.as_deref()), (ms(9), Some("no")));
        assert!(outcome.latencies.min() >= 1_999 && outcome.servers.len() == 1);
    }
}
