//! Workloads: mixes of operations, and the values they write.

use clap::ValueEnum;
use serde::Serialize;

use super::keys::Random;

/// The kind of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    /// Write a value.
    Set,
    /// Read a value linearizably.
    Get,
    /// Read the possibly stale value of the contacted node.
    GetLocal,
}

/// A mix of operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Workload {
    /// Writes only.
    Set,
    /// Strong reads only.
    Get,
    /// Half strong reads, half writes.
    Half,
    /// 95 % strong reads, 5 % writes.
    MostlyGet,
    /// Possibly stale reads from the contacted node, where supported: etcd's serializable, Flotilla's
    /// eventual reads.
    GetLocal,
}

impl Workload {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Set => "SET",
            Self::Get => "GET",
            Self::Half => "50/50",
            Self::MostlyGet => "95/5",
            Self::GetLocal => "GET local",
        }
    }

    /// Writes in a hundred requests.
    const fn writes_percent(self) -> u64 {
        match self {
            Self::Set => 100,
            Self::Get | Self::GetLocal => 0,
            Self::Half => 50,
            Self::MostlyGet => 5,
        }
    }

    pub(super) fn draw(self, random: &mut Random) -> Operation {
        match self {
            Self::GetLocal => Operation::GetLocal,
            Self::Set => Operation::Set,
            Self::Get => Operation::Get,
            Self::Half | Self::MostlyGet if random.below(100) < self.writes_percent() => Operation::Set,
            Self::Half | Self::MostlyGet => Operation::Get,
        }
    }
}

/// Incompressible values: some servers compress what they write, and all should store the same amount.
#[derive(Debug)]
pub(super) struct Values {
    bytes: Vec<u8>,
    length: usize,
}

/// Number of values, each starting one byte after the previous one.
const VALUES: usize = 64 << 10;

impl Values {
    pub(super) fn new(length: usize) -> Self {
        let mut random = Random::new(1);
        Self { bytes: std::iter::repeat_with(|| random.next() as u8).take(length + VALUES).collect(), length }
    }

    pub(super) fn pick(&self, random: &mut Random) -> &[u8] {
        let first = random.below(VALUES as u64) as usize;
        &self.bytes[first..first + self.length]
    }

    pub(super) const fn length(&self) -> usize {
        self.length
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mixes_have_their_share_of_writes() {
        let mut random = Random::new(3);
        for (workload, expected) in [(Workload::Half, 5_000), (Workload::MostlyGet, 500), (Workload::Set, 10_000)] {
            let writes = (0..10_000).filter(|_| workload.draw(&mut random) == Operation::Set).count();
            assert!(writes.abs_diff(expected) < 200, "{writes} writes in {}", workload.name());
        }
    }

    #[test]
    fn values_have_the_requested_length_and_differ() {
        let (values, mut random) = (Values::new(256), Random::new(1));
        let first = values.pick(&mut random).to_vec();
        assert!(first.len() == 256 && first != values.pick(&mut random));
    }
}
