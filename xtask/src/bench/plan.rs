//! Which rows a run has: everything about the point that goals name, less around it, all of it only when asked.

use super::{keys::Popularity, measure::Pressure, protocol::Wire, workload::Workload};

/// In flight on each connection where goals are stated.
const STANDARD_IN_FLIGHT: usize = 32;
/// Connections that an HTTP server here accepts, all servers together: beyond it they would measure refusals.
pub(super) const HTTP_CONNECTIONS_MAX: usize = 1_024;

/// What was asked for.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    pub(super) workloads: Vec<Workload>,
    pub(super) popularities: Vec<Popularity>,
    pub(super) keys: Vec<u64>,
    pub(super) connections: usize,
    pub(super) in_flight: Vec<usize>,
    pub(super) pipelining: Vec<Pipelining>,
    pub(super) breadth: Breadth,
}

/// Whether requests share connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pipelining {
    On,
    /// Each has one of its own.
    Off,
}

/// How many of the combinations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Breadth {
    /// One thing varied at a time.
    Usual,
    All,
}

/// Whether a system can be asked for what the asked node has, without regard to the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LocalReads {
    Offered,
    Refused,
}

/// One row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Case {
    pub(super) workload: Workload,
    pub(super) popularity: Popularity,
    pub(super) keys: u64,
    pub(super) pressure: Pressure,
    pub(super) pipelining: Pipelining,
}

impl Wanted {
    /// The pressure at which goals are stated.
    pub(super) fn standard(&self) -> Pressure {
        let in_flight = &self.in_flight;
        let standard = in_flight.iter().copied().find(|in_flight| *in_flight == STANDARD_IN_FLIGHT);
        Pressure { connections: self.connections, in_flight: standard.or(in_flight.first().copied()).unwrap_or(1) }
    }

    /// The rows for a system, those of one number of keys together.
    pub(super) fn cases(&self, wire: Wire, local: LocalReads) -> Vec<Case> {
        let mut cases = Vec::new();
        for &keys in &self.keys {
            for &pipelining in &self.pipelining {
                for &popularity in &self.popularities {
                    for &workload in &self.workloads {
                        let pressures = self.pressures().into_iter();
                        let case = |pressure| Case { workload, popularity, keys, pressure, pipelining };
                        cases.extend(pressures.map(case).filter(|case| self.has(case)));
                    }
                }
            }
        }
        let offers = |case: &Case| case.workload != Workload::GetLocal || local == LocalReads::Offered;
        cases.retain(offers);
        cases.into_iter().filter_map(|case| over(case, wire)).collect()
    }

    fn pressures(&self) -> Vec<Pressure> {
        let lone = Pressure { connections: 1, in_flight: 1 };
        let swept = self.in_flight.iter().map(|&in_flight| Pressure { connections: self.connections, in_flight });
        let mut pressures: Vec<_> = (self.in_flight.contains(&1)).then_some(lone).into_iter().chain(swept).collect();
        pressures.dedup();
        pressures
    }

    /// Whether a row belongs to a run of this breadth: plain reads and writes everywhere, with anything else only one thing
    /// unusual, and that at the standard pressure.
    fn has(&self, case: &Case) -> bool {
        let first = |unusual: bool| usize::from(unusual);
        let unusual = first(self.popularities.first() != Some(&case.popularity))
            + first(self.pipelining.first() != Some(&case.pipelining))
            + first(self.keys.first() != Some(&case.keys))
            + first(!matches!(case.workload, Workload::Set | Workload::Get));
        // A lone request has nothing to be pipelined with.
        let is_twin = case.pressure.in_flight == 1 && self.pipelining.first() != Some(&case.pipelining);
        match self.breadth {
            Breadth::All => !is_twin,
            Breadth::Usual => !is_twin && (unusual == 0 || unusual == 1 && case.pressure == self.standard()),
        }
    }
}

/// The row as a protocol can have it; `None` when it cannot.
fn over(mut case: Case, wire: Wire) -> Option<Case> {
    match (wire.pipelines(), case.pipelining) {
        (true, Pipelining::On) => Some(case),
        (true, Pipelining::Off) => {
            case.pressure = case.pressure.unpipelined();
            Some(case)
        }
        // One row stands for both.
        (false, Pipelining::Off) => None,
        (false, Pipelining::On) => {
            case.pressure = case.pressure.unpipelined();
            (case.pressure.connections <= HTTP_CONNECTIONS_MAX).then_some(case)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(breadth: Breadth) -> Wanted {
        Wanted {
            workloads: vec![Workload::Set, Workload::Get, Workload::Half, Workload::GetLocal],
            popularities: vec![Popularity::Uniform, Popularity::Zipfian],
            keys: vec![100],
            connections: 6,
            in_flight: vec![1, 32, 512],
            pipelining: vec![Pipelining::On, Pipelining::Off],
            breadth,
        }
    }

    fn at(cases: &[Case], workload: Workload) -> Vec<(usize, usize, Popularity, Pipelining)> {
        let of = cases.iter().filter(|case| case.workload == workload);
        of.map(|case| (case.pressure.connections, case.pressure.in_flight, case.popularity, case.pipelining)).collect()
    }

    #[test]
    fn a_usual_run_varies_one_thing_at_a_time() {
        use Popularity::{Uniform, Zipfian};
        let cases = wanted(Breadth::Usual).cases(Wire::Grpc, LocalReads::Offered);
        let expected = [
            (1, 1, Uniform, Pipelining::On),
            (6, 1, Uniform, Pipelining::On),
            (6, 32, Uniform, Pipelining::On),
            (6, 512, Uniform, Pipelining::On),
            (6, 32, Zipfian, Pipelining::On),
            (192, 1, Uniform, Pipelining::Off),
        ];
        assert_eq!(at(&cases, Workload::Set), expected);
        assert_eq!(at(&cases, Workload::Half), [(6, 32, Uniform, Pipelining::On)]);
        assert_eq!(at(&cases, Workload::GetLocal), [(6, 32, Uniform, Pipelining::On)]);
    }

    #[test]
    fn http_has_a_connection_for_each_request_and_not_too_many() {
        let cases = wanted(Breadth::Usual).cases(Wire::Http, LocalReads::Refused);
        let connections: Vec<_> = at(&cases, Workload::Set).iter().map(|case| (case.0, case.1)).collect();
        assert_eq!(connections, [(1, 1), (6, 1), (192, 1), (192, 1)]);
        assert!(at(&cases, Workload::GetLocal).is_empty(), "nobody offers them");
    }

    #[test]
    fn a_full_run_has_all_combinations() {
        let cases = wanted(Breadth::All).cases(Wire::Redis, LocalReads::Refused);
        // Four pressures pipelined, two of them not, twice.
        assert_eq!(at(&cases, Workload::Half).len(), 12);
    }
}
