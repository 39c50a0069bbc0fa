//! Long histories, linearizable and not, within step budgets that exclude exponential search.

use flotilla_checker::{Budget, Operation, Outcome, Verdict, check};

use crate::generate::{Dice, Mix, Shape, produced};

/// Checks a history with a budget of `steps_each` per operation.
fn judge(history: &[Operation], steps_each: u64) -> Verdict {
    let budget = Budget { steps: steps_each * history.len() as u64, ..Budget::default() };
    check(history, &budget).expect("a valid history")
}

/// Makes one of the last gets return the value of one of the first on the same key.
fn make_stale(history: &mut [Operation]) {
    let value = |operation: &Operation| match &operation.outcome {
        Outcome::Value(Some(value)) => Some(value.clone()),
        _ => None,
    };
    let key = |operation: &Operation| operation.kind.keys().next().cloned();
    let late = history.len() * 9 / 10;
    let at = (late..history.len()).find(|at| value(&history[*at]).is_some()).expect("a get that finds something");
    let mut early = history[..late].iter().filter(|early| key(early) == key(&history[at])).filter_map(value);
    history[at].outcome = Outcome::Value(early.next());
}

#[test]
fn a_hundred_thousand_operations_over_a_hundred_keys_take_a_few_steps_each() {
    let shapes = [(Mix::Register, 0, 100), (Mix::Conditional, 0, 50), (Mix::Counter, 1, 100)];
    for (seed, (mix, values, unknown_one_in)) in shapes.into_iter().enumerate() {
        let shape = Shape { operations: 100_000, clients: 50, keys: 100, values, unknown_one_in, mix };
        let history = produced(&mut Dice::new(seed as u64), &shape);
        let begun = std::time::Instant::now();
        assert_eq!(judge(&history, 10), Verdict::Linearizable, "{mix:?}");
        println!("{mix:?}: 100,000 operations over 100 keys judged in {} ms", begun.elapsed().as_millis());
    }
}

#[test]
fn one_stale_get_among_a_hundred_thousand_operations_is_shown_in_a_few() {
    let shape =
        Shape { operations: 100_000, clients: 20, keys: 100, values: 0, unknown_one_in: 100, mix: Mix::Register };
    let mut history = produced(&mut Dice::new(1), &shape);
    make_stale(&mut history);
    let verdict = judge(&history, 10);
    let witness = verdict.witness().expect("a stale get");
    assert!(witness.operations().len() <= 6, "{witness}");
}

#[test]
fn fifty_clients_on_one_key_are_judged_in_polynomial_time_when_values_differ() {
    let shape = Shape { operations: 5_000, clients: 50, keys: 1, values: 0, unknown_one_in: 50, mix: Mix::Register };
    let mut history = produced(&mut Dice::new(2), &shape);
    assert_eq!(judge(&history, 100), Verdict::Linearizable);
    make_stale(&mut history);
    assert!(judge(&history, 100).witness().is_some());
}

/// With more concurrent clients or more unknown outcomes the budget is used up, as the README says.
#[test]
fn keys_that_batches_join_are_judged_together_when_few_clients_ask_at_a_time() {
    for seed in 3..8 {
        let shape = Shape { operations: 10_000, clients: 5, keys: 20, values: 0, unknown_one_in: 1_000, mix: Mix::All };
        let history = produced(&mut Dice::new(seed), &shape);
        assert_eq!(judge(&history, 100), Verdict::Linearizable, "seed {seed}");
    }
}

#[test]
fn an_exhausted_budget_is_not_a_pass() {
    let shape = Shape { operations: 2_000, clients: 20, keys: 2, values: 0, unknown_one_in: 50, mix: Mix::Register };
    let mut history = produced(&mut Dice::new(4), &shape);
    assert_eq!(judge(&history, 1), Verdict::Unknown);
    let few = Budget { configurations: 0, ..Budget::default() };
    assert_eq!(check(&history, &few).expect("a valid history"), Verdict::Unknown);
    make_stale(&mut history);
    assert_eq!(judge(&history, 1), Verdict::Unknown);
}
