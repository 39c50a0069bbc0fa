//! The simulator itself, and faults one at a time: each kind is survived, does something, and hits where it should.

use flotilla_sim::{Counts, Fault, Options, Planned, Report, run};

/// Runs seeds with these faults only; the plans differ in everything else.
fn survives(faults: &[Planned], seeds: u64) -> Vec<Report> {
    let options = Options { faults: Some(faults.to_vec()), ..Options::default() };
    (0..seeds).map(|seed| run(seed, &options).unwrap_or_else(|failure| panic!("{failure}"))).collect()
}

/// The same fault again and again, at other nodes and with other sizes.
fn again(fault: Fault, lasts_ms: u64) -> Vec<Planned> {
    let planned = |turn: u64| Planned {
        at_ms: 500 + turn * 3_000,
        lasts_ms,
        fault,
        pick: turn.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5555,
    };
    (0..4).map(planned).collect()
}

fn sum(reports: &[Report]) -> Counts {
    let mut sum = Counts::default();
    reports.iter().for_each(|report| sum.add(&report.counts));
    sum
}

/// How often a story mentions something.
fn told(reports: &[Report], text: &str) -> usize {
    reports.iter().flat_map(|report| &report.notes).filter(|(_, note)| note.contains(text)).count()
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in [3, 11] {
        let [one, two] = [(); 2].map(|()| run(seed, &Options::default()).unwrap_or_else(|failure| panic!("{failure}")));
        assert_eq!(one, two);
    }
    let trace = |seed| run(seed, &Options::default()).map(|report| report.trace).ok();
    assert_ne!(trace(3), trace(4));
}

#[test]
fn a_quiet_cluster_forms_serves_and_elects_each_group_once() {
    let reports = survives(&[], 2);
    for report in &reports {
        let groups = report.counts.elections;
        assert!(groups >= 2 && report.counts.commits > 200 && report.counts.lost == 0, "{:?}", report.counts);
    }
}

#[test]
fn killed_processes_come_back_and_nothing_acknowledged_is_gone() {
    assert!(told(&survives(&again(Fault::Crash, 1_500), 3), "starts") >= 3 * 7);
    survives(&again(Fault::CrashAll, 300), 3);
    assert!(told(&survives(&again(Fault::FsyncFails, 100), 3), "ends itself") > 0);
}

#[test]
fn partitions_of_every_shape_heal() {
    for fault in [Fault::Isolate, Fault::Halves, Fault::OneWay, Fault::Bridge] {
        survives(&again(fault, 2_500), 2);
    }
}

#[test]
fn pauses_storms_and_slow_or_full_disks_lose_nothing() {
    for fault in [Fault::Pause, Fault::Storm, Fault::SlowDisk, Fault::DiskFull] {
        survives(&again(fault, 2_500), 2);
    }
}

/// A shard's time never goes back: what a leader dates by a clock that is an hour ahead would keep every later command from
/// being in time.
#[test]
fn a_clock_that_jumps_or_drifts_stops_nobody_for_long() {
    survives(&again(Fault::ClockJump, 2_500), 6);
    survives(&again(Fault::ClockDrift, 2_500), 2);
}

#[test]
fn lost_disks_and_older_copies_cost_replicas_and_no_data() {
    let wiped = survives(&again(Fault::Wipe, 100), 3);
    assert!(told(&wiped, "loses its disk") >= 3 && sum(&wiped).snapshots > 3);
    let back = survives(&again(Fault::RollBack, 1_500), 4);
    assert!(told(&back, "older copy") >= 2 && sum(&back).lost >= 2, "{:?}", sum(&back));
}

#[test]
fn rotten_bytes_are_found_and_replaced() {
    let log = survives(&again(Fault::RotLog, 1_500), 3);
    assert!(told(&log, "damaged log") + told(&log, "Broken") > 0);
    assert!(sum(&survives(&again(Fault::RotObject, 500), 3)).lost > 0);
    survives(&[again(Fault::Lies, 3_000), again(Fault::Wipe, 100)].concat(), 3);
}

#[test]
fn nodes_join_and_leave_under_load() {
    let reports = survives(&[again(Fault::Join, 0), again(Fault::Remove, 1_000)].concat(), 3);
    assert!(told(&reports, "joins at port") > 3 * 3 && sum(&reports).changes > 3 * 6);
    survives(&again(Fault::Transfer, 0), 2);
}
