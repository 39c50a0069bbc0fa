//! Hands frames to the network, and tells the core what the network did not take.

use std::sync::Arc;

use flotilla_failpoints::{Place, reached};
use flotilla_transport::{Class, Transport};
use flotilla_types::NodeId;

use super::Inbox;
use crate::{Beat, Outgoing, work};

#[derive(Clone)]
pub(super) struct Sender {
    network: Arc<Transport>,
    inbox: Inbox,
}

impl Sender {
    pub(super) fn new(network: Arc<Transport>, inbox: Inbox) -> Self {
        Self { network, inbox }
    }

    /// Sends messages, in order per node and class. What the network does not take is reported unreachable once.
    pub(super) fn send(&self, messages: Vec<Outgoing>) {
        if messages.iter().any(|outgoing| outgoing.message.snapshot.is_some()) {
            reached(Place::FramesSnapshot);
        }
        for packed in work::pack(messages) {
            if self.network.send(packed.node, packed.class, packed.frame.clone()).is_err() {
                for input in packed.refused() {
                    self.inbox.send(input);
                }
            }
        }
    }

    /// A beat that the network does not take is lost; there will be another.
    pub(super) fn beat(&self, node: NodeId, beat: &Beat) {
        let _ = self.network.send(node, Class::Urgent, work::pack_beat(beat));
    }
}
