//! The simulator itself, and each kind of fault by itself: the cluster survives it, and it has the intended
//! effect.

use flotilla_sim::{Counts, Fault, Options, Planned, Report, run};

/// Runs seeds with these faults only; the seeds still draw everything else.
fn survives(faults: &[Planned], seeds: u64) -> Vec<Report> {
    let options = Options { faults: Some(faults.to_vec()), ..Options::default() };
    (0..seeds).map(|seed| run(seed, &options).unwrap_or_else(|failure| panic!("{failure}"))).collect()
}

/// The same fault four times, at different nodes and with different sizes.
fn repeated(fault: Fault, lasts_ms: u64) -> Vec<Planned> {
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

/// The number of notes that contain a text.
fn count_notes(reports: &[Report], text: &str) -> usize {
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
fn without_faults_a_cluster_forms_and_serves_and_loses_nothing() {
    let reports = survives(&[], 2);
    for report in &reports {
        let groups = report.counts.elections;
        assert!(groups >= 2 && report.counts.commits > 200 && report.counts.replicas_lost == 0, "{:?}", report.counts);
    }
}

#[test]
fn crashes_and_failed_fsyncs_lose_no_acknowledged_write() {
    assert!(count_notes(&survives(&repeated(Fault::Crash, 1_500), 3), "starts") >= 3 * 7);
    survives(&repeated(Fault::CrashAll, 300), 3);
    assert!(count_notes(&survives(&repeated(Fault::FsyncFails, 100), 3), "exits after a fatal error") > 0);
}

#[test]
fn partitions_of_every_shape_heal() {
    for fault in [Fault::Isolate, Fault::Halves, Fault::OneWay, Fault::Bridge] {
        survives(&repeated(fault, 2_500), 2);
    }
}

#[test]
fn pauses_flaky_networks_and_slow_or_full_disks_lose_nothing() {
    for fault in [Fault::Pause, Fault::FlakyNetwork, Fault::SlowDisk, Fault::DiskFull] {
        survives(&repeated(fault, 2_500), 2);
    }
}

/// A shard's time never goes back: an entry dated by a clock that is an hour ahead could make every later
/// command expire.
#[test]
fn clock_jumps_and_drift_do_not_stop_writes() {
    survives(&repeated(Fault::ClockJump, 2_500), 6);
    survives(&repeated(Fault::ClockDrift, 2_500), 2);
}

#[test]
fn wiped_and_rolled_back_disks_lose_replicas_but_no_data() {
    let wiped = survives(&repeated(Fault::Wipe, 100), 3);
    assert!(count_notes(&wiped, "loses its disk") >= 3 && sum(&wiped).snapshots > 3);
    let back = survives(&repeated(Fault::RollBack, 1_500), 4);
    assert!(count_notes(&back, "older copy") >= 2 && sum(&back).replicas_lost >= 2, "{:?}", sum(&back));
}

/// Abandoned replicas must be replaced even when the node crashes before the metadata group has the report.
/// Found by seeds 1610, 1660 and 2416.
#[test]
fn replicas_abandoned_right_before_a_crash_are_replaced() {
    let crash = |at_ms| Planned { at_ms, lasts_ms: 100, fault: Fault::CrashAll, pick: 7 };
    for pick in 0..6 {
        let back = Planned { at_ms: 1_000, lasts_ms: 2_000, fault: Fault::RollBack, pick };
        for after_ms in [100, 250, 400] {
            survives(&[back, crash(3_000 + after_ms)], 1);
        }
    }
}

#[test]
fn damaged_bytes_are_detected_and_replaced() {
    let log = survives(&repeated(Fault::LogBitRot, 1_500), 3);
    assert!(count_notes(&log, "damaged log") + count_notes(&log, "Broken") > 0);
    let objects = sum(&survives(&repeated(Fault::ObjectBitRot, 500), 3));
    assert!(objects.replicas_damaged > 0 && objects.replicas_lost == 0, "{objects:?}");
    survives(&[repeated(Fault::CorruptPulls, 3_000), repeated(Fault::Wipe, 100)].concat(), 3);
}

/// Nothing reads the objects: without a scrub they would stay damaged, and the check at the end fails. A
/// damaged replica votes on until another one has its place, so hardly any is abandoned.
#[test]
fn objects_that_rot_are_found_by_the_scrub_and_replaced_by_orderly_changes() {
    let rotten = survives(&repeated(Fault::ObjectRots, 100), 8);
    let counts = sum(&rotten);
    assert!(counts.replicas_damaged >= 8, "{counts:?}");
    assert_eq!(counts.replicas_lost, 0);
    assert!(count_notes(&rotten, "is repaired") as u64 >= counts.replicas_damaged / 2, "{counts:?}");
    survives(&[repeated(Fault::ObjectRots, 100), repeated(Fault::Crash, 1_000)].concat(), 4);
}

/// A disk that fails says nothing about the bytes on it.
#[test]
fn an_io_error_ends_the_node_and_costs_no_replica() {
    let broken = survives(&repeated(Fault::DiskFails, 1_500), 4);
    assert!(count_notes(&broken, "exits after a fatal error") >= 4);
    assert_eq!(sum(&broken).replicas_lost, 0);
    // While one node is broken, another loses its disk.
    survives(&[repeated(Fault::DiskFails, 2_500), repeated(Fault::Wipe, 100)].concat(), 3);
}

/// Gateways whose maps are outdated go on with what the refusals tell them; writes in doubt learn their outcome.
#[test]
fn requests_go_on_when_range_epochs_grow() {
    let grown = survives(&repeated(Fault::RangeChange, 200), 10);
    let counts = sum(&grown);
    assert!(counts.range_changes >= 30 && counts.stale_routes >= 30, "{counts:?}");
    // Commands in flight whose leader fails when the range has just changed are in doubt, and outdated.
    let crash = |planned: Planned| Planned { at_ms: planned.at_ms + 6, ..planned };
    let crashes = repeated(Fault::CrashAll, 300).into_iter().map(crash).collect();
    let counts = sum(&survives(&[repeated(Fault::RangeChange, 200), crashes].concat(), 10));
    assert!(counts.range_changes >= 20 && counts.asked_again >= 1, "{counts:?}");
}

/// Each run checks that replicas name the same base for the same fold.
#[test]
fn replicas_make_the_same_bases_whatever_befalls_them() {
    let crashes = [repeated(Fault::Crash, 700), repeated(Fault::Wipe, 2_500)].concat();
    let counts = sum(&survives(&crashes, 4));
    assert!(counts.bases_compared >= 20, "{counts:?}");
}

#[test]
fn nodes_join_and_leave_under_load() {
    let reports = survives(&[repeated(Fault::Join, 0), repeated(Fault::Remove, 1_000)].concat(), 3);
    assert!(count_notes(&reports, "joins at port") > 3 * 3 && sum(&reports).config_changes > 3 * 6);
    survives(&repeated(Fault::TransferLeader, 0), 2);
}

/// A replica whose state no log explains is found, given up and replaced, and no other ever is. Half of the flaws
/// are of the state machine, half of the engine.
#[test]
fn replicas_with_another_state_are_found_and_replaced() {
    let counts = sum(&survives(&repeated(Fault::Flaw, 100), 8));
    assert!(counts.replicas_diverged >= 4 && counts.found_equal >= 40, "{counts:?}");
    let crashes = [repeated(Fault::Flaw, 100), repeated(Fault::Crash, 700)].concat();
    let counts = sum(&survives(&crashes, 4));
    assert!(counts.replicas_diverged >= 1, "{counts:?}");
    let handovers = [repeated(Fault::Flaw, 100), repeated(Fault::TransferLeader, 0)].concat();
    survives(&handovers, 4);
}
