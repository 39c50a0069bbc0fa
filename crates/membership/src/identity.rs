//! The identity of a member, and which of two identities with the same node id is newer.
//!
//! Invariant: identities are totally ordered by generation, then renewal, then departure, so all nodes agree
//! on the newest one in whatever order they arrive.

use std::{cmp::Ordering, net::SocketAddr};

use flotilla_types::NodeId;

/// A node at an address, in one generation (one run of its process).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Member {
    /// The node's permanent id.
    pub node: NodeId,
    /// Where its transport listens. Not authenticated: the certificate proves which node is there. Scope ids
    /// are not encoded.
    pub addr: SocketAddr,
    /// The count of the node's starts: its [`flotilla_types::Incarnation`]. 0 to announce to a node whose
    /// count is unknown.
    pub generation: u64,
}

/// A member as foca sees it.
///
/// A node that was wrongly declared down rejoins by incrementing `renewal`, which restarts at zero in each
/// generation, so that it never collides with a later start of the node. `left` marks the last identity of a
/// generation, by which others distinguish a leave from a crash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) member: Member,
    pub(crate) renewal: u32,
    pub(crate) left: bool,
}

impl Identity {
    pub(crate) fn new(member: &Member) -> Self {
        // Only encoded fields are kept; otherwise an identity would not equal its own decoded copy.
        let addr = SocketAddr::new(member.addr.ip(), member.addr.port());
        Self { member: Member { addr, ..*member }, renewal: 0, left: false }
    }

    pub(crate) const fn node(&self) -> NodeId {
        self.member.node
    }

    /// Whether this identity is newer than `other`, which has the same node id.
    pub(crate) fn is_newer_than(&self, other: &Self) -> bool {
        self.order_key().cmp(&other.order_key()) == Ordering::Greater
    }

    /// This identity's address in a renewal newer than `other`. `None` when the renewals are exhausted.
    pub(crate) fn renewed_after(&self, other: &Self) -> Option<Self> {
        let renewal = other.renewal.checked_add(1)?;
        let member = Member { generation: other.member.generation, ..self.member.clone() };
        Some(Self { member, renewal, left: false })
    }

    /// The identity with which the node announces its departure.
    pub(crate) fn departed(&self) -> Self {
        Self { left: true, ..self.clone() }
    }

    fn order_key(&self) -> (u64, u32, bool, SocketAddr) {
        (self.member.generation, self.renewal, self.left, self.member.addr)
    }
}

impl foca::Identity for Identity {
    type Addr = NodeId;

    fn renew(&self) -> Option<Self> {
        if self.left { None } else { self.renewed_after(self) }
    }

    fn addr(&self) -> NodeId {
        self.node()
    }

    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        self.is_newer_than(adversary)
    }
}

#[cfg(test)]
mod tests {
    use foca::Identity as _;

    use super::*;

    fn identity(generation: u64) -> Identity {
        Identity::new(&Member { node: NodeId(1), addr: ([127, 0, 0, 1], 7110).into(), generation })
    }

    #[test]
    fn newer_generations_supersede_renewals_and_departures_of_older_ones() {
        let first = identity(1);
        let renewed = first.renew().expect("room for a renewal");
        let departed = renewed.departed();
        let second = identity(2);
        assert!(renewed.is_newer_than(&first) && departed.is_newer_than(&renewed) && second.is_newer_than(&departed));
        assert!(!first.is_newer_than(&first));
        assert_eq!(departed.renew(), None);
    }

    #[test]
    fn outdated_identity_can_renew_past_a_newer_one() {
        let other = identity(9).renew().expect("room for a renewal");
        let caught_up = identity(3).renewed_after(&other).expect("room for another renewal");
        assert!(caught_up.is_newer_than(&other));
        let last = Identity { renewal: u32::MAX, ..identity(9) };
        assert_eq!(identity(3).renewed_after(&last), None);
    }
}
