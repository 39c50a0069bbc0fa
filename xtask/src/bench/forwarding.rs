//! The cost of forwarding: requests for the same keys, sent to the node that leads their shards and to one
//! that leads none.
//!
//! In both cases all connections go to one node, so that only the path of the requests differs.

use anyhow::{Result, ensure};

use super::{
    flotilla::Flotilla,
    keys::{Keys, Popularity},
    measure::{Concurrency, System, Timing, fill, measure},
    plan::{Case, Pipelining},
    protocol::Wire,
    report::{Report, Row},
    workload::{Values, Workload},
};

/// The node that leads the keys, and the node that forwards requests to it.
const LEADER: usize = 1;
const FORWARDER: usize = 2;

/// Adds a row for each path, workload and protocol, and a note with their ratio.
pub(super) fn run(
    flotilla: &Flotilla,
    keys: u64,
    concurrency: Concurrency,
    timing: Timing,
    values: &Values,
    report: &mut Report,
) -> Result<()> {
    fill(&flotilla.system(Wire::Redis)?, keys, values)?;
    let leaders = flotilla.leaders()?;
    let led = flotilla.keys(keys, |bucket| leaders.get(bucket) == Some(&LEADER));
    ensure!(!led.is_empty(), "node {LEADER} leads no shard");
    let among = Keys::Among(led);
    for wire in [Wire::Redis, Wire::Http] {
        let system = flotilla.system(wire)?;
        let concurrency = if wire.pipelines() { concurrency } else { concurrency.unpipelined() };
        for workload in [Workload::Set, Workload::Get] {
            let popularity = Popularity::Uniform;
            let case = Case { workload, popularity, keys, concurrency, pipelining: Pipelining::On };
            let mut rates = Vec::new();
            for (path, node) in [("direct", LEADER), ("forwarded", FORWARDER)] {
                let name = format!("{}, {path}", system.name);
                let only = System { name, servers: vec![system.servers[node - 1]], ..system.clone() };
                let outcome = measure(&only, (workload, &among), concurrency, timing, values)?;
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
    if flotilla.leaders()?.iter().zip(&leaders).any(is_moved) {
        report.note("leaders moved during the measurement: the direct rows include forwarded requests".to_owned());
    }
    Ok(())
}
