//! The cases of a run: by default everything at the standard load and one parameter varied at a time; all
//! with `--full`.

use super::{keys::Popularity, measure::Concurrency, protocol::Wire, workload::Workload};

/// Requests in flight per connection at the standard load, where performance goals are stated.
const STANDARD_IN_FLIGHT: usize = 32;
/// HTTP connections at most: beyond it, servers would refuse connections.
pub(super) const HTTP_CONNECTIONS_MAX: usize = 1_024;

/// The selected parameters.
#[derive(Debug, Clone)]
pub(super) struct Selection {
    pub(super) workloads: Vec<Workload>,
    pub(super) popularities: Vec<Popularity>,
    pub(super) keys: Vec<u64>,
    pub(super) connections: usize,
    pub(super) in_flight: Vec<usize>,
    pub(super) pipelining: Vec<Pipelining>,
    pub(super) breadth: Breadth,
}

/// Whether requests in flight share connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pipelining {
    On,
    /// Each request in flight has its own connection.
    Off,
}

/// Which combinations of parameters are measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Breadth {
    /// One parameter varied at a time.
    OneAtATime,
    All,
}

/// Whether a system serves possibly stale reads from the contacted node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LocalReads {
    Offered,
    Refused,
}

/// The parameters of one row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Case {
    pub(super) workload: Workload,
    pub(super) popularity: Popularity,
    pub(super) keys: u64,
    pub(super) concurrency: Concurrency,
    pub(super) pipelining: Pipelining,
}

impl Selection {
    /// The standard load, at which goals are stated.
    pub(super) fn standard(&self) -> Concurrency {
        let in_flight = &self.in_flight;
        let standard = in_flight.iter().copied().find(|in_flight| *in_flight == STANDARD_IN_FLIGHT);
        Concurrency { connections: self.connections, in_flight: standard.or(in_flight.first().copied()).unwrap_or(1) }
    }

    /// The cases of a system, grouped by number of keys.
    pub(super) fn cases(&self, wire: Wire, local: LocalReads) -> Vec<Case> {
        let mut cases = Vec::new();
        for &keys in &self.keys {
            for &pipelining in &self.pipelining {
                for &popularity in &self.popularities {
                    for &workload in &self.workloads {
                        let concurrencies = self.concurrencies().into_iter();
                        let case = |concurrency| Case { workload, popularity, keys, concurrency, pipelining };
                        cases.extend(concurrencies.map(case).filter(|case| self.has(case)));
                    }
                }
            }
        }
        let offers = |case: &Case| case.workload != Workload::GetLocal || local == LocalReads::Offered;
        cases.retain(offers);
        cases.into_iter().filter_map(|case| adapt(case, wire)).collect()
    }

    fn concurrencies(&self) -> Vec<Concurrency> {
        let single = Concurrency { connections: 1, in_flight: 1 };
        let swept = self.in_flight.iter().map(|&in_flight| Concurrency { connections: self.connections, in_flight });
        let mut concurrencies = Vec::new();
        if self.in_flight.contains(&1) {
            concurrencies.push(single);
        }
        concurrencies.extend(swept);
        concurrencies.dedup();
        concurrencies
    }

    /// Whether a case belongs to a run of this breadth. By default, cases with default parameters run at
    /// every load, and cases with one other parameter at the standard load.
    fn has(&self, case: &Case) -> bool {
        let deviations = [
            self.popularities.first() != Some(&case.popularity),
            self.pipelining.first() != Some(&case.pipelining),
            self.keys.first() != Some(&case.keys),
            !matches!(case.workload, Workload::Set | Workload::Get),
        ];
        let deviations = deviations.into_iter().filter(|deviates| *deviates).count();
        // A single request per connection is the same with and without pipelining.
        let is_duplicate = case.concurrency.in_flight == 1 && self.pipelining.first() != Some(&case.pipelining);
        match self.breadth {
            Breadth::All => !is_duplicate,
            Breadth::OneAtATime => {
                !is_duplicate && (deviations == 0 || deviations == 1 && case.concurrency == self.standard())
            }
        }
    }
}

/// The case adapted to a protocol; `None` if the protocol does not support it.
fn adapt(mut case: Case, wire: Wire) -> Option<Case> {
    match (wire.pipelines(), case.pipelining) {
        (true, Pipelining::On) => Some(case),
        (true, Pipelining::Off) => {
            case.concurrency = case.concurrency.unpipelined();
            Some(case)
        }
        // Without pipelining both cases are the same.
        (false, Pipelining::Off) => None,
        (false, Pipelining::On) => {
            case.concurrency = case.concurrency.unpipelined();
            (case.concurrency.connections <= HTTP_CONNECTIONS_MAX).then_some(case)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selection(breadth: Breadth) -> Selection {
        Selection {
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
        of.map(|case| (case.concurrency.connections, case.concurrency.in_flight, case.popularity, case.pipelining))
            .collect()
    }

    #[test]
    fn default_run_varies_one_parameter_at_a_time() {
        use Popularity::{Uniform, Zipfian};
        let cases = selection(Breadth::OneAtATime).cases(Wire::Grpc, LocalReads::Offered);
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
    fn http_uses_one_connection_per_request_up_to_a_limit() {
        let cases = selection(Breadth::OneAtATime).cases(Wire::Http, LocalReads::Refused);
        let connections: Vec<_> = at(&cases, Workload::Set).iter().map(|case| (case.0, case.1)).collect();
        assert_eq!(connections, [(1, 1), (6, 1), (192, 1), (192, 1)]);
        assert!(at(&cases, Workload::GetLocal).is_empty(), "local reads are not offered");
    }

    #[test]
    fn a_full_run_has_all_combinations() {
        let cases = selection(Breadth::All).cases(Wire::Redis, LocalReads::Refused);
        // Four concurrencies pipelined, two of them not, twice.
        assert_eq!(at(&cases, Workload::Half).len(), 12);
    }
}
