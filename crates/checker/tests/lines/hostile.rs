//! Files that nobody wrote.

use flotilla_checker::{Budget, check, read_json_lines};
use flotilla_hostile::{Proportion, attack, mutated};
use proptest::prelude::*;

use crate::{strategy::history, written};

#[test]
fn spoilt_histories_are_read_in_proportion_and_judged_or_refused() {
    attack(8_192, mutated(history().prop_map(|history| written(&history))), |bytes| {
        let read = Proportion::DEFAULT.of(bytes.len(), || read_json_lines(bytes.as_slice()));
        if let Ok(history) = read {
            let few = Budget { steps: 10_000, configurations: 1_000 };
            check(&history, &few).expect("what the reader takes makes sense");
        }
    });
}
