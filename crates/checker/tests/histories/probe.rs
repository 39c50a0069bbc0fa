use crate::generate::{Dice, Mix, Shape, produced};
use flotilla_checker::{Budget, Operation, Outcome, Verdict, check};
fn time(name: &str, history: &[Operation], budget: Budget) -> Verdict {
    let t = std::time::Instant::now();
    let v = check(history, &budget).expect("sense");
    let s = match &v {
        Verdict::Linearizable => "lin".to_owned(),
        Verdict::Unknown => "unknown".to_owned(),
        Verdict::NotLinearizable(w) => format!("NOT {}", w.operations().len()),
    };
    eprintln!("{name}: {s} {:?}", t.elapsed());
    v
}
#[test]
fn probe() {
    for mix in [Mix::Conditional, Mix::Counter, Mix::All] {
        for operations in [5_000u64] {
            for keys in [1, 20u64, 100] {
                for clients in [5] {
                    for unknown in [10] {
                        if mix != Mix::All && keys == 100 {
                            continue;
                        }
                        let shape = Shape { operations, clients, keys, values: 0, unknown_one_in: unknown, mix };
                        let mut history = produced(&mut Dice::new(7), &shape);
                        let name =
                            format!("{mix:?} ops {operations} keys {keys} clients {clients} unknown 1/{unknown}");
                        let b = Budget { steps: 3_000_000, ..Budget::default() };
                        time(&name, &history, b);
                        let Some(at) = (operations as usize * 9 / 10..history.len())
                            .find(|at| matches!(history[*at].outcome, Outcome::Value(Some(_))))
                        else {
                            continue;
                        };
                        history[at].outcome = Outcome::Value(Some("100".into()));
                        time(&format!("   bad {name}"), &history, b);
                    }
                }
            }
        }
    }
}
