//! The operator: gives orders to the cluster through any of its nodes, and repeats each until it is answered.

use std::collections::BTreeMap;

use flotilla_control::{ShardError, UpgradeError, next_version};
use flotilla_meta::{Displaced, JoinRequest, MetaCommand, MetaRefusal, MetaReply, NodeRole, TokenId};
use flotilla_types::{NodeId, OperationId, VersionRange};
use rand::{RngExt as _, seq::IndexedRandom as _};

use crate::{
    clock::{Clock, WALL_START_MS},
    node::{Caller, Node, new_node},
    world::{Event, World},
};

const TOKEN: TokenId = TokenId(7);
const SECRET_HASH: [u8; 32] = [7; 32];
/// Pause before an order without an answer is repeated, microseconds.
const ORDER_RETRY_US: u64 = 300_000;
const ORDER_TIMEOUT_MS: u64 = 2_000;
/// Pause between attempts to raise the cluster version, microseconds.
const UPGRADE_RETRY_US: u64 = 500_000;
/// The port of the first node.
const FIRST_PORT: u16 = 7_000;
const PORT_STEP: u16 = 10;

/// Orders that are pending.
#[derive(Default)]
pub(crate) struct Operator {
    orders: BTreeMap<u64, (MetaCommand, FollowUp)>,
    next: u64,
    ports: u16,
}

/// What the operator does when an order has succeeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FollowUp {
    Nothing,
    /// Start the node that joined, at this port, with this role.
    Start(u16, NodeRole),
}

impl Operator {
    pub(crate) fn is_idle(&self) -> bool {
        self.orders.is_empty()
    }

    /// Whether an order about this operation is pending.
    pub(crate) fn changes(&self, operation: OperationId) -> bool {
        let about = |command: &MetaCommand| matches!(command, MetaCommand::ChangeOperation { operation: found, .. } if *found == operation);
        self.orders.values().any(|(command, _)| about(command))
    }
}

impl World {
    /// Gives an order.
    pub(crate) fn order(&mut self, command: MetaCommand, follow_up: FollowUp) {
        self.operator.next += 1;
        let order = self.operator.next;
        self.operator.orders.insert(order, (command, follow_up));
        self.operator_event(order, None);
    }

    /// Adds and starts the first node, which founds the cluster.
    pub(crate) fn found_cluster(&mut self) {
        let port = self.next_port();
        self.add_node(NodeId(1), port, NodeRole::default());
        if let Some(node) = self.nodes.get_mut(&NodeId(1)) {
            node.folder.founding = true;
            node.folder.has_authority = true;
        }
        self.start(NodeId(1));
        let expires_at_ms = WALL_START_MS + 365 * 24 * 3_600_000;
        self.order(
            MetaCommand::CreateToken { id: TOKEN, hash: SECRET_HASH, expires_at_ms, uses: 1_000 },
            FollowUp::Nothing,
        );
    }

    pub(crate) fn next_port(&mut self) -> u16 {
        self.operator.ports += 1;
        FIRST_PORT + PORT_STEP * (self.operator.ports - 1)
    }

    /// A new node joins at a port and displaces the node that had it before.
    pub(crate) fn join(&mut self, port: u16, role: NodeRole) {
        let node = new_node(port, self.rng.random());
        let request =
            JoinRequest { token: TOKEN, secret_hash: SECRET_HASH, node, versions: None, displaced: Vec::new(), role };
        self.order(MetaCommand::Join(request), FollowUp::Start(port, role));
    }

    pub(crate) fn schedule_upgrade(&mut self) {
        self.schedule(self.plan.upgrade_at_ms.unwrap_or_default() * 1_000, Event::Upgrade);
    }

    /// Raises the cluster version through any node, as soon as that node has seen that all support the next.
    pub(crate) fn upgrade(&mut self) {
        let live: Vec<_> = self.nodes.values().filter_map(|node| node.running.as_ref()).collect();
        let cluster = live.choose(&mut self.rng).map(|running| &running.control.cluster);
        let next = cluster.map(|cluster| next_version(cluster.meta(), VersionRange::supported(), cluster.seen()));
        let pending = |(command, _): &(MetaCommand, FollowUp)| matches!(command, MetaCommand::SetClusterVersion { .. });
        match next {
            Some(Err(UpgradeError::NothingLater { .. })) => return,
            Some(Ok(raise)) if !self.operator.orders.values().any(pending) => self.order(raise, FollowUp::Nothing),
            Some(Ok(_) | Err(UpgradeError::Missing { .. })) | None => {}
        }
        self.schedule(UPGRADE_RETRY_US, Event::Upgrade);
    }

    fn add_node(&mut self, id: NodeId, port: u16, role: NodeRole) {
        let wall_offset_ms = self.rng.random_range(-50..50);
        let booted_us = self.rng.random_range(0..1_000_000_000);
        self.nodes.insert(id, Node::new(id, port, role, Clock::new(booted_us, wall_offset_ms), wall_offset_ms));
    }

    /// Sends an order when there is no result, and handles its result otherwise.
    pub(crate) fn operator_event(&mut self, order: u64, result: Option<Result<MetaReply, ShardError>>) {
        let Some((mut command, follow_up)) = self.operator.orders.get(&order).cloned() else { return };
        match result {
            None => {
                let live: Vec<_> =
                    self.nodes.values().filter(|node| node.running.is_some()).map(|node| node.id).collect();
                match live.choose(&mut self.rng).copied() {
                    Some(node) => self.with_node(node, |world, node, running| {
                        // As a node that admits another does.
                        if let MetaCommand::Join(join) = &mut command {
                            let meta = running.control.cluster.meta();
                            join.versions = meta.announced(VersionRange::supported());
                            // The plan stops a node before another one takes its place.
                            let displaced = meta.nodes_at(&join.node.addresses.quic);
                            let displaced =
                                displaced.map(|node| Displaced { node: node.id, incarnation: node.incarnation });
                            join.displaced = displaced.filter(|_| join.versions.is_some()).collect();
                        }
                        world.propose_meta(node, running, &command, ORDER_TIMEOUT_MS, Caller::Operator(order));
                    }),
                    None => self.schedule(ORDER_RETRY_US, Event::Operator { order, result: None }),
                }
            }
            Some(Err(_)) => self.schedule(ORDER_RETRY_US, Event::Operator { order, result: None }),
            Some(Ok(reply)) => match (reply, follow_up) {
                (MetaReply::Refused(refusal), _) if is_transient(&command, &refusal) => {
                    self.schedule(ORDER_RETRY_US, Event::Operator { order, result: None });
                }
                (MetaReply::Refused(refusal), _) => {
                    self.operator.orders.remove(&order);
                    self.note(format!("an order was refused: {refusal}"));
                }
                (MetaReply::Node(id), FollowUp::Start(port, role)) => {
                    self.operator.orders.remove(&order);
                    self.note(format!("{id} joins at port {port} as {role:?}"));
                    self.add_node(id, port, role);
                    self.start(id);
                }
                _ => {
                    self.operator.orders.remove(&order);
                }
            },
        }
    }
}

/// Whether an order may succeed later: the cluster or the token does not exist yet, the cluster version rose
/// in between, a displaced node had started again, or all nodes but the one to remove are drained.
fn is_transient(command: &MetaCommand, refusal: &MetaRefusal) -> bool {
    match refusal {
        MetaRefusal::NotBootstrapped
        | MetaRefusal::UnknownToken
        | MetaRefusal::VersionNotSupported { .. }
        | MetaRefusal::AddressInUse(_) => true,
        MetaRefusal::LastNode => matches!(command, MetaCommand::RemoveNode { .. }),
        _ => false,
    }
}
