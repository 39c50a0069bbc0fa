//! Liveness for placement: membership, softened by the grace period.

use flotilla_membership::NodeState;
use flotilla_meta::Liveness;

/// What placement should think of a node that membership sees in `state` since `since_ms`. Nothing is dead before this
/// node has watched for a whole grace period itself (`watching_since_ms`). All on one monotonic clock.
#[must_use]
pub fn liveness(state: NodeState, since_ms: u64, watching_since_ms: u64, now_ms: u64, grace_ms: u64) -> Liveness {
    match state {
        NodeState::Alive => Liveness::Live,
        NodeState::Suspect => Liveness::Suspect,
        NodeState::Unknown | NodeState::Down | NodeState::Left => {
            if now_ms.saturating_sub(since_ms.max(watching_since_ms)) >= grace_ms {
                Liveness::Dead
            } else {
                Liveness::Suspect
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_node_is_dead_only_after_the_grace_period() {
        assert_eq!(liveness(NodeState::Down, 1_000, 0, 30_999, 30_000), Liveness::Suspect);
        assert_eq!(liveness(NodeState::Down, 1_000, 0, 31_000, 30_000), Liveness::Dead);
    }

    #[test]
    fn a_node_never_heard_of_gets_the_grace_period_from_the_start_of_watching() {
        assert_eq!(liveness(NodeState::Unknown, 0, 5_000, 34_999, 30_000), Liveness::Suspect);
        assert_eq!(liveness(NodeState::Unknown, 0, 5_000, 35_000, 30_000), Liveness::Dead);
    }
}
