//! The short set of scenarios: one fault of each kind.

use flotilla_tests::{
    ALL,
    scenario::{self, Scenario, Set, Testbed},
};

/// Arbitrary; `cargo xtask torture` uses others.
const SEED: u64 = 1;

fn run(name: &str) {
    let scenario = flotilla_tests::named(name).expect("a scenario of the table");
    assert_eq!(scenario.set, Set::Short);
    match scenario::run(scenario, SEED) {
        Ok(report) => eprintln!("{report:#?}"),
        Err(error) => panic!("{name}: {error:?}"),
    }
}

/// Tests the checks themselves: a fault that no node can detect must show in the history.
#[test]
fn rolling_back_all_nodes_is_detected_as_lost_writes() {
    async fn roll_all_back(testbed: &mut Testbed) -> anyhow::Result<()> {
        for i in 1..=3 {
            testbed.cluster.kill(i)?;
            testbed.cluster.backup(i)?;
        }
        for i in 1..=3 {
            testbed.cluster.start_node(i).await?;
        }
        testbed.wait_recovered().await?;
        testbed.wait_completed(300).await?;
        for i in 1..=3 {
            testbed.cluster.kill(i)?;
            testbed.cluster.restore(i)?;
            // Not even the machine remembers.
            testbed.cluster.forget_witness(i)?;
        }
        for i in 1..=3 {
            testbed.cluster.start_node(i).await?;
        }
        testbed.wait_recovered().await
    }
    let name = "all_nodes_are_rolled_back";
    let scenario = Scenario { name, fault: |testbed| Box::pin(roll_all_back(testbed)), ..Scenario::DEFAULT };
    let error = scenario::run(&scenario, SEED).expect_err("acknowledged writes are lost");
    let message = format!("{error:#}");
    assert!(message.contains("keys are wrong") || message.contains("not linearizable"), "{message}");
    // The folder of a failed run is the error's context.
    let folder = std::path::PathBuf::from(error.to_string());
    assert!(folder.join("history.jsonl").is_file(), "{}", folder.display());
    std::fs::remove_dir_all(folder).expect("the run's folder");
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
    a_node_is_partitioned
    a_partition_is_one_way
    packets_are_delayed_and_reordered
    a_node_loses_power
    a_disk_is_full
    an_fsync_of_the_log_fails
    a_bit_of_the_log_flips
    a_data_folder_is_deleted
    a_data_folder_is_rolled_back
    a_clock_is_wrong
    shards_are_split_while_nodes_are_killed
    shards_are_merged_while_nodes_are_killed
}
