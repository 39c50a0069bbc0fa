//! How much work shards are, over the last seconds and minutes, as nodes tell each other.
//!
//! A node measures what is asked of the shards that it leads, and its own CPU time; it does not measure the CPU time
//! of a shard. That is divided among the shards by what was asked of each, in [`units`]. A sample costs what changed:
//! means of shards that nobody uses decay when they are looked at.
//!
//! Invariant: soft state; none of it enters a log.

use std::collections::BTreeMap;

use bytes::Bytes;
use flotilla_replication::{Demand, Demands};
use flotilla_types::ShardId;
use flotilla_wire::{WireError, decode, encode, peer};

/// Time between two samples, in milliseconds.
pub const LOAD_SAMPLE_MS: u64 = 1_000;
/// Shards that a report names, at most.
pub const LOAD_SHARDS_MAX: usize = 1 << 17;

/// Over which time the shorter mean forgets, in milliseconds.
const SHORT_MS: f64 = 10_000.0;
/// Over which time the longer mean forgets, in milliseconds.
const LONG_MS: f64 = 60_000.0;
/// For how many minutes the highest mean is remembered.
const PEAK_MINUTES: usize = 5;
/// How much work a command is, in units: it is written, replicated and applied.
const COMMAND_UNITS: f64 = 4.0;
/// How much work a read is.
const READ_UNITS: f64 = 1.0;
/// How much work so many bytes are.
const UNIT_BYTES: f64 = 1_024.0;
/// CPU time of one unit, in microseconds, at most: the ticks of an idle node are not the work of the one shard that
/// somebody uses now and then.
const UNIT_US_MAX: f64 = 100.0;
/// Means below this are dropped.
const REST_UNITS_PER_S: f64 = 0.01;

/// The work of a shard that a node leads. Rates are per second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ShardRates {
    /// Commands of the last seconds, in thousandths.
    pub commands_milli: u64,
    /// Reads of the last seconds, in thousandths.
    pub reads_milli: u64,
    /// Bytes written in the last seconds.
    pub bytes: u64,
    /// CPU time in the last seconds, in microseconds.
    pub cpu_us: u64,
    /// CPU time in the last minute, in microseconds.
    pub cpu_minute_us: u64,
    /// The highest CPU time of a minute in the last five, in microseconds.
    pub cpu_peak_us: u64,
}

/// The work of a node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeLoad {
    /// The share of its CPUs that it uses, in thousandths, once that is known.
    pub used_milli: Option<u32>,
    /// The shards that it leads and that somebody uses, by id.
    pub shards: Vec<(ShardId, ShardRates)>,
}

/// Rates per second.
#[derive(Debug, Clone, Copy, Default)]
struct Rates {
    commands: f64,
    reads: f64,
    bytes: f64,
    cpu_us: f64,
}

impl Rates {
    fn of(demand: Demand, unit_us: f64, elapsed_ms: f64) -> Self {
        let per_second = |sum: u64| sum as f64 * 1_000.0 / elapsed_ms;
        Self {
            commands: per_second(demand.commands),
            reads: per_second(demand.reads),
            bytes: per_second(demand.bytes),
            cpu_us: units(demand) * unit_us * 1_000.0 / elapsed_ms,
        }
    }

    fn scaled(self, by: f64) -> Self {
        let Self { commands, reads, bytes, cpu_us } = self;
        Self { commands: commands * by, reads: reads * by, bytes: bytes * by, cpu_us: cpu_us * by }
    }

    fn plus(self, other: Self) -> Self {
        Self {
            commands: self.commands + other.commands,
            reads: self.reads + other.reads,
            bytes: self.bytes + other.bytes,
            cpu_us: self.cpu_us + other.cpu_us,
        }
    }
}

/// How much work a demand is.
fn units(demand: Demand) -> f64 {
    demand.commands as f64 * COMMAND_UNITS + demand.bytes as f64 / UNIT_BYTES + demand.reads as f64 * READ_UNITS
}

/// A mean that forgets.
#[derive(Debug, Clone, Copy, Default)]
struct Mean {
    sum: Rates,
}

impl Mean {
    /// Adds what an interval of so many milliseconds had, which followed `idle_ms` without anything.
    fn add(&mut self, rates: Rates, elapsed_ms: f64, idle_ms: f64, forgets_ms: f64) {
        let share = 1.0 - (-elapsed_ms / forgets_ms).exp();
        let kept = (-(elapsed_ms + idle_ms) / forgets_ms).exp();
        self.sum = self.sum.scaled(kept).plus(rates.scaled(share));
    }

    /// The mean now: since when it is measured, and since when it has been idle. A short time counts as if it had
    /// always been so.
    fn now(self, age_ms: f64, idle_ms: f64, forgets_ms: f64) -> Rates {
        let known = 1.0 - (-age_ms / forgets_ms).exp();
        if known > 0.0 { self.sum.scaled((-idle_ms / forgets_ms).exp() / known) } else { Rates::default() }
    }
}

#[derive(Debug, Clone)]
struct Shard {
    since_ms: u64,
    last_ms: u64,
    short: Mean,
    long: Mean,
    /// The highest CPU time of each of the last minutes, with the number of the minute.
    peaks: [(u64, f64); PEAK_MINUTES],
}

impl Shard {
    fn add(&mut self, rates: Rates, now_ms: u64, elapsed_ms: u64) {
        let idle_ms = now_ms.saturating_sub(elapsed_ms).saturating_sub(self.last_ms) as f64;
        self.short.add(rates, elapsed_ms as f64, idle_ms, SHORT_MS);
        self.long.add(rates, elapsed_ms as f64, idle_ms, LONG_MS);
        self.last_ms = now_ms;
        let (minute, cpu_us) = (now_ms / 60_000, self.over(now_ms).1.cpu_us);
        let peak = &mut self.peaks[(minute % PEAK_MINUTES as u64) as usize];
        *peak = if peak.0 == minute { (minute, peak.1.max(cpu_us)) } else { (minute, cpu_us) };
    }

    /// The means of the last seconds, and of the last minute.
    fn over(&self, now_ms: u64) -> (Rates, Rates) {
        let age_ms = now_ms.saturating_sub(self.since_ms) as f64;
        let idle_ms = now_ms.saturating_sub(self.last_ms) as f64;
        (self.short.now(age_ms, idle_ms, SHORT_MS), self.long.now(age_ms, idle_ms, LONG_MS))
    }

    fn rates(&self, now_ms: u64) -> ShardRates {
        let (short, long) = self.over(now_ms);
        let oldest = (now_ms / 60_000).saturating_sub(PEAK_MINUTES as u64 - 1);
        let peaks = self.peaks.iter().filter(|(minute, _)| *minute >= oldest).map(|(_, cpu_us)| *cpu_us);
        ShardRates {
            commands_milli: (short.commands * 1e3) as u64,
            reads_milli: (short.reads * 1e3) as u64,
            bytes: short.bytes as u64,
            cpu_us: short.cpu_us as u64,
            cpu_minute_us: long.cpu_us as u64,
            cpu_peak_us: peaks.fold(long.cpu_us, f64::max) as u64,
        }
    }
}

/// Measures the work of the shards that a node leads.
#[derive(Debug, Default)]
pub struct LoadMeter {
    shards: BTreeMap<ShardId, Shard>,
    /// When it was looked at last, and the CPU time used until then, in microseconds.
    last: Option<(u64, u64)>,
}

impl LoadMeter {
    /// Takes what was asked since the last call, and the CPU time that the process has used, in microseconds.
    pub fn observe(&mut self, now_ms: u64, demands: &Demands, cpu_used_us: u64) {
        let last = self.last.replace((now_ms, cpu_used_us));
        // Nobody knows over which time the first demands came.
        let Some((since_ms, before_us)) = last.filter(|(since_ms, _)| *since_ms < now_ms) else { return };
        let elapsed_ms = now_ms - since_ms;
        let all: f64 = demands.iter().map(|(_, demand)| units(demand)).sum();
        let unit_us = (cpu_used_us.saturating_sub(before_us) as f64 / all.max(1.0)).min(UNIT_US_MAX);
        for (id, demand) in demands.iter() {
            let new = || Shard {
                since_ms,
                last_ms: since_ms,
                short: Mean::default(),
                long: Mean::default(),
                peaks: [(0, 0.0); PEAK_MINUTES],
            };
            let rates = Rates::of(demand, unit_us, elapsed_ms as f64);
            self.shards.entry(id).or_insert_with(new).add(rates, now_ms, elapsed_ms);
        }
    }

    /// The work of the shards of which something was asked lately, and that are led here. Forgets the others.
    pub fn report(&mut self, now_ms: u64, used_milli: Option<u32>, is_led: impl Fn(ShardId) -> bool) -> NodeLoad {
        self.shards.retain(|_, shard| {
            let long = shard.over(now_ms).1;
            long.commands + long.reads > REST_UNITS_PER_S
        });
        let led = self.shards.iter().filter(|(id, _)| is_led(**id));
        NodeLoad { used_milli, shards: led.map(|(id, shard)| (*id, shard.rates(now_ms))).collect() }
    }
}

impl NodeLoad {
    /// As bytes, for a peer.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let shards = self.shards.iter().take(LOAD_SHARDS_MAX).map(|(shard, rates)| {
            let ShardRates { commands_milli, reads_milli, bytes, cpu_us, cpu_minute_us, cpu_peak_us } = *rates;
            peer::ShardRates { shard: shard.0, commands_milli, reads_milli, bytes, cpu_us, cpu_minute_us, cpu_peak_us }
        });
        encode(&peer::NodeLoad { used_milli: self.used_milli, shards: shards.collect() })
    }

    /// The output of [`NodeLoad::encode`]. Leaves out what is beyond its bound.
    ///
    /// # Errors
    /// The bytes are something else.
    pub fn decode(bytes: Bytes) -> Result<Self, WireError> {
        let peer::NodeLoad { used_milli, shards } = decode(bytes)?;
        let rates = |shard: peer::ShardRates| {
            let peer::ShardRates { shard, commands_milli, reads_milli, bytes, cpu_us, cpu_minute_us, cpu_peak_us } =
                shard;
            let rates = ShardRates { commands_milli, reads_milli, bytes, cpu_us, cpu_minute_us, cpu_peak_us };
            (ShardId(shard), rates)
        };
        Ok(Self { used_milli, shards: shards.into_iter().take(LOAD_SHARDS_MAX).map(rates).collect() })
    }
}

#[cfg(test)]
mod tests {
    use flotilla_hostile::{Proportion, attack, mutated};
    use proptest::prelude::Just;

    use super::*;

    const HOT: ShardId = ShardId(1);
    const COLD: ShardId = ShardId(2);

    /// A meter after so many seconds in which both shards were used, one ten times as much, by a node that uses half
    /// of a CPU.
    fn measured(seconds: u64) -> LoadMeter {
        let mut meter = LoadMeter::default();
        for second in 0..=seconds {
            let demands = [
                (HOT, Demand { commands: 1_000, bytes: 1_000 * 1_024, reads: 5_000 }),
                (COLD, Demand { commands: 100, bytes: 100 * 1_024, reads: 500 }),
            ];
            meter.observe(10_000 + second * LOAD_SAMPLE_MS, &demands.into_iter().collect(), second * 500_000);
        }
        meter
    }

    fn rates(meter: &mut LoadMeter, now_ms: u64, shard: ShardId) -> Option<ShardRates> {
        let report = meter.report(now_ms, None, |_| true);
        report.shards.into_iter().find(|(id, _)| *id == shard).map(|(_, rates)| rates)
    }

    #[test]
    fn cpu_time_is_divided_by_what_was_asked_whatever_the_time() {
        for seconds in [1, 5, 60, 600] {
            let mut meter = measured(seconds);
            let now_ms = 10_000 + seconds * LOAD_SAMPLE_MS;
            let hot = rates(&mut meter, now_ms, HOT).expect("it is used");
            let cold = rates(&mut meter, now_ms, COLD).expect("it is used");
            for (rates, share) in [(hot, 10), (cold, 1)] {
                let cpu_us = 500_000 * share / 11;
                for found in [rates.cpu_us, rates.cpu_minute_us, rates.cpu_peak_us] {
                    assert!(found.abs_diff(cpu_us) <= 1, "{seconds} s: {found}, not {cpu_us}");
                }
                assert!(rates.commands_milli.abs_diff(100_000 * share) <= 1, "{rates:?}");
                assert!(rates.reads_milli.abs_diff(500_000 * share) <= 1, "{rates:?}");
                assert!(rates.bytes.abs_diff(100 * 1_024 * share) <= 1, "{rates:?}");
            }
        }
    }

    #[test]
    fn what_is_not_used_any_more_decays_and_is_forgotten_and_its_peak_stays_for_minutes() {
        let mut meter = measured(100);
        let end_ms = 110_000;
        let before = rates(&mut meter, end_ms, HOT).expect("it is used");
        let after = rates(&mut meter, end_ms + 10_000, HOT).expect("it was used");
        let left = |now: u64, then: u64| now * 1_000 / then;
        assert_eq!((left(after.cpu_us, before.cpu_us), left(after.cpu_minute_us, before.cpu_minute_us)), (367, 817));
        let later = rates(&mut meter, end_ms + 120_000, HOT).expect("it was used");
        assert!(later.cpu_us <= 2 && later.cpu_peak_us >= before.cpu_minute_us - 1, "{later:?}");
        assert_eq!(rates(&mut meter, end_ms + 3_600_000, HOT), None);
        assert!(meter.shards.is_empty());
    }

    #[test]
    fn an_idle_node_is_not_the_work_of_a_shard_that_is_used_now_and_then() {
        let mut meter = LoadMeter::default();
        meter.observe(1_000, &Demands::default(), 0);
        let once = [(HOT, Demand { reads: 1, ..Demand::default() })];
        meter.observe(2_000, &once.into_iter().collect(), 300_000);
        let found = rates(&mut meter, 2_000, HOT).expect("it is used");
        assert!(found.cpu_us.abs_diff(100) <= 1, "{found:?}");
        assert!(meter.report(2_000, None, |_| false).shards.is_empty(), "another node leads it now");
    }

    #[test]
    fn a_report_survives_the_wire_and_garbage_is_an_error() {
        let mut meter = measured(30);
        for used_milli in [None, Some(0), Some(700)] {
            let report = meter.report(40_000, used_milli, |_| true);
            assert_eq!(report.shards.len(), 2);
            assert_eq!(NodeLoad::decode(report.encode()), Ok(report));
        }
        assert!(NodeLoad::decode(Bytes::from_static(b"\xff\xff")).is_err());
        let valid = meter.report(40_000, Some(7), |_| true).encode().to_vec();
        attack(1_000, mutated(Just(valid)), |bytes| {
            let length = bytes.len();
            if let Ok(report) = Proportion::DEFAULT.of(length, || NodeLoad::decode(bytes.into())) {
                assert!(report.shards.len() <= LOAD_SHARDS_MAX);
            }
        });
        let many = NodeLoad { used_milli: None, shards: vec![(HOT, ShardRates::default()); LOAD_SHARDS_MAX + 1] };
        assert_eq!(NodeLoad::decode(many.encode()).map(|read| read.shards.len()), Ok(LOAD_SHARDS_MAX));
    }
}
