//! Counts what the values of entries and records cost the network of this node: references, objects that were sent and
//! received, and objects that were here already.

use std::{collections::BTreeMap, sync::Arc};

use flotilla_types::NodeId;
use parking_lot::Mutex;

use crate::work::{Reuse, Stored};

/// Nodes that are counted one by one; what goes to others beyond that is in the totals only.
const LINKS_MAX: usize = 1_024;

/// What values have cost the network of a node since its start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ValueTraffic {
    /// Bytes of the references in commands that leaders here were asked to propose.
    pub reference_bytes: u64,
    /// Objects that replicas and readers here needed, and that were here already.
    pub needed_here: u64,
    /// Objects that they needed, and that came from other nodes.
    pub needed_fetched: u64,
    /// Bytes of the chunks that were here already: what was not sent again.
    pub saved_bytes: u64,
    /// By other node, in the order of their ids.
    pub links: Vec<(NodeId, LinkTraffic)>,
}

/// Objects of values that went over the link between two nodes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LinkTraffic {
    /// Objects that came from the other node.
    pub received_objects: u64,
    /// Their bytes.
    pub received_bytes: u64,
    /// Objects that the other node was sent.
    pub sent_objects: u64,
    /// Their bytes.
    pub sent_bytes: u64,
}

#[derive(Debug, Default)]
struct Counts {
    totals: ValueTraffic,
    links: BTreeMap<NodeId, LinkTraffic>,
}

/// The counters of a node.
#[derive(Debug, Clone, Default)]
pub(super) struct Traffic(Arc<Mutex<Counts>>);

impl Traffic {
    pub(super) fn now(&self) -> ValueTraffic {
        let counts = self.0.lock();
        ValueTraffic {
            links: counts.links.iter().map(|(node, link)| (*node, *link)).collect(),
            ..counts.totals.clone()
        }
    }

    /// A leader here is asked to propose a command with references of so many bytes.
    pub(super) fn referred(&self, bytes: usize) {
        self.0.lock().totals.reference_bytes += bytes as u64;
        metrics::counter!("flotilla_value_reference_bytes_total").increment(bytes as u64);
    }

    /// Somebody needed objects that are here already.
    pub(super) fn reused(&self, reuse: Reuse) {
        if reuse == Reuse::default() {
            return;
        }
        let mut counts = self.0.lock();
        counts.totals.needed_here += reuse.objects;
        counts.totals.saved_bytes += reuse.bytes;
        drop(counts);
        metrics::counter!("flotilla_value_need_objects_total", "here" => "true").increment(reuse.objects);
        metrics::counter!("flotilla_value_saved_bytes_total").increment(reuse.bytes);
    }

    /// An answer of another node brought objects.
    pub(super) fn received(&self, from: NodeId, stored: &Stored) {
        let (objects, bytes) = (stored.objects as u64, stored.bytes as u64);
        if objects == 0 {
            return;
        }
        self.0.lock().totals.needed_fetched += objects;
        self.link(from, |link| {
            link.received_objects += objects;
            link.received_bytes += bytes;
        });
        metrics::counter!("flotilla_value_need_objects_total", "here" => "false").increment(objects);
        metrics::histogram!("flotilla_value_batch_objects").record(objects as f64);
        let labels = [("direction", "received".to_owned()), ("peer", from.to_string())];
        metrics::counter!("flotilla_value_object_bytes_total", &labels).increment(bytes);
    }

    /// Another node was sent objects.
    pub(super) fn sent(&self, to: NodeId, objects: usize, bytes: usize) {
        if objects == 0 {
            return;
        }
        self.link(to, |link| {
            link.sent_objects += objects as u64;
            link.sent_bytes += bytes as u64;
        });
        let labels = [("direction", "sent".to_owned()), ("peer", to.to_string())];
        metrics::counter!("flotilla_value_object_bytes_total", &labels).increment(bytes as u64);
    }

    fn link(&self, node: NodeId, count: impl FnOnce(&mut LinkTraffic)) {
        let links = &mut self.0.lock().links;
        if links.len() < LINKS_MAX || links.contains_key(&node) {
            count(links.entry(node).or_default());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_counted_one_by_one_up_to_a_bound() {
        let traffic = Traffic::default();
        traffic.sent(NodeId(1), 0, 0);
        assert_eq!(traffic.now(), ValueTraffic::default());
        for node in 0..LINKS_MAX as u64 + 5 {
            traffic.sent(NodeId(node), 2, 70);
        }
        traffic.sent(NodeId(0), 1, 5);
        traffic.reused(Reuse { objects: 3, bytes: 11 });
        traffic.referred(43);
        let now = traffic.now();
        assert_eq!((now.links.len(), now.needed_here, now.saved_bytes, now.reference_bytes), (LINKS_MAX, 3, 11, 43));
        assert_eq!(now.links[0].1, LinkTraffic { sent_objects: 3, sent_bytes: 75, ..LinkTraffic::default() });
    }
}
