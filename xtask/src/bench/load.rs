//! The closed loop: one thread per connection, a fixed number of requests in flight on each.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use hdrhistogram::Histogram;

/// Requests in flight while keys are filled in.
const FILL_BATCH: u64 = 64;
/// Longest latency that is told from longer ones, in microseconds.
const LATENCY_US_MAX: u64 = 60_000_000;

/// How much load, and of what.
#[derive(Debug, Clone)]
pub(super) struct Shape {
    pub(super) connections: usize,
    pub(super) in_flight: usize,
    pub(super) value_bytes: usize,
    pub(super) keys: u64,
    /// Not measured.
    pub(super) warm_up: Duration,
    pub(super) time: Duration,
}

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    /// Write a value.
    Set,
    /// Read one.
    Get,
    /// Add one to a counter.
    Increment,
}

impl Operation {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Set => "SET",
            Self::Get => "GET",
            Self::Increment => "INCR",
        }
    }

    /// The key: counters are kept apart from values.
    pub(super) fn key(self, number: u64) -> String {
        match self {
            Self::Set | Self::Get => format!("bench:{number:08}"),
            Self::Increment => format!("count:{number:08}"),
        }
    }
}

/// One connection.
pub(super) trait Client: Send {
    /// Sends one request per key number, and only then waits for all answers.
    ///
    /// `on_answer` is called once per answer; with the message when it is a refusal. An error ends the connection.
    fn batch(
        &mut self,
        operation: Operation,
        keys: &[u64],
        value: &[u8],
        on_answer: &mut dyn FnMut(Option<String>),
    ) -> Result<()>;
}

/// What came of it.
#[derive(Debug)]
pub(super) struct Outcome {
    /// Latencies in microseconds of answers that were no refusals.
    pub(super) latencies: Histogram<u64>,
    pub(super) refused: u64,
    pub(super) first_refusal: Option<String>,
    pub(super) elapsed: Duration,
}

impl Outcome {
    fn empty() -> Result<Self> {
        let latencies = Histogram::new_with_bounds(1, LATENCY_US_MAX, 3)?;
        Ok(Self { latencies, refused: 0, first_refusal: None, elapsed: Duration::ZERO })
    }

    pub(super) fn answers(&self) -> u64 {
        self.latencies.len() + self.refused
    }
}

/// Writes every key once.
pub(super) fn fill(client: &mut impl Client, shape: &Shape) -> Result<()> {
    let value = vec![b'x'; shape.value_bytes];
    let mut refusal = None;
    for first in (0..shape.keys).step_by(FILL_BATCH as usize) {
        let keys: Vec<u64> = (first..shape.keys.min(first + FILL_BATCH)).collect();
        client.batch(Operation::Set, &keys, &value, &mut |answer| refusal = refusal.take().or(answer))?;
    }
    refusal.map_or(Ok(()), |refusal| Err(anyhow::anyhow!(refusal)))
}

/// Runs `connections` connections with `in_flight` requests each, for the shape's time.
pub(super) fn run<C: Client>(
    shape: &Shape,
    connections: usize,
    in_flight: usize,
    operation: Operation,
    connect: &(impl Fn(usize) -> Result<C> + Sync),
) -> Result<Outcome> {
    let mut total = Outcome::empty()?;
    let clients: Result<Vec<C>> = (0..connections).map(connect).collect();
    let begin = Instant::now() + shape.warm_up;
    let end = begin + shape.time;
    let parts = thread::scope(|scope| {
        let start = |(i, client)| scope.spawn(move || one(client, i, shape, in_flight, operation, begin, end));
        let threads: Vec<_> = clients?.into_iter().enumerate().map(start).collect();
        let join = |thread: thread::ScopedJoinHandle<'_, Result<Outcome>>| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        threads.into_iter().map(join).collect::<Result<Vec<_>>>()
    })?;
    for part in parts {
        total.latencies.add(&part.latencies)?;
        total.refused += part.refused;
        total.first_refusal = total.first_refusal.or(part.first_refusal);
    }
    total.elapsed = shape.time;
    Ok(total)
}

fn one(
    mut client: impl Client,
    number: usize,
    shape: &Shape,
    in_flight: usize,
    operation: Operation,
    begin: Instant,
    end: Instant,
) -> Result<Outcome> {
    let mut outcome = Outcome::empty()?;
    let value = vec![b'x'; shape.value_bytes];
    let mut random = Random::new(number as u64);
    let mut keys = vec![0; in_flight];
    loop {
        keys.fill_with(|| random.next() % shape.keys);
        let sent = Instant::now();
        if sent >= end {
            return Ok(outcome);
        }
        let on_answer = &mut |refusal: Option<String>| {
            let now = Instant::now();
            if now < begin || now >= end {
                return;
            }
            if refusal.is_some() {
                outcome.refused += 1;
                outcome.first_refusal = outcome.first_refusal.take().or(refusal);
            } else {
                outcome.latencies.saturating_record((now - sent).as_micros() as u64);
            }
        };
        client.batch(operation, &keys, &value, on_answer).context("a connection failed")?;
    }
}

/// xorshift64* (Vigna, 2016): enough to pick keys, and free.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Every3rdRefused(u64);

    impl Client for Every3rdRefused {
        fn batch(
            &mut self,
            _: Operation,
            keys: &[u64],
            _: &[u8],
            on_answer: &mut dyn FnMut(Option<String>),
        ) -> Result<()> {
            for _ in keys {
                self.0 += 1;
                on_answer(self.0.is_multiple_of(3).then(|| "no".to_owned()));
            }
            Ok(())
        }
    }

    #[test]
    fn refusals_are_counted_apart_from_answers() {
        let shape = Shape {
            connections: 2,
            in_flight: 3,
            value_bytes: 1,
            keys: 10,
            warm_up: Duration::ZERO,
            time: Duration::from_millis(20),
        };
        let outcome =
            run(&shape, 2, 3, Operation::Set, &|_| Ok(Every3rdRefused(0))).expect("a client that never fails");
        let third = outcome.answers() as f64 / 3.0;
        assert!(outcome.answers() > 0 && (outcome.refused as f64 - third).abs() <= 4.0);
        assert_eq!(outcome.first_refusal.as_deref(), Some("no"));
        assert!(fill(&mut Every3rdRefused(0), &shape).is_err(), "a refused key is not filled in");
    }
}
