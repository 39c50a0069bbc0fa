//! Runs one seed from its plan to its result, and reduces the plan of a failing seed.

use std::{
    any::Any,
    cell::RefCell,
    collections::BTreeSet,
    fmt,
    panic::{self, AssertUnwindSafe},
    sync::Once,
};

use flotilla_meta::NodeRole;

use crate::{
    checks::Counts,
    convergence::LAG_MAX,
    plan::{Plan, Planned},
    world::World,
};

/// Time within which a cluster must form, milliseconds.
const FORMING_MS_MAX: u64 = 60_000;
/// Runs that [`shrink`] may take.
const SHRINK_RUNS_MAX: usize = 60;

/// How to run a seed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// Faults that replace those drawn from the seed.
    pub faults: Option<Vec<Planned>>,
    /// Faults of the plan to leave out, by index.
    pub without: BTreeSet<usize>,
    /// Whether every event is recorded as text. Slow, and large: some 100 MB for a long run.
    pub record_events: bool,
}

/// The result of a run in which every check held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// Hash of all events: equal for equal seeds.
    pub trace: u64,
    /// Number of events.
    pub events: u64,
    /// Simulated time, milliseconds.
    pub simulated_ms: u64,
    /// Operations that clients started.
    pub operations: usize,
    /// Elections, commits and other counts.
    pub counts: Counts,
    /// Faults, starts, joins and losses, with times in microseconds.
    pub notes: Vec<(u64, String)>,
    /// Every event, if [`Options::record_events`] is set.
    pub event_log: Vec<String>,
}

/// A run in which a check failed.
#[derive(Debug, Clone)]
pub struct Failure {
    /// The seed.
    pub seed: u64,
    /// The panic message and its source location.
    pub message: String,
    /// Simulated time of the failure, microseconds.
    pub at_us: u64,
    /// Indexes of the faults that were left out.
    pub without: BTreeSet<usize>,
    /// Number of faults in the plan.
    pub faults: usize,
    /// Faults, starts, joins and losses, with times in microseconds.
    pub notes: Vec<(u64, String)>,
    /// Every event, if [`Options::record_events`] is set.
    pub event_log: Vec<String>,
}

impl Failure {
    /// The command that reproduces the failure.
    #[must_use]
    pub fn replay(&self) -> String {
        let without: Vec<_> = self.without.iter().map(ToString::to_string).collect();
        let without = if without.is_empty() { String::new() } else { format!(" --without {}", without.join(",")) };
        format!("cargo xtask sim --seed {}{without}", self.seed)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {} failed at {} ms: {}", self.seed, self.at_us / 1_000, self.message)?;
        writeln!(f, "{} of {} planned faults were left out. What happened:", self.without.len(), self.faults)?;
        for (at_us, note) in &self.notes {
            writeln!(f, "{:>8} ms  {note}", at_us / 1_000)?;
        }
        write!(f, "to reproduce, at {}: {}", crate::sources::describe(), self.replay())
    }
}

impl std::error::Error for Failure {}

/// Runs a seed.
///
/// # Errors
/// When a check failed.
pub fn run(seed: u64, options: &Options) -> Result<Report, Box<Failure>> {
    let mut plan = Plan::draw(seed);
    if let Some(faults) = &options.faults {
        plan.faults.clone_from(faults);
        plan.load_while_forming = false;
        plan.load_ms = faults.iter().map(|planned| planned.at_ms + planned.lasts_ms + 1_000).fold(4_000, u64::max);
    }
    let faults = plan.faults.len();
    let mut at = 0;
    plan.faults.retain(|_| {
        at += 1;
        !options.without.contains(&(at - 1))
    });
    let mut world = World::new(plan, options.record_events);
    capture_panics();
    let outcome = panic::catch_unwind(AssertUnwindSafe(|| {
        execute(&mut world);
        crate::linearizability::check_history(&world);
    }));
    CAPTURE.with_borrow_mut(|capture| capture.active = false);
    match outcome {
        Ok(()) => Ok(Report {
            seed,
            trace: world.trace(),
            events: world.events(),
            simulated_ms: world.now_ms(),
            operations: world.workload.history.len(),
            counts: world.checks.counts,
            event_log: world.event_log().to_vec(),
            notes: world.notes,
        }),
        Err(panic) => Err(Box::new(Failure {
            seed,
            message: message_of(&*panic),
            at_us: world.now_us,
            without: options.without.clone(),
            faults,
            event_log: world.event_log().to_vec(),
            notes: world.notes,
        })),
    }
}

fn execute(world: &mut World) {
    world.found_cluster();
    if world.plan.upgrade_at_ms.is_none() {
        world.schedule_upgrade();
    }
    for _ in 1..world.plan.nodes {
        let port = world.next_port();
        world.join(port, NodeRole::default());
    }
    if world.plan.load_while_forming {
        world.run_ms(500);
    } else {
        wait_until_formed(world);
    }
    world.start_clients();
    world.schedule_value();
    world.schedule_faults();
    if world.plan.upgrade_at_ms.is_some() {
        world.schedule_upgrade();
    }
    world.run_ms(world.plan.load_ms);
    world.check_convergence();
}

fn wait_until_formed(world: &mut World) {
    let formed = world.run_until(FORMING_MS_MAX, |world| {
        world.operator.is_idle() && world.nodes.len() as u64 == world.plan.nodes && world.unconverged(LAG_MAX).is_none()
    });
    assert!(formed, "the cluster did not form: {:?}\n{}", world.unconverged(LAG_MAX), world.describe());
    world.note("the cluster has formed");
}

/// Leaves out faults that the failure does not need, in a bounded number of runs, and returns the smallest
/// plan found that still fails.
#[must_use]
pub fn shrink(failure: Failure) -> Failure {
    let mut smallest = failure;
    let mut runs = 0;
    let mut step = smallest.faults.div_ceil(2);
    while step > 0 {
        let mut from = 0;
        while from < smallest.faults && runs < SHRINK_RUNS_MAX {
            let leave_out: BTreeSet<_> = (from..from + step).filter(|at| *at < smallest.faults).collect();
            from += step;
            if leave_out.is_subset(&smallest.without) {
                continue;
            }
            let without = smallest.without.union(&leave_out).copied().collect();
            runs += 1;
            if let Err(smaller) = run(smallest.seed, &Options { without, ..Options::default() }) {
                smallest = *smaller;
            }
        }
        step /= 2;
    }
    smallest
}

#[derive(Default)]
struct PanicCapture {
    active: bool,
    location: Option<String>,
}

thread_local! {
    /// Where this thread's run panicked: the panic payload does not carry the location.
    static CAPTURE: RefCell<PanicCapture> = RefCell::default();
}

/// Keeps panics of runs off the terminal and records their location. Other panics go to the previous hook.
fn capture_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let previous = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let captured = CAPTURE.with_borrow_mut(|capture| {
                if capture.active {
                    capture.location = info.location().map(ToString::to_string);
                }
                capture.active
            });
            if !captured {
                previous(info);
            }
        }));
    });
    CAPTURE.with_borrow_mut(|capture| *capture = PanicCapture { active: true, location: None });
}

fn message_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    let location = CAPTURE.with_borrow_mut(|capture| capture.location.take());
    format!("{} ({})", text.unwrap_or("a panic without a message"), location.as_deref().unwrap_or("unknown location"))
}
