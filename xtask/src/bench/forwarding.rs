//! What a forward costs: the same keys asked of the node that leads their shards, and of one that leads none of them.
//!
//! All connections go to one node in both cases, so that only the way of the requests differs.

use anyhow::{Result, ensure};

use super::{
    keys::{Keys, Popularity},
    measure::{Pressure, Span, System, fill, measure},
    own::Own,
    plan::{Case, Pipelining},
    protocol::Wire,
    report::{Report, Row},
    workload::{Values, Workload},
};

/// The node that leads, and the one that is asked in its place.
const LEADER: usize = 1;
const OTHER: usize = 2;

/// Adds a row for each way, workload and protocol, and a line with their ratio.
pub(super) fn run(
    own: &Own,
    keys: u64,
    pressure: Pressure,
    span: Span,
    values: &Values,
    report: &mut Report,
) -> Result<()> {
    fill(&own.system(Wire::Redis)?, keys, values)?;
    let leaders = own.leaders()?;
    let led = own.keys(keys, |bucket| leaders.get(bucket) == Some(&LEADER));
    ensure!(!led.is_empty(), "node {LEADER} leads nothing");
    let among = Keys::Among(led);
    for wire in [Wire::Redis, Wire::Http] {
        let system = own.system(wire)?;
        let pressure = if wire.pipelines() { pressure } else { pressure.unpipelined() };
        for workload in [Workload::Set, Workload::Get] {
            let popularity = Popularity::Uniform;
            let case = Case { workload, popularity, keys, pressure, pipelining: Pipelining::On };
            let mut rates = Vec::new();
            for (way, node) in [("direct", LEADER), ("forwarded", OTHER)] {
                let name = format!("{}, {way}", system.name);
                let only = System { name, servers: vec![system.servers[node - 1]], ..system.clone() };
                let outcome = measure(&only, (workload, &among), pressure, span, values)?;
                let row = Row::new(&only, case, values.length(), &outcome);
                rates.push(row.per_second);
                report.add(row);
            }
            report.note(format!(
                "forwarded over direct, {} {}: {:.2}",
                wire.name(),
                workload.name(),
                rates[1] / rates[0]
            ));
        }
    }
    let is_moved = |(now, before): (&usize, &usize)| *before == LEADER && now != before;
    if own.leaders()?.iter().zip(&leaders).any(is_moved) {
        report.note("leaders moved while forwards were measured: direct rows had forwards too".to_owned());
    }
    Ok(())
}
