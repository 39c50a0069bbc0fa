//! Compares verdicts with those of the oracle.

use flotilla_checker::{Budget, Operation, Verdict, check};

use crate::{
    generate::{Dice, Mix, Shape, invented, outcome, produced},
    oracle::linearizable,
};

const MIXES: [Mix; 4] = [Mix::Register, Mix::Conditional, Mix::Counter, Mix::All];

fn shape(dice: &mut Dice, mix: Mix) -> Shape {
    Shape {
        operations: dice.below(7) + 1,
        clients: dice.below(4) + 1,
        keys: dice.below(3) + 1,
        values: dice.below(4),
        unknown_one_in: dice.below(4) + 2,
        mix,
    }
}

/// Compares the verdicts and returns whether the history is linearizable.
fn agrees(seed: u64, history: &[Operation]) -> bool {
    let expected = linearizable(history);
    let verdict = check(history, &Budget::default()).expect("a valid history");
    match verdict {
        Verdict::Linearizable => assert!(expected, "seed {seed}: missed {history:#?}"),
        Verdict::NotLinearizable(witness) => {
            assert!(!expected, "seed {seed}: false alarm {history:#?}");
            assert!(!linearizable(witness.operations()), "seed {seed}: no witness {witness}\n{history:#?}");
        }
        Verdict::Unknown => panic!("seed {seed}: a budget used up by {history:#?}"),
    }
    expected
}

#[test]
fn verdicts_on_invented_histories_agree_with_the_oracle() {
    let (mut good, mut bad) = (0, 0);
    for seed in 0..12_000 {
        let mut dice = Dice::new(seed);
        let shape = shape(&mut dice, MIXES[seed as usize % 4]);
        let history = invented(&mut dice, &shape);
        *if agrees(seed, &history) { &mut good } else { &mut bad } += 1;
    }
    assert!(good > 1_000 && bad > 1_000, "{good} good, {bad} bad");
}

#[test]
fn verdicts_on_produced_and_then_changed_histories_agree_with_the_oracle() {
    let (mut good, mut bad) = (0, 0);
    for seed in 0..12_000 {
        let mut dice = Dice::new(seed);
        let shape = shape(&mut dice, MIXES[seed as usize % 4]);
        let mut history = produced(&mut dice, &shape);
        assert!(agrees(seed, &history), "seed {seed}: produced");
        let at = dice.below(history.len() as u64) as usize;
        if history[at].ret.is_some() {
            history[at].outcome = outcome(&mut dice, &history[at].kind);
        }
        *if agrees(seed, &history) { &mut good } else { &mut bad } += 1;
    }
    assert!(good > 1_000 && bad > 1_000, "{good} good, {bad} bad");
}
