//! Pulls what entries and commands refer to, as tasks on the network's runtime.
//!
//! The core has named the objects to the engine before it orders a gathering, and lets go of them when it needs them no
//! longer; nothing is held here. A newer order of the same holder ends the one before.

use std::{collections::HashMap, sync::Arc, time::Instant};

use flotilla_types::Holder;
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore};

use super::pull::{Failure, Puller, Watch};
use crate::{
    Gather, GatherEnd, Input, clock,
    work::{Pull, PullBounds, PullError, PullOrder},
};

/// Gatherings at a time. Further ones wait.
const GATHERS_MAX: usize = 16;
/// Milliseconds that an ended gathering waits for what it has requested.
const DRAIN_MS: u64 = 1_000;

/// The gatherings of a node.
#[derive(Clone)]
pub(super) struct Gathers {
    turns: Arc<Semaphore>,
    /// The newest order of each holder.
    newest: Arc<Mutex<HashMap<Holder, Newest>>>,
}

struct Newest {
    number: u64,
    changed: Arc<Notify>,
}

impl Default for Gathers {
    fn default() -> Self {
        Self { turns: Arc::new(Semaphore::new(GATHERS_MAX)), newest: Arc::default() }
    }
}

struct Gathering {
    holder: Holder,
    number: u64,
    deadline_ms: Option<u64>,
    gathers: Gathers,
    changed: Arc<Notify>,
}

impl Watch for Gathering {
    fn is_over(&self) -> Option<u64> {
        let is_newest = self.gathers.newest.lock().get(&self.holder).is_some_and(|newest| newest.number == self.number);
        let in_time = self.deadline_ms.is_none_or(|deadline_ms| clock::monotonic_ms() < deadline_ms);
        (!is_newest || !in_time).then_some(DRAIN_MS)
    }

    fn ends_at_ms(&self) -> Option<u64> {
        self.deadline_ms
    }

    fn changed(&self) -> &Notify {
        &self.changed
    }
}

impl Puller {
    /// Fetches objects, makes them durable, and reports to the core.
    pub(super) fn gather(&self, gather: Gather) {
        let Gather { holder, number, refs, sources, deadline_ms, spares } = gather;
        let changed = Arc::new(Notify::new());
        let newest = Newest { number, changed: changed.clone() };
        if let Some(before) = self.gathers.newest.lock().insert(holder, newest) {
            before.changed.notify_one();
        }
        let watch = Gathering { holder, number, deadline_ms, gathers: self.gathers.clone(), changed };
        let order = PullOrder::of_refs(sources, &refs, self.lists);
        let puller = self.clone();
        self.runtime.spawn(async move {
            let began = Instant::now();
            let result = puller.run_gathering(order, &watch, spares).await;
            if result.is_ok() {
                metrics::histogram!("flotilla_value_gather_seconds").record(began.elapsed().as_secs_f64());
            }
            match &result {
                Err(error) if error.ends_node() => (puller.fatal)(&error.to_string()),
                Err(error) => tracing::info!(?holder, %error, "what an entry refers to was not fetched"),
                Ok(()) => {}
            }
            let mut newest = watch.gathers.newest.lock();
            if newest.get(&holder).is_some_and(|newest| newest.number == number) {
                newest.remove(&holder);
            }
            drop(newest);
            let end = match result {
                Ok(()) => GatherEnd::Complete,
                Err(Failure::Answer(PullError::Engine(_))) => GatherEnd::NotStored,
                Err(_) => GatherEnd::Incomplete,
            };
            puller.inbox.send(Input::Gathered { holder, number, end });
        });
    }

    async fn run_gathering(&self, order: PullOrder, watch: &Gathering, spares: bool) -> Result<(), Failure> {
        let _turn = loop {
            if watch.is_over().is_some() {
                return Err(Failure::Replaced);
            }
            let left_ms = watch.deadline_ms.map(|deadline_ms| deadline_ms.saturating_sub(clock::monotonic_ms()));
            let pause = std::time::Duration::from_millis(left_ms.unwrap_or(u64::MAX / 2).max(1));
            tokio::select! {
                // The semaphore is never closed; an error would only mean one gathering too many.
                turn = self.gathers.turns.acquire() => break turn,
                () = watch.changed.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
        };
        let (engine, bounds) = (self.engine.clone(), PullBounds::of_rate(self.pace.bytes_per_second()));
        let pull = self.workers.run(move || Pull::start(&*engine, order, bounds)).await??;
        if spares {
            self.traffic.reused(pull.reuse());
        }
        self.drive(pull, watch).await
    }
}
