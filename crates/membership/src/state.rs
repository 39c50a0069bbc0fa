//! The state of a member, and subscriptions to its changes.

use std::fmt;

use flotilla_types::NodeId;

/// Limit on subscribers. They are parts of one process, so a few suffice.
pub const SUBSCRIBERS_MAX: usize = 16;

/// A node's state as another node sees it. It may be wrong for seconds, in either direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NodeState {
    /// Never seen, or forgotten.
    Unknown,
    /// Answers.
    Alive,
    /// A member got no answer from it. It still counts as present, and may refute the suspicion.
    Suspect,
    /// Did not refute in time: crashed or cut off.
    Down,
    /// Announced its departure.
    Left,
}

impl NodeState {
    /// Whether it is worth sending to: alive, or at least not confirmed gone.
    #[must_use]
    pub const fn is_present(self) -> bool {
        matches!(self, Self::Alive | Self::Suspect)
    }
}

impl fmt::Display for NodeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "unknown",
            Self::Alive => "alive",
            Self::Suspect => "suspect",
            Self::Down => "down",
            Self::Left => "left",
        })
    }
}

/// Receives each change of a node's state in order and exactly once.
///
/// It is called inside the step, so it must neither block nor call back into the membership.
pub trait Subscriber: Send + Sync {
    /// `node` was `old` and is now `new`; the two differ.
    fn on_state_change(&self, node: NodeId, old: NodeState, new: NodeState);
}
