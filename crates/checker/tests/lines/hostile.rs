//! Malformed history files.

use flotilla_checker::{Budget, check, read_json_lines};
use flotilla_hostile::{Proportion, attack, mutated};
use proptest::prelude::*;

use crate::{strategy::history, written};

#[test]
fn mutated_histories_are_parsed_in_bounded_memory_and_checked_or_rejected() {
    attack(8_192, mutated(history().prop_map(|history| written(&history))), |bytes| {
        let read = Proportion::DEFAULT.of(bytes.len(), || read_json_lines(bytes.as_slice()));
        if let Ok(history) = read {
            let few = Budget { steps: 10_000, configurations: 1_000 };
            check(&history, &few).expect("the reader accepts valid operations only");
        }
    });
}
