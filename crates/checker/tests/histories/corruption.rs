//! Changes one get of a linearizable history to an impossible result, which the checker must detect.

use bytes::Bytes;
use flotilla_checker::{Budget, Kind, Operation, Outcome, Verdict, Write, check};

use crate::{
    generate::{Dice, Mix, Shape, produced},
    oracle::linearizable,
};

/// Share of the wrong mutations that must be detected, percent.
const CAUGHT_PERCENT_MIN: usize = 99;

#[derive(Debug, Default)]
struct Tally {
    caught: usize,
    missed: usize,
    /// The changed history is linearizable too, according to the oracle.
    legal: usize,
}

impl Tally {
    fn assert(&self, name: &str, wrong_min: usize) {
        let wrong = self.caught + self.missed;
        println!("{name}: {} of {wrong} corruptions caught; {} more were legal", self.caught, self.legal);
        assert!(wrong >= wrong_min, "{self:?}");
        assert!(100 * self.caught >= CAUGHT_PERCENT_MIN * wrong, "{self:?}");
    }
}

fn is_get(operation: &Operation) -> bool {
    matches!(operation.outcome, Outcome::Value(_))
}

/// Another value: one that is put somewhere in the history, absent, or one that was never written.
fn other_value(dice: &mut Dice, history: &[Operation], at: usize) -> Outcome {
    let put = |operation: &Operation| match &operation.kind {
        Kind::Write { key, write: Write::Put(value) } if history[at].kind.keys().eq([key]) => Some(value.clone()),
        _ => None,
    };
    let mut values: Vec<Option<Bytes>> = history.iter().filter_map(put).map(Some).collect();
    values.extend([None, Some("never written".into())]);
    values.retain(|value| history[at].outcome != Outcome::Value(value.clone()));
    Outcome::Value(values.swap_remove(dice.below(values.len() as u64) as usize))
}

#[test]
fn nearly_all_changed_gets_of_short_histories_are_detected_or_legal() {
    let mut tally = Tally::default();
    for seed in 0..6_000 {
        let mut dice = Dice::new(seed);
        let mix = [Mix::Register, Mix::Conditional, Mix::Counter, Mix::All][seed as usize % 4];
        let shape = Shape { operations: 10, clients: 3, keys: 2, values: 0, unknown_one_in: 10, mix };
        let mut history = produced(&mut dice, &shape);
        for at in (0..history.len()).filter(|at| is_get(&history[*at])).collect::<Vec<_>>() {
            let wrong = other_value(&mut dice, &history, at);
            let right = std::mem::replace(&mut history[at].outcome, wrong);
            match check(&history, &Budget::default()).expect("a valid history") {
                Verdict::NotLinearizable(_) => tally.caught += 1,
                Verdict::Linearizable if linearizable(&history) => tally.legal += 1,
                Verdict::Linearizable | Verdict::Unknown => tally.missed += 1,
            }
            history[at].outcome = right;
        }
    }
    tally.assert("short", 5_000);
}

/// Values that a get cannot have read, in a history of puts of distinct values: those put after it, and those
/// that an acknowledged put replaced before the get began and after the value's own put had ended.
fn cannot_be(history: &[Operation], get: &Operation) -> Vec<Bytes> {
    let ret = get.ret.expect("it returned");
    let puts: Vec<(&Operation, &Bytes)> = history
        .iter()
        .filter(|put| put.kind.keys().eq(get.kind.keys()))
        .filter_map(|put| match &put.kind {
            Kind::Write { write: Write::Put(value), .. } => Some((put, value)),
            _ => None,
        })
        .collect();
    let replaced = |put: &Operation| {
        let known = |put: &Operation| put.ret.filter(|_| put.outcome == Outcome::Done);
        let Some(ended) = known(put) else { return false };
        puts.iter().any(|(later, _)| later.call > ended && known(later).is_some_and(|ret| ret < get.call))
    };
    puts.iter().filter(|(put, _)| put.call > ret || replaced(put)).map(|(_, value)| (*value).clone()).collect()
}

#[test]
fn nearly_all_impossible_gets_of_long_histories_are_detected() {
    let mut tally = Tally::default();
    for seed in 0..40 {
        let mut dice = Dice::new(seed);
        let shape = Shape { operations: 400, clients: 8, keys: 4, values: 0, unknown_one_in: 50, mix: Mix::Register };
        let mut history = produced(&mut dice, &shape);
        for _ in 0..60 {
            let at = dice.below(history.len() as u64) as usize;
            if !is_get(&history[at]) {
                continue;
            }
            let mut wrong = cannot_be(&history, &history[at]);
            if wrong.is_empty() {
                continue;
            }
            let value = wrong.swap_remove(dice.below(wrong.len() as u64) as usize);
            let right = std::mem::replace(&mut history[at].outcome, Outcome::Value(Some(value)));
            let caught = check(&history, &Budget::default()).expect("a valid history").witness().is_some();
            *if caught { &mut tally.caught } else { &mut tally.missed } += 1;
            history[at].outcome = right;
        }
    }
    tally.assert("long", 1_000);
}
