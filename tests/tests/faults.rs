//! The short set of scenarios: one fault of each kind.

use flotilla_tests::{
    ALL,
    scenario::{self, Set},
};

/// Any will do; `cargo xtask torture` takes others.
const SEED: u64 = 1;

fn run(name: &str) {
    let scenario = flotilla_tests::named(name).expect("a scenario of the table");
    assert_eq!(scenario.set, Set::Short);
    match scenario::run(scenario, SEED) {
        Ok(report) => eprintln!("{report:#?}"),
        Err(error) => panic!("{name}: {error:?}"),
    }
}

macro_rules! short {
    ($($name:ident)+) => {
        $(
            #[test]
            fn $name() {
                run(stringify!($name));
            }
        )+

        #[test]
        fn every_scenario_of_the_short_set_is_a_test() {
            let tests = [$(stringify!($name)),+];
            let set: Vec<_> = ALL.iter().filter(|it| it.set == Set::Short).map(|it| it.name).collect();
            assert_eq!(set, tests);
        }
    };
}

short! {
    each_node_is_killed_in_turn
    a_node_is_stopped_and_continued
    a_node_is_cut_off
    a_node_is_heard_but_does_not_hear
    packets_are_delayed_and_reordered
    a_node_loses_power
    a_disk_is_full
    an_fsync_of_the_log_fails
    a_bit_of_the_log_flips
    a_data_folder_is_deleted
    a_data_folder_is_rolled_back
    a_clock_goes_wrong
}
