//! What every change must stand: 500 clusters, each with its own mixture of faults. Ten tests, so that all cores work.

use flotilla_sim::{Options, run};

const SEEDS_PER_TEST: u64 = 50;

fn seeds_hold(test: u64) {
    for seed in test * SEEDS_PER_TEST..(test + 1) * SEEDS_PER_TEST {
        if let Err(failure) = run(seed, &Options::default()) {
            panic!("{}", flotilla_sim::shrink(failure));
        }
    }
}

macro_rules! swarm {
    ($($name:ident $number:literal;)*) => {
        $(#[test]
        fn $name() {
            seeds_hold($number);
        })*
    };
}

swarm! {
    seeds_from_0_hold 0;
    seeds_from_50_hold 1;
    seeds_from_100_hold 2;
    seeds_from_150_hold 3;
    seeds_from_200_hold 4;
    seeds_from_250_hold 5;
    seeds_from_300_hold 6;
    seeds_from_350_hold 7;
    seeds_from_400_hold 8;
    seeds_from_450_hold 9;
}
