//! One seed from its plan to its verdict, and smaller plans that fail the same way.

use std::{
    any::Any,
    cell::RefCell,
    collections::BTreeSet,
    fmt,
    panic::{self, AssertUnwindSafe},
    sync::Once,
};

use crate::{
    checks::Counts,
    plan::{Plan, Planned},
    world::World,
};

/// How long a cluster may take to form, milliseconds.
const FORMING_MS: u64 = 60_000;
/// Runs that looking for a smaller plan may take.
const SHRINK_RUNS_MAX: usize = 60;

/// How to run a seed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// Faults instead of those that the seed draws.
    pub faults: Option<Vec<Planned>>,
    /// Faults of the plan that are left out, by their number.
    pub without: BTreeSet<usize>,
    /// Whether every event is written down. Slow, and large: some 100 MB for a long run.
    pub tell: bool,
}

/// What a run that held was like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// Everything that happened, as one number: equal for equal seeds.
    pub trace: u64,
    /// Events.
    pub events: u64,
    /// Simulated time, milliseconds.
    pub simulated_ms: u64,
    /// Operations that clients began.
    pub operations: usize,
    /// What the cluster went through.
    pub counts: Counts,
    /// The story, with times in microseconds.
    pub notes: Vec<(u64, String)>,
    /// Every event, if asked for.
    pub told: Vec<String>,
}

/// Something did not hold.
#[derive(Debug, Clone)]
pub struct Failure {
    /// The seed.
    pub seed: u64,
    /// What did not hold, and where.
    pub message: String,
    /// Microseconds of simulated time.
    pub at_us: u64,
    /// Faults that were left out.
    pub without: BTreeSet<usize>,
    /// Faults that the plan had.
    pub faults: usize,
    /// The story, with times in microseconds.
    pub notes: Vec<(u64, String)>,
    /// Every event, if asked for.
    pub told: Vec<String>,
}

impl Failure {
    /// The one command that shows it again.
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
        writeln!(f, "{} of {} planned faults were left out. What was done to it:", self.without.len(), self.faults)?;
        for (at_us, note) in &self.notes {
            writeln!(f, "{:>8} ms  {note}", at_us / 1_000)?;
        }
        write!(f, "again, at {}: {}", crate::sources::describe(), self.replay())
    }
}

impl std::error::Error for Failure {}

/// Runs a seed.
///
/// # Errors
/// Something that must hold did not.
pub fn run(seed: u64, options: &Options) -> Result<Report, Box<Failure>> {
    let mut plan = Plan::draw(seed);
    if let Some(faults) = &options.faults {
        plan.faults.clone_from(faults);
        plan.early = false;
        plan.load_ms = faults.iter().map(|planned| planned.at_ms + planned.lasts_ms + 1_000).fold(4_000, u64::max);
    }
    let faults = plan.faults.len();
    let mut at = 0;
    plan.faults.retain(|_| {
        at += 1;
        !options.without.contains(&(at - 1))
    });
    let mut world = World::new(plan, options.tell);
    listen();
    let outcome = panic::catch_unwind(AssertUnwindSafe(|| {
        live(&mut world);
        crate::verdict::judge(&world);
    }));
    HEARD.with_borrow_mut(|heard| heard.listening = false);
    match outcome {
        Ok(()) => Ok(Report {
            seed,
            trace: world.trace(),
            events: world.events(),
            simulated_ms: world.now_ms(),
            operations: world.workload.history.len(),
            counts: world.checks.counts,
            told: world.told().to_vec(),
            notes: world.notes,
        }),
        Err(panic) => Err(Box::new(Failure {
            seed,
            message: message_of(&*panic),
            at_us: world.now_us,
            without: options.without.clone(),
            faults,
            told: world.told().to_vec(),
            notes: world.notes,
        })),
    }
}

fn live(world: &mut World) {
    world.found_cluster();
    for _ in 1..world.plan.nodes {
        let port = world.next_port();
        world.join(port);
    }
    if world.plan.early {
        world.run_ms(500);
    } else {
        form(world);
    }
    world.begin_load();
    world.begin_faults();
    world.run_ms(world.plan.load_ms);
    world.finish();
}

fn form(world: &mut World) {
    let formed = world.run_until(FORMING_MS, |world| {
        world.operator.is_idle() && world.nodes.len() as u64 == world.plan.nodes && world.unsettled(64).is_none()
    });
    assert!(formed, "the cluster does not form: {:?}\n{}", world.unsettled(64), world.describe());
    world.note("the cluster is formed");
}

/// Leaves out whatever the failure does not need, within a bound, and returns the smallest plan that still fails.
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
struct Heard {
    listening: bool,
    place: Option<String>,
}

thread_local! {
    /// Where this thread's run panicked: the panic itself does not carry it.
    static HEARD: RefCell<Heard> = RefCell::default();
}

/// Keeps panics of runs off the terminal, and remembers where they came from. Other panics go where they went before.
fn listen() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let ours = HEARD.with_borrow_mut(|heard| {
                if heard.listening {
                    heard.place = info.location().map(ToString::to_string);
                }
                heard.listening
            });
            if !ours {
                before(info);
            }
        }));
    });
    HEARD.with_borrow_mut(|heard| *heard = Heard { listening: true, place: None });
}

fn message_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    let place = HEARD.with_borrow_mut(|heard| heard.place.take());
    format!("{} ({})", text.unwrap_or("a panic without words"), place.as_deref().unwrap_or("unknown place"))
}
