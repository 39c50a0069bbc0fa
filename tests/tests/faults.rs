//! The short set of scenarios: one fault of each kind.

use flotilla_tests::{
    ALL,
    scenario::{self, Ground, Scenario, Set},
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

/// The judge itself: what nobody can notice from inside must show in the history.
#[test]
fn a_cluster_that_is_rolled_back_as_a_whole_is_judged_to_have_lost_writes() {
    async fn roll_all_back(ground: &mut Ground) -> anyhow::Result<()> {
        for i in 1..=3 {
            ground.cluster.kill(i)?;
            ground.cluster.backup(i)?;
        }
        for i in 1..=3 {
            ground.cluster.start_node(i).await?;
        }
        ground.recovered().await?;
        ground.more(300).await?;
        for i in 1..=3 {
            ground.cluster.kill(i)?;
            ground.cluster.restore(i)?;
        }
        for i in 1..=3 {
            ground.cluster.start_node(i).await?;
        }
        ground.recovered().await
    }
    let name = "a_cluster_that_is_rolled_back_as_a_whole";
    let scenario = Scenario { name, fault: |ground| Box::pin(roll_all_back(ground)), ..Scenario::DEFAULT };
    let error = scenario::run(&scenario, SEED).expect_err("acknowledged writes are gone");
    let said = format!("{error:#}");
    assert!(said.contains("keys are wrong") || said.contains("not linearizable"), "{said}");
    // What a failure leaves: its folder is the error's context.
    let left = std::path::PathBuf::from(error.to_string());
    assert!(left.join("history.jsonl").is_file(), "{}", left.display());
    std::fs::remove_dir_all(left).expect("a folder of ours");
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
