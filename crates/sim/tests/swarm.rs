//! Runs 500 seeds, each with its own cluster and mixture of faults: other seeds each week, so that not the
//! same ones pass forever. A failure names its seed. Ten tests, so that they run in parallel.

use std::time::{SystemTime, UNIX_EPOCH};

use flotilla_sim::{Options, run};

const SEEDS_PER_TEST: u64 = 50;
const TESTS: u64 = 10;
const WEEK_SECONDS: u64 = 7 * 24 * 60 * 60;

fn run_seeds(test: u64) {
    let week = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs() / WEEK_SECONDS;
    let first = (week * TESTS + test) * SEEDS_PER_TEST;
    for seed in first..first + SEEDS_PER_TEST {
        if let Err(failure) = run(seed, &Options::default()) {
            panic!("{}", flotilla_sim::shrink(*failure));
        }
    }
}

macro_rules! swarm {
    ($($name:ident $number:literal;)*) => {
        $(#[test]
        fn $name() {
            run_seeds($number);
        })*
    };
}

swarm! {
    seeds_of_the_week_pass_in_part_0 0;
    seeds_of_the_week_pass_in_part_1 1;
    seeds_of_the_week_pass_in_part_2 2;
    seeds_of_the_week_pass_in_part_3 3;
    seeds_of_the_week_pass_in_part_4 4;
    seeds_of_the_week_pass_in_part_5 5;
    seeds_of_the_week_pass_in_part_6 6;
    seeds_of_the_week_pass_in_part_7 7;
    seeds_of_the_week_pass_in_part_8 8;
    seeds_of_the_week_pass_in_part_9 9;
}
