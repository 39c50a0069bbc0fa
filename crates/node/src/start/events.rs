//! The last things that happened, for whoever asks or follows.

use std::collections::{BTreeMap, VecDeque};

use flotilla_api::Event as ApiEvent;
use flotilla_control::{Event, MemberState};
use flotilla_replication::{LostReason, clock};
use parking_lot::Mutex;
use tokio::sync::broadcast;

/// Events remembered for those who resume.
const RING_MAX: usize = 1_024;
/// Ids of a start begin at its Unix milliseconds times this, above every id of earlier starts.
const IDS_PER_MILLISECOND: u64 = 1_024;

/// A bounded ring with subscribers.
pub(crate) struct Events {
    ring: Mutex<(u64, VecDeque<ApiEvent>)>,
    live: broadcast::Sender<ApiEvent>,
}

impl Events {
    pub(crate) fn new() -> Self {
        let first = clock::wall_ms() * IDS_PER_MILLISECOND;
        Self { ring: Mutex::new((first, VecDeque::new())), live: broadcast::Sender::new(RING_MAX) }
    }

    pub(crate) fn push(&self, event: Event) {
        let (kind, detail) = describe(event);
        let mut ring = self.ring.lock();
        ring.0 += 1;
        let event = ApiEvent { id: ring.0, time_ms: clock::wall_ms(), kind: kind.to_owned(), detail };
        if ring.1.len() == RING_MAX {
            ring.1.pop_front();
        }
        ring.1.push_back(event.clone());
        // Under the lock, so that subscribers see the order of the ids.
        let _ = self.live.send(event);
    }

    pub(crate) fn subscribe(&self) -> broadcast::Receiver<ApiEvent> {
        self.live.subscribe()
    }

    pub(crate) fn recent(&self) -> Vec<ApiEvent> {
        self.ring.lock().1.iter().cloned().collect()
    }
}

fn describe(event: Event) -> (&'static str, BTreeMap<String, String>) {
    let detail = |pairs: &[(&str, String)]| {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect::<BTreeMap<_, _>>()
    };
    match event {
        Event::Member { node, old, new } => {
            let kind = match (old, new) {
                (MemberState::Unknown, MemberState::Alive) => "node_joined",
                (_, MemberState::Alive) => "node_recovered",
                (_, MemberState::Suspect) => "node_suspected",
                (_, MemberState::Left) => "node_left",
                (_, MemberState::Down | MemberState::Unknown) => "node_failed",
            };
            (kind, detail(&[("node", node.to_string())]))
        }
        Event::Leader { shard, term, node } => {
            let pairs = [("shard", shard.to_string()), ("term", term.to_string()), ("node", node.to_string())];
            ("leader_changed", detail(&pairs))
        }
        Event::Lost { replicas, reason } => {
            let kind = match reason {
                LostReason::RolledBack => "log_went_backwards",
                LostReason::Broken => "replica_failed",
            };
            let names: Vec<_> = replicas.iter().map(|(shard, replica)| format!("{shard}/{replica}")).collect();
            (kind, detail(&[("replicas", names.join(" "))]))
        }
    }
}

#[cfg(test)]
mod tests {
    use flotilla_types::{NodeId, ShardId, Term};

    use super::*;

    #[test]
    fn the_ring_forgets_the_oldest_and_ids_have_no_holes() {
        let events = Events::new();
        for term in 0..RING_MAX as u64 + 10 {
            events.push(Event::Leader { shard: ShardId(1), term: Term(term), node: NodeId(1) });
        }
        let recent = events.recent();
        assert_eq!(recent.len(), RING_MAX);
        assert!(recent.windows(2).all(|pair| pair[0].id + 1 == pair[1].id));
        assert_eq!(recent[0].detail["term"], "t10");
    }
}
