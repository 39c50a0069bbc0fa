//! Who a member is, and which of two claims to the same node id is the newer one.
//!
//! Claims are ordered by generation, then renewal, then departure. The order is total, so all nodes agree on the
//! winner whatever order the claims arrive in.

use std::{cmp::Ordering, net::SocketAddr};

use flotilla_types::NodeId;

/// A node at an address, in one of its lives.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Member {
    /// The node, for ever.
    pub node: NodeId,
    /// Where its transport listens. Only gossip: the certificate says who is there. Scope ids are not carried.
    pub addr: SocketAddr,
    /// How often the node has started: its [`flotilla_types::Incarnation`]. Use 0 to greet a node of unknown one.
    pub generation: u64,
}

/// A member as foca sees it.
///
/// A node that was wrongly declared down comes back by raising `renewal`, which restarts at zero in each generation:
/// so it never meets a number that a later start of the node will use. `left` marks the last claim of a life, and is
/// how others tell a leave from a crash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) member: Member,
    pub(crate) renewal: u32,
    pub(crate) left: bool,
}

impl Identity {
    pub(crate) fn new(member: &Member) -> Self {
        // Only what travels is kept, or an identity would not be equal to its own echo.
        let addr = SocketAddr::new(member.addr.ip(), member.addr.port());
        Self { member: Member { addr, ..*member }, renewal: 0, left: false }
    }

    pub(crate) const fn node(&self) -> NodeId {
        self.member.node
    }

    /// Whether this claim is newer than `other`, a claim to the same node id.
    pub(crate) fn beats(&self, other: &Self) -> bool {
        self.age().cmp(&other.age()) == Ordering::Greater
    }

    /// `self`'s address, with a claim newer than `rival`. `None` at the end of the numbers.
    pub(crate) fn above(&self, rival: &Self) -> Option<Self> {
        let renewal = rival.renewal.checked_add(1)?;
        let member = Member { generation: rival.member.generation, ..self.member.clone() };
        Some(Self { member, renewal, left: false })
    }

    /// The claim with which a node says goodbye.
    pub(crate) fn departed(&self) -> Self {
        Self { left: true, ..self.clone() }
    }

    fn age(&self) -> (u64, u32, bool, SocketAddr) {
        (self.member.generation, self.renewal, self.left, self.member.addr)
    }
}

impl foca::Identity for Identity {
    type Addr = NodeId;

    fn renew(&self) -> Option<Self> {
        if self.left { None } else { self.above(self) }
    }

    fn addr(&self) -> NodeId {
        self.node()
    }

    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        self.beats(adversary)
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
    fn newer_lives_beat_renewals_and_goodbyes_of_older_ones() {
        let first = identity(1);
        let renewed = first.renew().expect("room for a renewal");
        let gone = renewed.departed();
        let second = identity(2);
        assert!(renewed.beats(&first) && gone.beats(&renewed) && second.beats(&gone));
        assert!(!first.beats(&first));
        assert_eq!(gone.renew(), None);
    }

    #[test]
    fn a_claim_that_fell_behind_gets_above_its_rival() {
        let rival = identity(9).renew().expect("room for a renewal");
        let caught_up = identity(3).above(&rival).expect("room above the rival");
        assert!(caught_up.beats(&rival));
        let last = Identity { renewal: u32::MAX, ..identity(9) };
        assert_eq!(identity(3).above(&last), None);
    }
}
