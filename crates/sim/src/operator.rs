//! Somebody who gives orders to the cluster through any of its nodes, and repeats each until it is answered.

use std::collections::BTreeMap;

use bytes::Bytes;
use flotilla_control::ShardError;
use flotilla_meta::{JoinRequest, MetaCommand, MetaReply, TokenId};
use flotilla_types::NodeId;
use rand::{RngExt as _, seq::IndexedRandom as _};

use crate::{
    clock::{Clock, WALL_MS},
    node::{Node, Who, new_node},
    world::{Event, World},
};

const TOKEN: TokenId = TokenId(7);
const SECRET_HASH: [u8; 32] = [7; 32];
/// Pause before an order that was not answered is given again, microseconds.
const AGAIN_US: u64 = 300_000;
const WITHIN_MS: u64 = 2_000;
/// The port of the first node; a node that lost its disk comes back at its old one.
pub(crate) const FIRST_PORT: u16 = 7_000;
const PORTS_APART: u16 = 10;

/// Orders that were not carried out yet.
#[derive(Default)]
pub(crate) struct Operator {
    orders: BTreeMap<u64, (MetaCommand, Then)>,
    next: u64,
    ports: u16,
}

/// What follows from an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Then {
    Nothing,
    /// A node starts at this port.
    Start(u16),
}

impl Operator {
    pub(crate) fn is_idle(&self) -> bool {
        self.orders.is_empty()
    }
}

impl World {
    /// Gives an order, now.
    pub(crate) fn order(&mut self, command: MetaCommand, then: Then) {
        self.operator.next += 1;
        let order = self.operator.next;
        self.operator.orders.insert(order, (command, then));
        self.operate(order, None);
    }

    /// The first node, which founds the cluster.
    pub(crate) fn found_cluster(&mut self) {
        let port = self.next_port();
        self.add_node(NodeId(1), port);
        if let Some(node) = self.nodes.get_mut(&NodeId(1)) {
            node.folder.founding = true;
            node.folder.has_authority = true;
        }
        self.start(NodeId(1));
        let expires_at_ms = WALL_MS + 365 * 24 * 3_600_000;
        self.order(
            MetaCommand::CreateToken { id: TOKEN, hash: SECRET_HASH, expires_at_ms, uses: 1_000 },
            Then::Nothing,
        );
    }

    pub(crate) fn next_port(&mut self) -> u16 {
        self.operator.ports += 1;
        FIRST_PORT + PORTS_APART * (self.operator.ports - 1)
    }

    /// A node joins at a port; who had it before is displaced.
    pub(crate) fn join(&mut self, port: u16) {
        let node = new_node(port, self.rng.random());
        self.order(MetaCommand::Join(JoinRequest { token: TOKEN, secret_hash: SECRET_HASH, node }), Then::Start(port));
    }

    fn add_node(&mut self, id: NodeId, port: u16) {
        let honest_ahead_ms = self.rng.random_range(-50..50);
        let booted_us = self.rng.random_range(0..1_000_000_000);
        self.nodes.insert(id, Node::new(id, port, Clock::new(booted_us, honest_ahead_ms), honest_ahead_ms));
    }

    /// Time to give an order, or the answer to it.
    pub(crate) fn operate(&mut self, order: u64, result: Option<Result<Bytes, ShardError>>) {
        let Some((command, then)) = self.operator.orders.get(&order).cloned() else { return };
        match result {
            None => {
                let live: Vec<_> =
                    self.nodes.values().filter(|node| node.running.is_some()).map(|node| node.id).collect();
                match live.choose(&mut self.rng).copied() {
                    Some(node) => self.with(node, |world, node, running| {
                        world.propose_meta(node, running, &command, WITHIN_MS, Who::Operator(order));
                    }),
                    None => self.schedule(AGAIN_US, Event::Operator { order, result: None }),
                }
            }
            Some(Err(_)) => self.schedule(AGAIN_US, Event::Operator { order, result: None }),
            Some(Ok(bytes)) => {
                let reply = MetaReply::decode(&bytes).unwrap_or_else(|error| panic!("{command:?}: {error}"));
                match (reply, then) {
                    // The cluster is not there yet, or the token is not.
                    (MetaReply::Refused(refusal), _) if self.operator_may_wait(&refusal) => {
                        self.schedule(AGAIN_US, Event::Operator { order, result: None });
                    }
                    (MetaReply::Refused(refusal), _) => {
                        self.operator.orders.remove(&order);
                        self.note(format!("an order was refused: {refusal}"));
                    }
                    (MetaReply::Node(id), Then::Start(port)) => {
                        self.operator.orders.remove(&order);
                        self.note(format!("{id} joins at port {port}"));
                        self.add_node(id, port);
                        self.start(id);
                    }
                    _ => {
                        self.operator.orders.remove(&order);
                    }
                }
            }
        }
    }

    fn operator_may_wait(&self, refusal: &flotilla_meta::MetaRefusal) -> bool {
        use flotilla_meta::MetaRefusal;
        matches!(refusal, MetaRefusal::NotBootstrapped | MetaRefusal::UnknownToken)
    }
}
