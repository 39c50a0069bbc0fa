//! The sequential model of the system under test: its states, and the effect of an operation on one.
//!
//! A model is deterministic. It does not deal with time, clients or concurrency.

use std::hash::Hash;

/// A sequential data structure: a register, a queue, a lock, a store.
///
/// [`Model::initial`] and [`Model::step`] define it. The other methods are optional and only prune the
/// search. `&mut self` is for models that intern values; two calls with equal arguments must have equal
/// results.
pub trait Model {
    /// An operation with its outcome. The search treats equal operations of unknown outcome as
    /// interchangeable.
    type Operation: Eq + Hash;
    /// Everything that later operations can depend on.
    type State: Clone + Eq + Hash;

    /// The state before the first operation.
    fn initial(&mut self) -> Self::State;

    /// The state after an operation on this state, or `None` when the operation cannot have its outcome in
    /// this state.
    fn step(&mut self, state: &Self::State, operation: &Self::Operation) -> Option<Self::State>;

    /// Whether an operation can be placed first: if the remaining operations can be ordered from `state` on,
    /// and this one is possible in `state`, then there is also such an order that begins with it. Exactly the
    /// operations invoked up to `horizon` may come first.
    ///
    /// True for all pure reads that returned, in any state. `false` is always correct.
    fn commits(&self, state: &Self::State, operation: &Self::Operation, horizon: u64) -> bool {
        let _ = (state, operation, horizon);
        false
    }

    /// The search has placed this operation in its order; [`Model::undone`] removes it again. For models that
    /// count remaining operations. Before a search starts, all operations remain.
    fn linearized(&mut self, operation: &Self::Operation) {
        let _ = operation;
    }

    /// The opposite of [`Model::linearized`].
    fn undone(&mut self, operation: &Self::Operation) {
        let _ = operation;
    }

    /// Whether this step need not be followed: the remaining operations cannot be ordered after it, or can be
    /// ordered without it as well. Called after [`Model::linearized`] for the operation. `false` is always
    /// correct.
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
    /// When it returned, not before `call`. `None`: its outcome is unknown; it may take effect at any time
    /// after `call`, or never.
    pub ret: Option<u64>,
    /// The operation with its outcome.
    pub operation: T,
}

/// How much a check may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Operations tried, over all keys: once or twice each in an easy history. Ten million take some seconds
    /// without optimisation.
    pub steps: u64,
    /// Configurations memoized at a time. Each takes about 100 bytes.
    pub configurations: usize,
}

impl Default for Budget {
    /// 20 million steps; 2 million configurations.
    fn default() -> Self {
        Self { steps: 20_000_000, configurations: 2_000_000 }
    }
}
