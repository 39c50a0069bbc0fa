//! Runs a property over many inputs: a fixed number of cases, or rounds of them with fresh seeds until a time
//! is over.

use std::{
    fmt::Debug,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use proptest::{
    strategy::Strategy,
    test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner},
};

/// How long every attack runs, in rounds; set by `cargo xtask fuzz --seconds`.
const SECONDS: &str = "FLOTILLA_FUZZ_SECONDS";
/// The seed of the first round; set by `cargo xtask fuzz --seed`.
const SEED: &str = "FLOTILLA_FUZZ_SEED";
/// A case that takes longer counts as hanging: the process prints the seed and exits.
const CASE_SECONDS_MAX: u64 = 60;
/// Time between two progress lines.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(10);
/// Maximum steps of shrinking a failing input.
const SHRINKS_MAX: u32 = 4_096;

/// Runs `property`, which fails by panicking, on `cases` inputs of `strategy`. Panics with the simplest
/// failing input that was found, and with the command that reproduces it.
#[track_caller]
pub fn attack<S: Strategy<Value: Debug>>(cases: u32, strategy: S, property: impl Fn(S::Value)) {
    let seconds = setting(SECONDS);
    let mut seed = setting(SEED).unwrap_or_else(fresh_seed);
    let begin = Instant::now();
    let target = std::thread::current().name().unwrap_or("?").to_owned();
    let mut printed = begin;
    let mut rounds = 0_u64;
    loop {
        if let Err(failure) = round(cases, seed, &strategy, &property, &target) {
            panic!("{failure}\nto reproduce: cargo xtask fuzz {target} --seed {seed}");
        }
        rounds += 1;
        let Some(seconds) = seconds else { return };
        if printed.elapsed() >= PROGRESS_INTERVAL {
            printed = Instant::now();
            println!("{target}: {} cases in {} s", rounds * u64::from(cases), begin.elapsed().as_secs());
        }
        if begin.elapsed() >= Duration::from_secs(seconds) {
            println!("{target}: {} cases in {} s, no failure", rounds * u64::from(cases), begin.elapsed().as_secs());
            return;
        }
        // The step is odd, so that all seeds are reached.
        seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    }
}

fn round<S: Strategy<Value: Debug>>(
    cases: u32,
    seed: u64,
    strategy: &S,
    property: &impl Fn(S::Value),
    target: &str,
) -> Result<(), String> {
    let config = Config { cases, failure_persistence: None, max_shrink_iters: SHRINKS_MAX, ..Config::default() };
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let watchdog = Watchdog::start(target.to_owned(), seed);
    let result = runner.run(strategy, |value| {
        watchdog.case_started();
        property(value);
        Ok(())
    });
    match result {
        Ok(()) => Ok(()),
        Err(TestError::Fail(reason, value)) => Err(format!("{reason}\nsimplest input: {value:?}")),
        Err(TestError::Abort(reason)) => Err(format!("no input could be generated: {reason}")),
    }
}

fn setting(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is not a number: {text}")))
}

fn fresh_seed() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now.as_nanos() as u64 ^ (u64::from(std::process::id()) << 32)
}

/// A watchdog thread that exits the process when a case hangs; a hanging test cannot be ended otherwise.
struct Watchdog {
    cases: Arc<AtomicU64>,
    /// Dropping it ends the thread.
    _end: mpsc::Sender<()>,
}

impl Watchdog {
    fn start(target: String, seed: u64) -> Self {
        let cases = Arc::new(AtomicU64::new(0));
        let (end, ended) = mpsc::channel();
        let seen = cases.clone();
        std::thread::spawn(move || {
            let mut last = seen.load(Ordering::Relaxed);
            while ended.recv_timeout(Duration::from_secs(CASE_SECONDS_MAX)) == Err(mpsc::RecvTimeoutError::Timeout) {
                let now = seen.load(Ordering::Relaxed);
                if now == last {
                    eprintln!("{target}: a case hangs; to reproduce: cargo xtask fuzz {target} --seed {seed}");
                    std::process::exit(101);
                }
                last = now;
            }
        });
        Self { cases, _end: end }
    }

    fn case_started(&self) {
        self.cases.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::panic::catch_unwind;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_failure_names_the_simplest_input_and_the_seed() {
        let failure = catch_unwind(|| attack(500, any::<u16>(), |number| assert!(number < 1_000))).unwrap_err();
        let failure = failure.downcast_ref::<String>().unwrap();
        assert!(failure.contains("simplest input: 1000\n"), "{failure}");
        assert!(failure.contains("a_failure_names_the_simplest_input_and_the_seed --seed "), "{failure}");
    }

    #[test]
    fn a_seed_determines_the_inputs() {
        let inputs = |seed| {
            let seen = std::cell::RefCell::default();
            round(20, seed, &any::<u64>(), &|number| Vec::push(&mut seen.borrow_mut(), number), "t").unwrap();
            seen.into_inner()
        };
        assert_eq!(inputs(7), inputs(7));
        assert_ne!(inputs(7), inputs(8));
    }
}
