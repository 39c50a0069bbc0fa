//! Comparisons between rows of one run.

use super::{
    keys::Popularity,
    measure::Family,
    plan::Pipelining,
    report::{Row, aligned, table},
    workload::Workload,
};

/// The share of the maximum throughput at which latency is compared.
const HALF: f64 = 0.5;

/// Prints Flotilla's rows relative to each peer's, latency at half of the maximum throughput, and the effect
/// of more keys.
pub(super) fn print(rows: &[Row]) {
    let mut against =
        table(&["FLOTILLA OVER", "WORKLOAD", "KEYS", "IN FLIGHT", "/ ETCD", "/ REDIS", "P50 / ETCD", "P99 / ETCD"]);
    let own = |row: &&Row| row.family == Family::Flotilla;
    let mut compared = 0;
    for row in rows.iter().filter(own) {
        let [etcd, redis] = [Family::Etcd, Family::Redis].map(|family| peer(rows, row, family));
        compared += usize::from(etcd.is_some() || redis.is_some());
        if etcd.is_none() && redis.is_none() {
            continue;
        }
        against.add_row([
            row.protocol.to_owned(),
            row.case.workload.name().to_owned(),
            row.case.popularity.name().to_owned(),
            row.concurrency_name(),
            ratio(etcd, |peer| row.per_second / peer.per_second),
            ratio(redis, |peer| row.per_second / peer.per_second),
            ratio(etcd, |peer| row.p50_us as f64 / peer.p50_us as f64),
            ratio(etcd, |peer| row.p99_us as f64 / peer.p99_us as f64),
        ]);
    }
    if compared > 0 {
        println!(
            "\nFlotilla relative to peers, row by row; a dash stands for a missing peer:\n\n{}",
            aligned(&mut against, 4)
        );
    }
    let lines: Vec<_> = rows.iter().filter_map(|row| at_half(rows, row)).collect();
    if !lines.is_empty() {
        println!("\np99 at half of each system's maximum throughput, interpolated between the points of the sweep:");
        lines.iter().for_each(|line| println!("  {line}"));
    }
    for line in rows.iter().filter_map(|row| fewer_keys(rows, row)) {
        println!("{line}");
    }
}

fn ratio(peer: Option<&Row>, of: impl Fn(&Row) -> f64) -> String {
    peer.map_or_else(|| "–".to_owned(), |peer| format!("{:.2}", of(peer)))
}

/// The corresponding row of a peer. HTTP, which has no pipelining, is compared by total requests in flight.
fn peer<'a>(rows: &'a [Row], own: &Row, family: Family) -> Option<&'a Row> {
    let same = |row: &&Row| {
        let (case, own) = (row.case, own.case);
        row.family == family
            && (case.workload, case.popularity, case.keys) == (own.workload, own.popularity, own.keys)
            && case.pipelining == own.pipelining
            && case.concurrency.requests() == own.concurrency.requests()
            && (case.concurrency.connections == 1) == (own.concurrency.connections == 1)
    };
    rows.iter().find(same)
}

/// The points of a sweep over requests in flight, in ascending order: throughput, and p99 in microseconds.
pub(super) fn sweep(rows: &[Row], of: &Row) -> Vec<(f64, f64)> {
    let is_point = |row: &&Row| {
        let (case, own) = (row.case, of.case);
        row.system == of.system
            && row.protocol == of.protocol
            && (case.workload, case.keys) == (own.workload, own.keys)
            && case.popularity == Popularity::Uniform
            && case.pipelining == Pipelining::On
    };
    let mut points: Vec<_> = rows.iter().filter(is_point).collect();
    points.sort_by_key(|row| row.concurrency().requests());
    points.iter().map(|row| (row.per_second, row.p99_us.max(1) as f64)).collect()
}

/// Whether a row is the first of its sweep, so that each sweep is reported once.
pub(super) fn is_first(rows: &[Row], row: &Row) -> bool {
    let same = |other: &&Row| {
        (&other.system, other.protocol, other.case.workload, other.case.keys)
            == (&row.system, row.protocol, row.case.workload, row.case.keys)
    };
    rows.iter().find(same).is_some_and(|first| std::ptr::eq(first, row))
}

fn at_half(rows: &[Row], row: &Row) -> Option<String> {
    if !is_first(rows, row) {
        return None;
    }
    let p99_us = p99_at(&sweep(rows, row), HALF)?;
    let (workload, keys) = (row.case.workload.name(), row.case.keys);
    Some(format!("{} {} {workload}, {keys} keys: {:.2} ms", row.system, row.protocol, p99_us / 1_000.0))
}

/// The p99 where the sweep first reaches a share of its maximum throughput, by log-log interpolation; `None`
/// if it starts above that.
fn p99_at(points: &[(f64, f64)], share: f64) -> Option<f64> {
    let target = share * points.iter().map(|(rate, _)| *rate).fold(0.0, f64::max);
    let crosses = |pair: &&[(f64, f64)]| pair[0].0 <= target && target <= pair[1].0;
    let pair = points.windows(2).find(crosses)?;
    let ((x0, y0), (x1, y1)) = (pair[0], pair[1]);
    let along = if x1 > x0 { (target / x0).ln() / (x1 / x0).ln() } else { 0.0 };
    Some((y0.ln() + along * (y1 / y0).ln()).exp())
}

/// Throughput relative to the row that differs only in having the fewest keys.
fn fewer_keys(rows: &[Row], row: &Row) -> Option<String> {
    let same = |other: &&Row| {
        let (case, own) = (other.case, row.case);
        other.system == row.system
            && other.protocol == row.protocol
            && (case.workload, case.popularity) == (own.workload, own.popularity)
            && (case.concurrency, case.pipelining) == (own.concurrency, own.pipelining)
            && case.keys < own.keys
    };
    let fewest = rows.iter().filter(same).min_by_key(|other| other.case.keys)?;
    let (workload, keys) = (Workload::name(row.case.workload), row.case.keys);
    let share = row.per_second / fewest.per_second;
    let (system, protocol, concurrency) = (&row.system, row.protocol, row.concurrency_name());
    Some(format!(
        "{system} {protocol} {workload} {concurrency}: {keys} keys over {} keys: {share:.2}",
        fewest.case.keys
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p99_is_interpolated_between_points() {
        let points = [(100.0, 1_000.0), (400.0, 4_000.0), (800.0, 9_000.0)];
        let at_half = p99_at(&points, 0.5).expect("between the points");
        assert!((at_half - 4_000.0).abs() < 1e-6);
        let at_quarter = p99_at(&points, 0.25).expect("between the points");
        assert!((at_quarter - 2_000.0).abs() < 1e-6, "{at_quarter}: half way on both logarithmic axes");
        assert_eq!(p99_at(&points, 0.1), None, "nothing is known below the first point");
        assert_eq!(p99_at(&[], 0.5), None);
    }
}
