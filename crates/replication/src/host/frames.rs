//! Sends frames, and reports to the core those that the network did not take.

use std::sync::Arc;

use flotilla_failpoints::{Place, reached};
use flotilla_transport::{Class, Transport};
use flotilla_types::NodeId;

use super::Inbox;
use crate::{NodeHeartbeat, Outgoing, work};

#[derive(Clone)]
pub(super) struct Sender {
    network: Arc<Transport>,
    inbox: Inbox,
}

impl Sender {
    pub(super) fn new(network: Arc<Transport>, inbox: Inbox) -> Self {
        Self { network, inbox }
    }

    /// Sends messages, in order per node and class. A frame that the network does not take is reported as
    /// unreachable.
    pub(super) fn send(&self, messages: Vec<Outgoing>) {
        if messages.iter().any(|outgoing| outgoing.message.snapshot.is_some()) {
            reached(Place::FramesSnapshot);
        }
        for packed in work::pack(messages) {
            if self.network.send(packed.node, packed.class, packed.frame.clone()).is_err() {
                for input in packed.into_failures() {
                    self.inbox.send(input);
                }
            }
        }
    }

    /// Sends a node heartbeat. One that the network does not take is dropped: the next follows soon.
    pub(super) fn send_node_heartbeat(&self, node: NodeId, heartbeat: &NodeHeartbeat) {
        let _ = self.network.send(node, Class::Urgent, work::pack_node_heartbeat(heartbeat));
    }
}
