//! The recent events of this node, to list and to follow.

use std::collections::{BTreeMap, VecDeque};

use flotilla_api::Event as ApiEvent;
use flotilla_control::{Event, MemberState};
use flotilla_replication::{LostReason, clock};
use parking_lot::Mutex;
use tokio::sync::broadcast;

/// Events that are kept for clients that resume.
const EVENTS_MAX: usize = 1_024;
/// The first id of a start is its Unix time in milliseconds times this, which is above every id of earlier
/// starts.
const IDS_PER_MILLISECOND: u64 = 1_024;

/// A bounded buffer of events with subscribers. The oldest events are dropped first.
pub(crate) struct Events {
    recent: Mutex<Recent>,
    live: broadcast::Sender<ApiEvent>,
}

struct Recent {
    last_id: u64,
    events: VecDeque<ApiEvent>,
}

impl Events {
    pub(crate) fn new() -> Self {
        let recent = Recent { last_id: clock::wall_ms() * IDS_PER_MILLISECOND, events: VecDeque::new() };
        Self { recent: Mutex::new(recent), live: broadcast::Sender::new(EVENTS_MAX) }
    }

    pub(crate) fn push(&self, event: Event) {
        let (kind, detail) = describe(event);
        self.push_named(kind, detail);
    }

    /// Adds an event and returns it with its id.
    pub(crate) fn push_named(&self, kind: &str, detail: BTreeMap<String, String>) -> ApiEvent {
        let mut recent = self.recent.lock();
        recent.last_id += 1;
        let event = ApiEvent { id: recent.last_id, time_ms: clock::wall_ms(), kind: kind.to_owned(), detail };
        if recent.events.len() == EVENTS_MAX {
            recent.events.pop_front();
        }
        recent.events.push_back(event.clone());
        // Sent under the lock, so that subscribers get the events in the order of their ids.
        let _ = self.live.send(event.clone());
        event
    }

    pub(crate) fn subscribe(&self) -> broadcast::Receiver<ApiEvent> {
        self.live.subscribe()
    }

    pub(crate) fn recent(&self) -> Vec<ApiEvent> {
        self.recent.lock().events.iter().cloned().collect()
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
        Event::Damaged { shard, replica, objects } => {
            let objects: Vec<_> = objects.iter().map(ToString::to_string).collect();
            let pairs =
                [("shard", shard.to_string()), ("replica", replica.to_string()), ("objects", objects.join(" "))];
            ("replica_damaged", detail(&pairs))
        }
        Event::Repaired { shard, replica } => {
            ("replica_repaired", detail(&[("shard", shard.to_string()), ("replica", replica.to_string())]))
        }
        Event::Different { shard, odd, reason } => {
            let mut pairs = vec![("shard", shard.to_string()), ("reason", reason)];
            if let Some((replica, node)) = odd {
                pairs.extend([("replica", replica.to_string()), ("node", node.to_string())]);
            }
            ("replicas_differ", detail(&pairs))
        }
        Event::NotCompared { shard, reason } => {
            ("replicas_not_compared", detail(&[("shard", shard.to_string()), ("reason", reason)]))
        }
        Event::EqualAgain { shard } => ("replicas_equal", detail(&[("shard", shard.to_string())])),
        Event::Lost { replicas, reason } => {
            let kind = match reason {
                LostReason::RolledBack => "log_went_backwards",
                LostReason::Broken => "replica_failed",
                LostReason::Diverged => "replica_quarantined",
                LostReason::Tombstone => "replica_not_created",
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
    fn the_oldest_events_are_dropped_and_ids_are_consecutive() {
        let events = Events::new();
        for term in 0..EVENTS_MAX as u64 + 10 {
            events.push(Event::Leader { shard: ShardId(1), term: Term(term), node: NodeId(1) });
        }
        let recent = events.recent();
        assert_eq!(recent.len(), EVENTS_MAX);
        assert!(recent.windows(2).all(|pair| pair[0].id + 1 == pair[1].id));
        assert_eq!(recent[0].detail["term"], "t10");
    }
}
