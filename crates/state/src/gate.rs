//! A gate that a change waits at until the reads that began before it have ended.
//!
//! Unlike the guard of a lock, a pass may end on another thread than it began on, and a waiting change holds
//! up no read that begins later.

use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

/// Counts the reads in progress.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    passes: Mutex<Passes>,
    ended: Condvar,
}

#[derive(Debug, Default)]
struct Passes {
    /// Which of the two counts takes new passes.
    current: usize,
    counts: [usize; 2],
}

/// A read in progress, until it is dropped.
#[derive(Debug)]
pub(crate) struct Pass {
    gate: Arc<Gate>,
    count: usize,
}

impl Gate {
    pub(crate) fn enter(self: &Arc<Self>) -> Pass {
        let mut passes = self.passes.lock();
        let count = passes.current;
        passes.counts[count] += 1;
        Pass { gate: self.clone(), count }
    }

    /// Waits until every pass that was given before has been dropped. One thread at a time may wait.
    pub(crate) fn wait_for_earlier(&self) {
        let mut passes = self.passes.lock();
        let earlier = passes.current;
        passes.current = 1 - earlier;
        while passes.counts[earlier] > 0 {
            self.ended.wait(&mut passes);
        }
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let mut passes = self.gate.passes.lock();
        passes.counts[self.count] -= 1;
        if passes.counts[self.count] == 0 {
            self.gate.ended.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn a_change_waits_for_earlier_passes_and_for_no_later_one() {
        let gate = Arc::new(Gate::default());
        for _ in 0..3 {
            let earlier = gate.enter();
            thread::scope(|threads| {
                let waiting = threads.spawn(|| gate.wait_for_earlier());
                // The change waits at the gate once new passes are counted apart.
                let later = loop {
                    let pass = gate.enter();
                    if pass.count != earlier.count {
                        break pass;
                    }
                };
                assert!(!waiting.is_finished());
                drop(earlier);
                waiting.join().unwrap();
                drop(later);
            });
        }
    }
}
