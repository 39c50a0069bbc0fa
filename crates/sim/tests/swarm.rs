//! Runs 500 seeds, each with its own cluster and mixture of faults. Ten tests, so that they run in parallel.

use flotilla_sim::{Options, run};

const SEEDS_PER_TEST: u64 = 50;

fn run_seeds(test: u64) {
    for seed in test * SEEDS_PER_TEST..(test + 1) * SEEDS_PER_TEST {
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
    seeds_from_0_pass 0;
    seeds_from_50_pass 1;
    seeds_from_100_pass 2;
    seeds_from_150_pass 3;
    seeds_from_200_pass 4;
    seeds_from_250_pass 5;
    seeds_from_300_pass 6;
    seeds_from_350_pass 7;
    seeds_from_400_pass 8;
    seeds_from_450_pass 9;
}
