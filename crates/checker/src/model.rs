//! What the search has to know of the thing under test: its states, and what an operation does to one.
//!
//! A model is sequential and deterministic. It knows nothing of time, clients or concurrency.

use std::hash::Hash;

/// A sequential thing: a register, a queue, a lock, a store.
///
/// [`Model::initial`] and [`Model::step`] define it. The other methods only make the search shorter; a model does well
/// without them. `&mut self` is for models that intern values; two calls with equal arguments must have equal results.
pub trait Model {
    /// An operation together with what the client was told. Operations of unknown outcome that are equal are
    /// interchangeable, which the search makes use of.
    type Operation: Eq + Hash;
    /// Everything that later operations can depend on.
    type State: Clone + Eq + Hash;

    /// The state before the first operation.
    fn initial(&mut self) -> Self::State;

    /// The state after an operation that found this state and had its outcome, or `None` when it cannot have had it.
    fn step(&mut self, state: &Self::State, operation: &Self::Operation) -> Option<Self::State>;

    /// Whether an operation may be put first without a loss: if the operations that remain can be ordered from `state` on,
    /// and this one is possible in `state`, then there is also such an order with it in front. Everything invoked up to
    /// `horizon` may come first, and nothing else.
    ///
    /// True of all pure reads that returned, whatever the state. `false` is always right.
    fn commits(&self, state: &Self::State, operation: &Self::Operation, horizon: u64) -> bool {
        let _ = (state, operation, horizon);
        false
    }

    /// The search has put this operation into its order ([`Model::undone`] takes it out again). For models that count
    /// what remains. Before a search starts, everything remains.
    fn linearized(&mut self, operation: &Self::Operation) {
        let _ = operation;
    }

    /// The opposite of [`Model::linearized`].
    fn undone(&mut self, operation: &Self::Operation) {
        let _ = operation;
    }

    /// Whether this step, already told by [`Model::linearized`], need not be followed: whatever remains cannot be ordered
    /// after it, or can be ordered without it as well. `false` is always right.
    fn useless(&self, before: &Self::State, operation: &Self::Operation, after: &Self::State) -> bool {
        let _ = (before, operation, after);
        false
    }
}

/// An operation of a [`Model`], and when it happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timed<T> {
    /// When it was invoked.
    pub call: u64,
    /// When it returned, not before `call`. `None`: its outcome is unknown; it may take effect at any time after `call`,
    /// or never.
    pub ret: Option<u64>,
    /// What was asked and told.
    pub operation: T,
}

/// How much a check may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Operations looked at, over all keys: once or twice each in an easy history. Ten million take some seconds without
    /// optimisation.
    pub steps: u64,
    /// Configurations remembered at a time. Each costs about 100 bytes.
    pub configurations: usize,
}

impl Default for Budget {
    /// 20 million steps; 2 million configurations.
    fn default() -> Self {
        Self { steps: 20_000_000, configurations: 2_000_000 }
    }
}
