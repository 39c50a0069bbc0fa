//! Which other nodes this node is in contact with, in the few words that an operator needs: one report when
//! something is wrong, and one when it is right again.

use std::collections::{BTreeMap, BTreeSet};

use flotilla_membership::NodeState;
use flotilla_types::NodeId;

use super::View;

/// How long another node may be silent before that is reported, in milliseconds: after the start of this
/// node, or after the other one joined.
const SILENT_MS: u64 = 10_000;

/// A change that an operator should know of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Report {
    /// The node was reached for the first time since this node started.
    Reached(NodeId),
    /// The node does not answer any more, or did not since this node started.
    Lost(NodeId),
    /// The node has stopped, and said so.
    Left(NodeId),
    /// The node was lost, or had left, and is reached again.
    Back(NodeId),
    /// No other node is reached.
    Isolated,
    /// Another node is reached again.
    Rejoined,
}

/// A node of the metadata.
#[derive(Debug, Clone, Copy)]
struct Known {
    since_ms: u64,
    reported: Reported,
}

/// What was last reported of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reported {
    Nothing,
    Present,
    Lost,
    Left,
}

/// Compares what membership says with what was reported.
#[derive(Debug, Default)]
pub(crate) struct Contact {
    known: BTreeMap<NodeId, Known>,
    isolated: bool,
}

impl Contact {
    /// The reports that are due. Reports of single nodes are left out while this node is isolated.
    pub(crate) fn observe(&mut self, view: &View<'_>) -> Vec<Report> {
        let others = view.meta.nodes().filter(|record| record.id != view.me.node && !record.state.is_gone());
        let others: BTreeSet<NodeId> = others.map(|record| record.id).collect();
        self.known.retain(|node, _| others.contains(node));
        let mut reports = Vec::new();
        for node in &others {
            let new = Known { since_ms: view.now_ms, reported: Reported::Nothing };
            let known = self.known.entry(*node).or_insert(new);
            let is_silent = view.now_ms >= known.since_ms + SILENT_MS;
            let now = match view.members.liveness(*node).0 {
                NodeState::Alive => Reported::Present,
                // It may still answer.
                NodeState::Suspect => continue,
                NodeState::Down => Reported::Lost,
                NodeState::Left => Reported::Left,
                NodeState::Unknown if is_silent => Reported::Lost,
                NodeState::Unknown => continue,
            };
            if now != known.reported {
                reports.push(report(*node, known.reported, now));
                known.reported = now;
            }
        }
        let present = self.known.values().any(|known| known.reported == Reported::Present);
        let absent = self.known.values().all(|known| matches!(known.reported, Reported::Lost | Reported::Left));
        if !self.isolated && absent && !others.is_empty() {
            self.isolated = true;
            reports.retain(|report| !matches!(report, Report::Lost(_)));
            reports.push(Report::Isolated);
        } else if self.isolated && (present || others.is_empty()) {
            self.isolated = false;
            reports.push(Report::Rejoined);
        }
        reports
    }
}

fn report(node: NodeId, last: Reported, now: Reported) -> Report {
    match (last, now) {
        (Reported::Nothing, Reported::Present) => Report::Reached(node),
        (_, Reported::Present) => Report::Back(node),
        (_, Reported::Left) => Report::Left(node),
        (_, Reported::Lost | Reported::Nothing) => Report::Lost(node),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::testing::{Meta, World, node};

    fn observed(contact: &mut Contact, world: &World) -> Vec<Report> {
        world.observe(|view| contact.observe(view))
    }

    #[test]
    fn a_node_is_reported_once_when_it_is_lost_and_once_when_it_is_back() {
        let mut world = World::new(1, Meta::of_nodes(3));
        let mut contact = Contact::default();
        world.hears(2, NodeState::Alive);
        world.hears(3, NodeState::Alive);
        let reached = [Report::Reached(node(2)), Report::Reached(node(3))];
        assert_eq!(observed(&mut contact, &world), reached);
        world.hears(3, NodeState::Suspect);
        assert_eq!(observed(&mut contact, &world), [], "it may still answer");
        world.hears(3, NodeState::Down);
        assert_eq!(observed(&mut contact, &world), [Report::Lost(node(3))]);
        assert_eq!(observed(&mut contact, &world), []);
        world.hears(3, NodeState::Alive);
        assert_eq!(observed(&mut contact, &world), [Report::Back(node(3))]);
        world.hears(3, NodeState::Left);
        assert_eq!(observed(&mut contact, &world), [Report::Left(node(3))]);
        world.meta.remove(3);
        assert_eq!(observed(&mut contact, &world), []);
    }

    #[test]
    fn isolation_is_one_report_and_so_is_its_end() {
        let mut world = World::new(1, Meta::of_nodes(3));
        let mut contact = Contact::default();
        for other in [2, 3] {
            world.hears(other, NodeState::Alive);
        }
        observed(&mut contact, &world);
        for other in [2, 3] {
            world.hears(other, NodeState::Down);
        }
        assert_eq!(observed(&mut contact, &world), [Report::Isolated]);
        assert_eq!(observed(&mut contact, &world), []);
        world.hears(3, NodeState::Alive);
        assert_eq!(observed(&mut contact, &world), [Report::Back(node(3)), Report::Rejoined]);
        world.hears(2, NodeState::Alive);
        assert_eq!(observed(&mut contact, &world), [Report::Back(node(2))]);
    }

    #[test]
    fn nodes_that_are_silent_since_the_start_are_reported_after_a_while() {
        let mut world = World::new(1, Meta::of_nodes(3));
        let mut contact = Contact::default();
        assert_eq!(observed(&mut contact, &world), []);
        world.now_ms += SILENT_MS - 1;
        assert_eq!(observed(&mut contact, &world), []);
        world.now_ms += 1;
        assert_eq!(observed(&mut contact, &world), [Report::Isolated]);
        assert_eq!(observed(&mut contact, &world), []);
    }

    #[test]
    fn a_node_that_joins_later_has_its_time_too() {
        let mut world = World::new(1, Meta::of_nodes(2));
        let mut contact = Contact::default();
        world.hears(2, NodeState::Alive);
        observed(&mut contact, &world);
        world.now_ms += 10 * SILENT_MS;
        world.meta.join(3);
        assert_eq!(observed(&mut contact, &world), []);
        world.now_ms += SILENT_MS;
        assert_eq!(observed(&mut contact, &world), [Report::Lost(node(3))]);
    }

    #[test]
    fn a_node_without_others_is_not_isolated() {
        let mut world = World::new(1, Meta::of_nodes(1));
        let mut contact = Contact::default();
        world.now_ms += 10 * SILENT_MS;
        assert_eq!(observed(&mut contact, &world), []);
        assert_eq!(observed(&mut contact, &world), []);
    }
}
